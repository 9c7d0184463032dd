"""The import beside the published code, part by part: the rows of ``python -m bench showo``.

Pictures come from the checkout's own validation folders (or ``--images``); prompts and questions are seeded random words, for the text
tokenizer is not part of a checkout.  CLIP is made at its published size with random weights, and read by the checkout's own tower.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from bench.published.classes import Noise, Published, quietly
from bench.published.imported import Imported
from export.checkpoints.random_weights import fill
from export.checkpoints.showo import READS_FEATURES
from f2edge.backends.base import host
from f2edge.decoding.noise import gumbel, noise_key
from f2edge.errors import InputError
from f2edge.imaging.laws import law_named
from f2edge.spec.configuration import SHOW_O, ModelConfiguration, TokenExperts

#: Largest difference of fp32 logits.
TOLERANCE = 1e-4
QUESTIONS = 12
_LAW = law_named("show-o")


#: The published shape in small: minutes instead of hours, and without CLIP.
SMALL = replace(SHOW_O, layers=2, text_vocabulary=500, width=256, heads=4, token_experts=TokenExperts(512))


@dataclass(frozen=True)
class Row:
    """One line of the table: what was compared, what was found, and whether it agrees."""

    what: str
    found: str
    agrees: bool


def compare(source: Path, model: ModelConfiguration, images: Path, work: Path | None, *, seed: int, answer_tokens: int) -> Iterator[Row]:
    """Every row of the table; first the model that reads picture tokens, then the one that reads CLIP's features."""
    pictures = pictures_of(images)
    with torch.no_grad():
        # the width of the projector is a number in the published code
        both = (model, replace(model, **READS_FEATURES)) if model.width == SHOW_O.width else (model,)
        for configuration in both:
            with tempfile.TemporaryDirectory() if work is None else nullcontext(work) as folder:
                place = Path(folder) / configuration.understanding
                published = Published(source, configuration, seed)
                folders = published.make(place)
                if configuration.understanding == "codes":
                    yield from _by_codes(published, Imported.of(folders, place / "imported", model), pictures, answer_tokens)
                    continue
                tower, processor = _clip(published, place / "clip")
                imported = Imported.of(folders, place / "imported", model, place / "clip")
                pixels = [processor.preprocess(picture, return_tensors="pt")["pixel_values"] for picture in pictures[:3]]
                yield from _by_features(published, imported, [tower(values) for values in pixels], pictures[:3], answer_tokens)


def pictures_of(folder: Path) -> list[Image.Image]:
    """Up to six pictures of the checkout's validation folders or of any folder, as they are."""
    places = [folder / name for name in ("inpainting_validation", "mmu_validation")] if (folder / "mmu_validation").is_dir() else [folder]
    files = sorted(file for place in places for file in place.iterdir() if file.suffix in {".jpg", ".png"})
    if not files:
        raise InputError(f"{folder}: has no pictures (.jpg, .png); give a folder of some with --images")
    return [Image.open(file).convert("RGB") for file in files[:6]]


def words(model: ModelConfiguration, seed: int, count: int) -> list[int]:
    """Ids of random words, none of them the end of text."""
    return [int(word) for word in np.random.default_rng(seed).integers(0, model.text_vocabulary - 100, count)]


def noise_of(seed: int, model: ModelConfiguration) -> Noise:
    """The runtime's noise as tables."""

    def noise(step: int) -> tuple[Tensor, Tensor]:
        keys = noise_key(seed, step, np.arange(model.image_tokens))
        table = torch.from_numpy(gumbel(keys[:, None], np.arange(model.codes + 1)))
        return table[:, :-1], table[:, -1]

    return noise


def _distance(what: str, pairs: list[tuple[Tensor, Tensor]]) -> Row:
    worst = max(float((a - b).abs().max()) for a, b in pairs)
    return Row(f"{what}, largest difference", f"{worst:.1e} of a spread of {float(pairs[0][0].std()):.2f}", worst <= TOLERANCE)


def _tokens(what: str, pairs: list[tuple[Tensor, NDArray[np.int64]]]) -> Row:
    same = sum(int((a.numpy() == b).sum()) for a, b in pairs)
    count = sum(len(b) for _, b in pairs)
    return Row(f"{what}, identical tokens", f"{same} of {count}", same == count)


def _by_codes(published: Published, imported: Imported, pictures: list[Image.Image], answer_tokens: int) -> Iterator[Row]:
    state = published.model.state_dict()
    values = sum(tensor.numel() for tensor in state.values())
    yield Row("tensors imported", f"{len(state)} with {values:,} values; MAGVIT-v2 {len(published.tokenizer.state_dict())}", True)
    yield from _pictures(published, imported, pictures)
    model = published.configuration
    codes = [published.encode(published.pixels(picture)) for picture in pictures]
    masked = torch.full((model.image_tokens,), model.codes)
    half = torch.where(torch.arange(model.image_tokens) % 2 == 0, codes[0], masked)
    prompts = [words(model, 1, 9), [], words(model, 2, 200)]
    cut = [prompt[: model.prompt_tokens] for prompt in prompts]
    yield _distance(
        "T2I logits, three prompts (none, short, cut)", [(published.image_logits(prompts, half), imported.image_logits(cut, half.numpy()))]
    )
    answers = [(codes[i % len(codes)], words(model, 10 + i, 6 + i)) for i in range(QUESTIONS)]
    logits = [(published.text_logits(code, question), imported.answer(code.numpy(), question, 1)[0]) for code, question in answers[:3]]
    yield _distance("MMU logits, three questions", logits)
    told = [published.answer(code, question, answer_tokens) for code, question in answers]
    found = [imported.answer(code.numpy(), question, answer_tokens)[1] for code, question in answers]
    yield _same_answers("MMU", list(zip(told, found, strict=True)))
    for steps in (16, 18):
        for guidance in (1.75, 0.0):
            drawn = published.draw(prompts[0], masked, steps=steps, guidance=guidance, noise=noise_of(steps, model))
            own = imported.draw(prompts[0], masked.numpy(), steps=steps, guidance=guidance, seed=steps)
            yield _tokens(f"T2I, {steps} steps, guidance {guidance}", [(drawn, own)])
    for guidance in (1.75, 0.0):
        edits = list(_edits(published, imported, codes[0], guidance))
        yield _tokens(f"edits, 16 steps, guidance {guidance}, masks of 9, 77 and 200 tokens", edits)


