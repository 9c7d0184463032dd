"""Published weights as our own: exact names and shapes, the same numbers as a plain implementation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from export.checkpoints import magvit2 as magvit2_checkpoint
from export.checkpoints import showo as showo_checkpoint
from export.checkpoints.showo import READS_FEATURES
from export.graph.sampling import guide, sample
from export.graph.trace import Models
from export.model.magvit2 import Magvit2Tokenizer, decoder_blocks, encoder_blocks
from export.model.transformer import UnifiedTransformer
from export.verify.parity import TorchBackend
from f2edge.decoding.autoregressive import answer
from f2edge.decoding.noise import noise_key
from f2edge.decoding.parallel import Feeds, StepFunction, decode
from f2edge.decoding.schedule import Schedule, plan
from f2edge.spec.configuration import SHOW_O, FeatureShape
from f2edge.spec.layout import Ids, TokenLayout, left_pad
from tests.support import plain_magvit2
from tests.support.plain_showo import PlainShowO
from tests.support.reference_sampler import reference_gumbel, reference_key
from tests.support.small_showo import END, SMALL, SMALL_TOKENIZER, START, N, V, imported, magvit_state, prefix, show_o_state

TOLERANCE = 1e-4


def plain(state: Mapping[str, Tensor]) -> PlainShowO:
    return PlainShowO(state, SMALL.layers, SMALL.heads, SMALL.rotary, SMALL.text_vocabulary, N, SMALL.image_offset)


# The published sizes -------------------------------------------------------------------------------------------------


def published_tensors() -> dict[str, tuple[int, ...]]:
    """Names and shapes as the published classes have them when they are made at full size, CLIP-ViT's projector included."""
    rows = (Path(__file__).parent / "showo_tensors.txt").read_text().splitlines()
    shapes: dict[str, tuple[int, ...]] = {}
    for name, size in (row.split() for row in rows if not row.startswith("#")):
        names = [name.replace("*", str(layer)) for layer in range(24)] if "*" in name else [name]
        shapes |= dict.fromkeys(names, tuple(map(int, size.split("x"))))
    return shapes


def test_names_and_shapes_are_those_of_the_published_classes() -> None:
    ours = showo_checkpoint.published_shapes(replace(SHOW_O, **READS_FEATURES)) | magvit2_checkpoint.published_shapes(SHOW_O.tokenizer)
    assert ours == published_tensors()


@pytest.mark.parametrize("size", [256, 512])
def test_names_and_shapes_of_the_published_transformer(size: int) -> None:
    configuration = replace(SHOW_O, tokenizer=replace(SHOW_O.tokenizer, image_size=size))
    shapes = showo_checkpoint.published_shapes(configuration)
    assert len(shapes) == 437
    assert sum(prod(shape) for shape in shapes.values()) == 1_448_176_770
    assert shapes["showo.model.embed_tokens.weight"] == (58498, 2048)
    assert shapes["showo.model.layers.23.mlp.fc1.weight"] == (8192, 2048)
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    ours = {name: tuple(tensor.shape) for name, tensor in showo_checkpoint.renamed(state, configuration)}
    assert ours == showo_checkpoint.own_shapes(configuration)
    with_clip = showo_checkpoint.published_shapes(replace(configuration, **READS_FEATURES))
    assert len(with_clip) == 441
    assert with_clip["mm_projector.0.weight"] == (2048, 1024)


def test_names_and_shapes_of_the_published_tokenizer() -> None:
    shapes = magvit2_checkpoint.published_shapes(SHOW_O.tokenizer)
    assert len(shapes) == 382
    assert sum(prod(shape) for shape in shapes.values()) == 95_493_513
    assert encoder_blocks(SHOW_O.tokenizer) == plain_magvit2.ENCODER_BLOCKS
    assert decoder_blocks(SHOW_O.tokenizer) == plain_magvit2.DECODER_BLOCKS
    widening = {name.removesuffix(".nin_shortcut.weight") for name in shapes if name.endswith("nin_shortcut.weight")}
    assert widening == {"encoder.down.1.block.0", "encoder.down.3.block.0", "decoder.up.3.block.0", "decoder.up.1.block.0"}
    assert shapes["encoder.quant_conv.weight"] == (13, 13, 1, 1)
    assert shapes["decoder.conv_in.weight"] == (512, 13, 3, 3)
    assert shapes["decoder.conv_out.weight"] == (3, 128, 3, 3)


