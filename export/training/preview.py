"""Validation of the unified model during training: metrics on held-out faces and a grid of generated ones.

Axes: B faces, G mask ratios, N image tokens, S text columns, V codes, K slots.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from export.data.external.index import Texts
from export.data.text.dialogues import TextMaker
from export.data.text.questions import QuestionAnswer
from export.data.tokens import Face, TokenCache
from export.graph.sampling import SAMPLING_INPUTS, guide
from export.graph.sampling import sample as sample_codes
from export.model.transformer import Routing, UnifiedTransformer
from export.training.distributed import Processes
from export.training.losses import expert_usage
from f2edge.decoding.parallel import UNCONDITIONAL, Feeds, decode
from f2edge.decoding.schedule import Schedule, plan
from f2edge.spec.configuration import DRAWS
from f2edge.spec.layout import Ids, TokenLayout, left_pad

#: Codes (B, N) → pixels (B, 3, Y, X) in [-1, 1].
ImageDecoder = Callable[[Tensor], Tensor]

#: Shares of all choices by level and layer.
UsageTable = dict[str, list[list[float]]]

RATIOS = (0.25, 0.5, 0.75, 1.0)
_CHUNK = 16
_GENERATION_ROWS, _QUESTION_ROWS, _GRID = 128, 384, 16
_OWN_QUESTIONS, _OWN_TOKENS = 2, 160


def measure(
    model: UnifiedTransformer,
    cache: TokenCache,
    rows: NDArray[np.int64],
    texts: TextMaker,
    *,
    image_decoder: ImageDecoder | None,
    step: int,
    directory: Path,
) -> dict[str, float]:
    """Validation metrics; the same texts and masks at every call.

    Returns:
        ``t2i/loss@r`` and ``t2i/right@r`` by mask ratio r, ``t2i/prompt_gain`` (nats per token that a prompt saves on an all-masked image),
        ``slots/right`` (mean accuracy of the schema's questions) and ``slots/balanced`` (mean of each slot's mean recall over its values);
        ``seen/…``: the same under real conditions.
        ``directory`` gets ``unified-STEP.json`` (accuracy of each slot, use of each expert) and, with a decoder, ``unified-STEP.png``.
    """
    processes = Processes.current()
    generation, drawing = measure_generation(model, cache, rows[:_GENERATION_ROWS], texts)
    shown = [cache.face(row) for row in rows[:_GRID].tolist()]
    own = measure_texts(model, cache, rows[:_GENERATION_ROWS], texts)
    if not cache.schema:
        if processes.rank == 0:
            (directory / f"unified-{step:06d}.json").write_text(json.dumps({"t2i": drawing}, indent=1), encoding="utf-8")
        _preview(model, shown, texts, image_decoder, directory / f"unified-{step:06d}.png")
        return {**generation, **own}
    understanding, table, reading = measure_slots(model, cache, rows[:_QUESTION_ROWS], texts)
    seen, seen_table, _ = measure_slots(model, cache, rows[:_QUESTION_ROWS], texts, seen=True)
    if processes.rank == 0:
        report = {"slots": table, "seen": seen_table, "t2i": drawing, "mmu": reading}
        (directory / f"unified-{step:06d}.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    _preview(model, shown, texts, image_decoder, directory / f"unified-{step:06d}.png")
    return {**generation, **own, **understanding, **{f"seen/{name}": value for name, value in seen.items()}}


def _preview(model: UnifiedTransformer, faces: Sequence[Face], texts: TextMaker, decoder: ImageDecoder | None, path: Path) -> None:
    """Write the pictures that prompts of some faces give, with a decoder."""
    if decoder is not None:
        rng = np.random.default_rng(1)
        # In all processes, which may hold the weights together.
        codes = sample(model, texts.layout, [texts.prompt(face, rng) for face in faces])
        if Processes.current().rank == 0:
            save_grid(decoder(codes), path)


def measure_texts(model: UnifiedTransformer, cache: TokenCache, rows: NDArray[np.int64], texts: TextMaker) -> dict[str, float]:
    """Cross entropy per token, in nats, of the faces' own texts: ``texts/describe`` and ``texts/answer`` of questions.

    Nothing for a cache of slots.
    """
    totals: dict[str, list[float]] = {"texts/describe": [0.0, 0.0], "texts/answer": [0.0, 0.0]}
    device = next(model.parameters()).device
    for row in rows.tolist():
        face = cache.face(row)
        if not isinstance(face, Texts):
            return {}
        own = [(texts.describe_question, text, "texts/describe") for text in texts.descriptions(face)[:1]]
        own += [(question, answer, "texts/answer") for question, answer in face.questions[:_OWN_QUESTIONS]]
        for question, answer, name in own:
            asked, wanted = texts.exchange(QuestionAnswer(question, answer, "", "own"))
            wanted = wanted[:_OWN_TOKENS]
            ids = torch.tensor([[*asked, *wanted[:-1]]], device=device)
            codes = torch.from_numpy(cache.codes[[row]].astype(np.int64)).to(device)
            semantic, identity = (torch.from_numpy(a[[row]].astype(np.float32)).to(device) for a in (cache.semantic, cache.identity))
            places = torch.arange(ids.shape[1], device=device)[None]
            hidden, _ = model.understanding_states(codes, semantic, identity, ids, places, torch.zeros_like(ids))
            scores = model.text_scores(hidden[0, len(asked) - 1 :]).float()
            loss = functional.cross_entropy(scores, torch.tensor(wanted, device=device), reduction="sum")
            totals[name][0] += float(loss)
            totals[name][1] += len(wanted)
    return {name: loss / count for name, (loss, count) in totals.items() if count}


def _parts(rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return [rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK)]


def measure_generation(
    model: UnifiedTransformer, cache: TokenCache, rows: NDArray[np.int64], texts: TextMaker
) -> tuple[dict[str, float], UsageTable]:
    """Cross entropy and accuracy of masked tokens at each ratio of :data:`RATIOS`, and what the prompt saves; use of the experts."""
    device, N = next(model.parameters()).device, cache.codes.shape[1]

    def measured(part: NDArray[np.int64]) -> tuple[NDArray[np.float64], UsageTable]:
        """Sums over a part: losses and accuracies by ratio, and the loss of all-masked images without a prompt."""
        rng = np.random.default_rng([0, int(part[0])])
        codes = torch.from_numpy(cache.codes[part].astype(np.int64)).to(device)
        rank = torch.from_numpy(rng.random(codes.shape).argsort(axis=1).argsort(axis=1)).to(device)
        ratio = torch.tensor(RATIOS, device=device).expand(len(part), -1)
        masked = rank[:, None] < torch.round(ratio * N)[..., None]  # (B, G, N)
        seen = torch.where(masked, model.configuration.codes, codes[:, None])
        hidden, routing = _behind(model, texts, [texts.prompt(cache.face(row), rng) for row in part], seen, ratio)
        found = np.zeros(2 * len(RATIOS) + 1)
        for index in range(len(RATIOS)):
            logits, target = model.image_scores(hidden[:, index][masked[:, index]]).float(), codes[masked[:, index]]
            found[index] = float(functional.cross_entropy(logits, target))
            found[len(RATIOS) + index] = float((logits.argmax(dim=-1) == target).float().mean())
        hidden, _ = _behind(model, texts, [texts.layout.unconditional] * len(part), seen[:, -1:], ratio[:, -1:])
        found[-1] = float(functional.cross_entropy(model.image_scores(hidden[:, 0]).float().flatten(0, 1), codes.flatten()))
        return found * len(part), usage_table(routing)

    parts = Processes.current().map(measured, _parts(rows))
    means = sum(found for found, _ in parts) / len(rows)
    loss, right, empty = np.split(means, [len(RATIOS), 2 * len(RATIOS)])
    metrics = {f"t2i/loss@{r}": float(value) for r, value in zip(RATIOS, loss, strict=True)}
    metrics |= {f"t2i/right@{r}": float(value) for r, value in zip(RATIOS, right, strict=True)}
    return {**metrics, "t2i/prompt_gain": float(empty[0] - loss[-1])}, mean_usage([usage for _, usage in parts])


def _behind(
    model: UnifiedTransformer, texts: TextMaker, prompts: Sequence[Sequence[int]], seen: Tensor, ratio: Tensor
) -> tuple[Tensor, Routing]:
    ids, lengths = (torch.from_numpy(array).to(seen.device) for array in left_pad(prompts, texts.layout.pad))
    return model.generation_states(ids, lengths, seen, ratio)


def measure_slots(
    model: UnifiedTransformer, cache: TokenCache, rows: NDArray[np.int64], texts: TextMaker, *, seen: bool = False
) -> tuple[dict[str, float], dict[str, float], UsageTable]:
    """Ask every visible slot of every face; the answer is the most probable first token among those of the slot's answers.

    With ``seen``, of the faces under real conditions.
    """
    held = (cache.codes, cache.semantic, cache.identity, cache.slots)
    if seen:
        held = (cache.seen_codes, cache.seen_semantic, cache.seen_identity, cache.seen_slots)
    device, width = next(model.parameters()).device, max(len(slot.values) for slot in cache.schema.values())
    asked = [texts.exchange(QuestionAnswer(slot.question, slot.answers[0], slot.name, "slot"))[0] for slot in cache.schema.values()]
    first = np.full((len(asked), width), -1, np.int64)  # (K, values)
    for index, slot in enumerate(cache.schema.values()):
        first[index, : len(slot.values)] = [texts.encode_fixed(answer)[0] for answer in slot.answers]
    ids = torch.tensor([token for question in asked for token in question], device=device)[None]  # (1, S)
    places = torch.cat([torch.arange(len(question)) for question in asked]).to(device)[None]
    segments = torch.cat([torch.full((len(question),), index) for index, question in enumerate(asked)]).to(device)[None]
    ends = torch.tensor([len(question) for question in asked], device=device).cumsum(0) - 1  # (K,)
    allowed = torch.from_numpy(first).to(device)

    def answered(part: NDArray[np.int64]) -> tuple[NDArray[np.int64], UsageTable]:
        codes = torch.from_numpy(held[0][part].astype(np.int64)).to(device)
        semantic, identity = (torch.from_numpy(a[part].astype(np.float32)).to(device) for a in held[1:3])
        texts_of = (t.expand(len(part), -1) for t in (ids, places, segments))
        hidden, routing = model.understanding_states(codes, semantic, identity, *texts_of)
        scores = model.text_scores(hidden[:, ends]).float()  # (B, K, text vocabulary)
        scores = scores.gather(2, allowed.clamp(min=0).expand(len(part), -1, -1)).masked_fill(allowed < 0, -torch.inf)
        return scores.argmax(dim=-1).cpu().numpy(), usage_table(routing)

    parts = Processes.current().map(answered, _parts(rows))
    answers, truth = np.concatenate([found for found, _ in parts]), held[3][rows]
    return *_slot_metrics(answers, truth, list(cache.schema)), mean_usage([usage for _, usage in parts])


def _slot_metrics(answers: NDArray[np.int64], truth: NDArray[np.int8], names: Sequence[str]) -> tuple[dict[str, float], dict[str, float]]:
    """Mean and balanced accuracy, and the accuracy of each slot that any face shows."""
    table, balanced = {}, []
    for index, name in enumerate(names):
        visible = truth[:, index] >= 0
        if not visible.any():
            continue
        wanted, right = truth[visible, index], answers[visible, index] == truth[visible, index]
        table[name] = float(right.mean())
        balanced.append(float(np.mean([right[wanted == value].mean() for value in np.unique(wanted)])))
    if not table:
        return {}, {}
    return {"slots/right": float(np.mean(list(table.values()))), "slots/balanced": float(np.mean(balanced))}, table


def usage_table(routing: Routing) -> UsageTable:
    """How often each expert was chosen, as shares, layer by layer: {"token": (L, E), "sequence": (L, 4)}, the levels that exist."""
    levels = {"token": routing.token_chosen, "sequence": routing.sequence_chosen}
    return {level: expert_usage(chosen).tolist() for level, chosen in levels.items() if chosen.numel()}


def mean_usage(tables: Sequence[UsageTable]) -> UsageTable:
    """The mean of several such tables."""
    return {level: np.mean([table[level] for table in tables], axis=0).tolist() for level in tables[0]}


def sample(
    model: UnifiedTransformer,
    layout: TokenLayout,
    prompts: Sequence[Sequence[int]],
    schedule: Schedule | None = None,
    seeds: Sequence[int] | None = None,
) -> Tensor:
    """Generate one image per prompt (token ids with specials), by default with seeds 0, 1 …: codes (B, N) on the model's device."""
    device, V = next(model.parameters()).device, model.configuration.codes
    ids, lengths = (torch.from_numpy(a).to(device) for a in left_pad([*prompts, layout.unconditional], layout.pad))
    key, value = model.prefill_prompt(ids, lengths)  # the last row is the empty prompt

    def step(feeds: Feeds, prefixes: tuple[int, ...]) -> tuple[Ids, Ids]:
        rows = torch.tensor([len(prompts) if p == UNCONDITIONAL else p for p in prefixes], device=device)
        branch = feeds["branch_row"]
        codes, ratio = (torch.from_numpy(feeds[name][branch]).to(device) for name in ("codes", "mask_ratio"))
        logits = model.image_logits(codes, key[:, rows], value[:, rows], lengths[rows], ratio).float().cpu()
        return _next_codes(logits, feeds)

    masked = np.full((len(prompts), model.configuration.image_tokens), V, dtype=np.int64)
    seeds = list(range(len(prompts))) if seeds is None else seeds
    plans = [plan(schedule or Schedule(), np.ones(masked.shape[1], dtype=bool), seed, layout.block) for seed in seeds]
    return torch.from_numpy(decode(step, masked, plans, seeds)).to(device)


def _next_codes(logits: Tensor, feeds: Feeds) -> tuple[Ids, Ids]:
    """Sample as the ``t2i_step`` graph does after the transformer; ``logits`` of all branches (B, N, V)."""
    tensors = {name: torch.from_numpy(np.asarray(feeds[name])) for name in (*SAMPLING_INPUTS, "guidance", "unconditional_branch")}
    conditional = logits[: len(tensors["codes"])]
    guided = guide(conditional, logits[tensors["unconditional_branch"]], tensors["guidance"])
    codes, proposal = sample_codes(guided, **{name: tensors[name] for name in SAMPLING_INPUTS}, draw=DRAWS[0])
    return codes.numpy(), proposal.numpy()


def save_grid(pixels: Tensor, path: Path) -> None:
    """Pictures (B, 3, Y, X) in [-1, 1] as one PNG, four in a row."""
    from PIL import Image

    pictures = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    rows = [np.concatenate(pictures[i : i + 4], axis=1) for i in range(0, len(pictures) // 4 * 4, 4)]
    Image.fromarray(np.concatenate(rows, axis=0)).save(path)