def _edits(published: Published, imported: Imported, codes: Tensor, guidance: float) -> Iterator[tuple[Tensor, NDArray[np.int64]]]:
    model = published.configuration
    for count in (9, 77, 200):
        chosen = np.random.default_rng(count).permutation(model.image_tokens)[:count]
        grid = codes.clone()
        grid[torch.from_numpy(chosen)] = model.codes
        drawn = published.draw(words(model, 3, 8), grid, steps=16, guidance=guidance, noise=noise_of(count, model))
        yield drawn, imported.draw(words(model, 3, 8), grid.numpy(), steps=16, guidance=guidance, seed=count)


def _same_answers(what: str, pairs: list[tuple[list[int], list[int]]]) -> Row:
    same = sum(theirs[: len(own)] == own and len(theirs) - len(own) in {0, 1} for theirs, own in pairs)
    different = len({tuple(theirs) for theirs, _ in pairs})
    return Row(f"{what} greedy answers, identical", f"{same} of {len(pairs)} ({different} different ones)", same == len(pairs))


def _pictures(published: Published, imported: Imported, pictures: list[Image.Image]) -> Iterator[Row]:
    side = published.configuration.tokenizer.image_size
    pixels = [(published.pixels(picture)[0], torch.from_numpy(_LAW.pixels(picture, side))) for picture in pictures]
    sizes = ", ".join(f"{picture.width}x{picture.height}" for picture in pictures)
    yield Row(f"pixels of {sizes}", "identical", all(torch.equal(a, b) for a, b in pixels))
    run = imported.backend.run
    codes = [host(run("image_encode", {"pixels": own[None].numpy()})["codes"])[0] for _, own in pixels]
    encoded = [(published.encode(theirs[None]), row) for (theirs, _), row in zip(pixels, codes, strict=True)]
    yield _tokens("MAGVIT-v2 codes", encoded)
    drawn = host(run("image_decode", {"codes": encoded[0][0][None].numpy()})["pixels"])[0]
    bytes_ = np.asarray(_LAW.picture(drawn)), published.decode(encoded[0][0])
    far = int(np.abs(bytes_[0].astype(int) - bytes_[1].astype(int)).max())
    same = float((bytes_[0] == bytes_[1]).mean())
    yield Row("MAGVIT-v2 picture, identical bytes", f"{same:.4%}, largest difference {far}", far <= 1 and same > 0.999)
    mask = Image.new("L", pictures[0].size)
    mask.paste(255, (pictures[0].width // 3, pictures[0].height // 4, pictures[0].width // 3 * 2, pictures[0].height // 2))
    assert _LAW.mask_cells is not None
    cells = _LAW.mask_cells(mask, side, side // 16)
    yield Row("cells of a mask", f"{int(cells.sum())} of {cells.size}", published.cells(mask).tolist() == cells.flatten().tolist())


def _by_features(
    published: Published, imported: Imported, theirs: list[Tensor], pictures: list[Image.Image], answer_tokens: int
) -> Iterator[Row]:
    encoder, model = imported.models.semantic, published.configuration
    assert encoder is not None
    own = [encoder(torch.from_numpy(_LAW.pixels(picture, model.understanding_size))[None]) for picture in pictures]
    yield _distance("CLIP ViT-L/14 features of layer -2", list(zip(theirs, own, strict=True)))
    system = words(model, 4, model.system_tokens)
    reader = imported.with_system(system)
    asked = [(theirs[i % 3], words(model, 30 + i, 5 + i)) for i in range(QUESTIONS)]
    logits = []
    answers = []
    for features, question in asked:
        first, said = reader.answer_by_features(features.numpy(), question, answer_tokens)
        logits.append((published.feature_logits(features, system, question), first))
        answers.append((published.answer_by_features(features, system, question, answer_tokens), said))
    yield _distance("MMU logits with CLIP, twelve questions", logits)
    yield _same_answers("MMU with CLIP", answers)


def _clip(published: Published, folder: Path) -> tuple[Callable[[Tensor], Tensor], Any]:
    """The checkout's tower over a CLIP of random weights, and Hugging Face's preparation of pictures with CLIP's own settings."""
    transformers = import_module("transformers")
    shape = transformers.CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336, patch_size=14
    )
    vision = transformers.CLIPVisionModel(shape)
    fill(vision, published.seed)
    vision.save_pretrained(folder)
    size = {"shortest_edge": 336}
    processor = transformers.CLIPImageProcessor(size=size, crop_size={"height": 336, "width": 336})
    processor.save_pretrained(folder)
    with quietly():
        return published.code.models.CLIPVisionTower(str(folder)), processor