# The same numbers ----------------------------------------------------------------------------------------------------


def test_image_logits_equal_the_plain_padded_sequence() -> None:
    state = show_o_state()
    model, prompts = imported(state), [[3, 7, 1], [], [5] * 8]
    codes = torch.randint(0, V + 1, (3, N), generator=torch.Generator().manual_seed(2))
    expected = plain(state).image_logits(prompts, START, END, codes)
    got = model.image_logits(codes, *prefix(model, prompts), torch.zeros(3))
    assert float(expected.std()) > 0.3
    assert float((got - expected).abs().max()) <= TOLERANCE


def gumbel_noise(seed: int, step: int) -> tuple[Tensor, Tensor]:
    """The noise of ``f2edge.decoding.noise`` in plain numbers: codes (N, V), confidence (N,)."""
    keys = [reference_key(seed, step, n) for n in range(N)]
    table = torch.tensor([[reference_gumbel(key, code) for code in range(V + 1)] for key in keys])
    return table[:, :V], table[:, V]


def stepping(model: UnifiedTransformer, prompts: list[list[int]]) -> StepFunction:
    """One step of the imported model behind these prompts."""
    key, value, lengths = prefix(model, [*prompts, []])

    def step(feeds: Feeds, prefixes: tuple[int, ...]) -> tuple[Ids, Ids]:
        given = {name: torch.from_numpy(np.asarray(array)) for name, array in feeds.items()}
        rows = torch.tensor(prefixes) % (len(prompts) + 1)  # the empty prompt stands last
        branches = given["codes"][given["branch_row"]]
        ratio = given["mask_ratio"][given["branch_row"]]
        logits = model.image_logits(branches, key[:, rows], value[:, rows], lengths[rows], ratio)
        R = len(given["codes"])
        guided = guide(logits[:R], logits[given["unconditional_branch"]], given["guidance"])
        rest = (given[name] for name in ("codes", "token_temperature", "temperature", "noise_key", "priority", "masked_after"))
        next_codes, proposal = sample(guided, *rest, draw=model.configuration.draw)
        return next_codes.numpy(), proposal.numpy()

    return step


@pytest.mark.parametrize(("steps", "guidance"), [(5, 1.75), (8, 5.0), (1, 2.0), (6, 1.75), (12, 0.0)])
def test_pictures_are_the_plain_loops_token_for_token(steps: int, guidance: float) -> None:
    state = show_o_state()
    model = imported(state)
    prompts, seeds = [[3, 7, 1], [11, 2], [30]], [7, 8, 2**40 + 3]
    step = stepping(model, prompts)
    schedule = Schedule(steps=steps, guidance=guidance, temperature=1.0, temperature_law="show-o", mask_law="show-o")
    everything = np.ones(N, dtype=bool)
    got = decode(step, np.full((3, N), V), [plan(schedule, everything, seed) for seed in seeds], seeds)
    assert reference_key(7, 1, 2) == noise_key(7, 1, np.array([2]))[0]
    for prompt, seed, codes in zip(prompts, seeds, got, strict=True):
        noise = partial(gumbel_noise, seed)
        expected = plain(state).draw(prompt, START, END, steps=steps, guidance=guidance, temperature=1.0, noise=noise)
        assert codes.tolist() == expected.tolist()
        assert len(set(codes.tolist())) > 4  # a model that always says the same would prove nothing


@pytest.mark.parametrize("tokens", [256, 1024])
@pytest.mark.parametrize("masked", [1, 5, 100, 255, 1024])
def test_counts_are_those_of_the_published_loop(tokens: int, masked: int) -> None:
    """``max(1, min(unknown - 1, floor(N cos)))`` in single precision over the whole grid, but for the last step, which keeps everything."""
    masked = min(masked, tokens)
    for steps in (*range(1, 40), 50, 64, 100):
        unknown, counts = masked, []
        for k in range(steps):
            wanted = float((tokens * torch.cos(torch.tensor((k + 1) / steps) * torch.pi * 0.5)).floor())
            unknown = int(max(1, min(unknown - 1, wanted)))
            counts.append(unknown)
        chosen = np.arange(tokens) < masked
        found = plan(Schedule(steps=steps, mask_law="show-o"), chosen, seed=0).masked_after.tolist()
        assert found == [*counts[:-1], 0], steps


@pytest.mark.parametrize("masked", [2, 5, 9, 15])
@pytest.mark.parametrize("guidance", [0.0, 1.75])
def test_edits_are_the_plain_loops_token_for_token(masked: int, guidance: float) -> None:
    """Few masked tokens and many: the mask law is that of the whole grid, so most of an edit is decoded one by one at first."""
    state, steps, seed = show_o_state(), 8, 5
    model, known = imported(state), torch.arange(N) * 7 % V
    codes = torch.where(torch.arange(N) < masked, V, known)
    everything = codes.numpy() == V
    schedule = Schedule(steps=steps, guidance=guidance, temperature=1.0, temperature_law="show-o", mask_law="show-o")
    got = decode(stepping(model, [[3, 7, 1]]), codes.numpy()[None], [plan(schedule, everything, seed)], [seed])[0]
    expected = plain(state).draw(
        [3, 7, 1], START, END, steps=steps, guidance=guidance, temperature=1.0, noise=partial(gumbel_noise, seed), codes=codes
    )
    assert got.tolist() == expected.tolist()
    assert got[masked:].tolist() == known[masked:].tolist()


def test_answers_are_the_plain_greedy_ones_token_for_token() -> None:
    state = show_o_state(seed=1)
    model, question = imported(state), [4, 9, 2]
    codes = torch.randint(0, V, (2, N), generator=torch.Generator().manual_seed(3))
    none = torch.zeros(2, 1, 1)
    image = model.prefill_image(codes, none, none)
    text = torch.zeros(SMALL.layers, 2, SMALL.heads, 0, SMALL.head_width)
    cache, ids, said = (text, text), torch.tensor([[START, *question]] * 2), torch.zeros(2, 0, dtype=torch.long)
    for _ in range(12):
        length = torch.full((2,), cache[0].shape[3] + ids.shape[1])
        logits, *cache_now = model.extend_text(ids, length, *image, *cache)
        cache, ids = (cache_now[0], cache_now[1]), logits.argmax(dim=-1, keepdim=True)
        said = torch.cat((said, ids), dim=1)
    answers = []
    for row in range(2):
        expected = plain(state).answer(codes[row], question, START, END, longest=12)
        assert said[row, : len(expected)].tolist() == expected
        answers.append(expected)
    assert answers[0] != answers[1]  # the picture matters
    assert len(set(answers[0])) > 1


def test_the_task_token_sees_the_picture_as_published() -> None:
    """Layer by layer: the columns of ``<|mmu|>`` depend on the picture, and would not if it were text that sees only what is before it."""
    state, codes, none = show_o_state(), torch.stack((torch.zeros(N), torch.arange(N))).long(), torch.zeros(2, 1, 1)
    model = imported(state)
    key, _ = model.prefill_image(codes, none, none)  # (L, B, H, C, W)
    assert float((key[1:, 0, :, 0] - key[1:, 1, :, 0]).abs().max()) > 0.01
    alone = UnifiedTransformer(replace(SMALL, task_sees_image=False)).eval()
    alone.load_state_dict(model.state_dict())
    key, _ = alone.prefill_image(codes, none, none)
    assert torch.equal(key[:, 0, :, 0], key[:, 1, :, 0])


def test_answers_by_features_are_the_plain_greedy_ones_token_for_token() -> None:
    """A system prompt, then an encoder's vectors through the projector, which every row sees; the question without its start."""
    configuration = replace(SMALL, understanding="features", system_tokens=4, semantic=FeatureShape(9, 16, image_size=28))
    state, system, question = show_o_state(configuration, seed=9), [8, 1, 30, 2], [4, 9, 2]
    model = UnifiedTransformer(configuration).eval().requires_grad_(requires_grad=False)
    model.load_state_dict(dict(showo_checkpoint.renamed(state, configuration)))
    models, answers = Models(configuration, model, system_ids=tuple(system)), []
    layout = TokenLayout.of(configuration, START, END)
    for features in 8 * torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(3)):
        image = TorchBackend(models).run("mmu_prefill", {"semantic": features[None].numpy()})
        empty = np.zeros((SMALL.layers, 1, SMALL.heads, 0, SMALL.head_width), dtype=np.float32)

        def extend(text: Ids, lengths: Ids, cache: Any, image: Any = image) -> Any:
            feeds = {"text_ids": text, "text_lengths": lengths, **image, "text_key": cache[0], "text_value": cache[1]}
            outputs = TorchBackend(models).run("mmu_extend", feeds)
            return outputs["logits"], (outputs["next_text_key"], outputs["next_text_value"])

        ids, lengths = left_pad([layout.question(question)], layout.pad)
        assert ids.tolist() == [question]
        (said,) = answer(extend, (empty, empty), ids, lengths, end_of_text=END, max_tokens=10)
        expected = plain(state).answer_by_features(features, system, question, END, longest=10)
        assert [*said, END][: len(expected)] == expected
        answers.append(expected)
    assert answers[0] != answers[1]  # the picture matters


def test_answer_logits_equal_the_plain_sequence_in_training_form() -> None:
    state, none = show_o_state(seed=1), torch.zeros(2, 1, 1)
    codes = torch.randint(0, V, (2, N), generator=torch.Generator().manual_seed(5))
    model, reader, text = imported(state), plain(state), torch.tensor([[START, 4, 9, 2]] * 2)
    hidden, _ = model.understanding_states(codes, none, none, text, torch.arange(4).expand(2, 4), torch.zeros(2, 4, dtype=torch.long))
    ends = torch.tensor([[reader.mmu, reader.soi, reader.eoi]] * 2)
    ids = torch.cat((ends[:, :2], codes + reader.first_code, ends[:, 2:], text), dim=1)
    column = torch.arange(ids.shape[1])
    allowed = (column[None, :] <= column[:, None]) | (column[None, :] <= N + 2)
    expected = reader.logits(ids, allowed[None])[:, -4:, : SMALL.text_vocabulary]
    assert float((model.text_scores(hidden) - expected).abs().max()) <= TOLERANCE


def test_codes_and_pixels_equal_the_plain_tokenizer() -> None:
    state = magvit_state()
    tokenizer = Magvit2Tokenizer(SMALL_TOKENIZER).eval().requires_grad_(requires_grad=False)
    tokenizer.load_state_dict(dict(magvit2_checkpoint.renamed(state)))
    pixels = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(4)) * 2 - 1
    codes = tokenizer.encode(pixels)
    expected = plain_magvit2.encoded(state, pixels, encoder_blocks(SMALL_TOKENIZER))
    assert codes.shape == (3, N)
    assert codes.dtype == torch.int64
    assert codes.tolist() == expected.tolist()
    assert len(set(codes.flatten().tolist())) > 4
    drawn = plain_magvit2.decoded(state, expected, 4, decoder_blocks(SMALL_TOKENIZER))
    assert float(drawn.std()) > 0.1
    assert float((tokenizer.decode(codes) - drawn.clamp(-1, 1)).abs().max()) <= TOLERANCE
