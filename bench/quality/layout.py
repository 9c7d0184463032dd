"""What a layout does: agreement of drawn faces with the regions of held-out renders, with and without, and what it costs.

Maps are the renderer's own truth, given as a face (``layout_from``), as its map (``f2edge regions``) and as flat areas of one colour each,
such as a paint program makes.  Agreement is what the model's parser reads, against the truth.  The floor is the agreement with another
face's map.  Prompts are those of the same face, and those of another, whose hair and hat may contradict the map.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bench.quality import scores
from bench.quality.faces import Prompt, progress
from bench.quality.quality import Bench, as_array, as_images
from f2edge.imaging.map_pictures import FREE, absent, cut
from f2edge.imaging.region_map import RegionMap

_SEEDS_APART = 1_000_000
#: From back to front, as a hand paints them; not the renderer's order.
_PAINTED = ("background", "hair", "clothing", "neck", "ears", "skin", "nose", "mouth", "eyes", "brows", "hat")


def layout(bench: Bench) -> dict[str, Any]:
    """Draw the prompts of a fifth of ``images`` faces without a layout and with each kind of it, group by group."""
    count = max(bench.images // 5, 2)
    masks = truth_masks(bench, count)
    maps = [RegionMap.of(np.stack([_shares(mask, bench.pipeline.bundle.configuration.tokenizer.grid) for mask in face])) for face in masks]
    faces, prompts = as_images(bench.faces.images[:count]), bench.prompts[:count]
    painted = [flat_map(*face, bench.pipeline.bundle.regions) for face in zip(masks, bench.faces.visible[:count], strict=True)]
    own: dict[str, dict[str, Any]] = {"nothing": {}, "face": {"layout_from": faces}, "map": {"layout": painted}}
    results: dict[str, Any] = {"faces": count, "floor": _mean(bench, faces[1:] + faces[:1], maps), "ceiling": _mean(bench, faces, maps)}
    results["own_prompt"] = _drawn(bench, prompts, maps, own, "layout")
    results["other_prompt"] = _drawn(bench, prompts[1:] + prompts[:1], maps, own, "layout-other")
    return results


def truth_masks(bench: Bench, count: int) -> list[NDArray[np.bool_]]:
    """Return the renderer's regions of the bench's first faces, bool (K, Y, X) each, in the order of the bundle's names."""
    from export.data.render.renderer import sample_face

    side, names = bench.faces.images.shape[1], bench.pipeline.bundle.regions
    rendered = (sample_face(bench.seed * _SEEDS_APART + index, "heldout", side) for index in range(count))
    return [np.stack([face.regions[name] for name in names]) for face in rendered]


def flat_map(masks: NDArray[np.bool_], shown: Mapping[str, str], names: Sequence[str]) -> NDArray[np.int64]:
    """Return regions as a hand paints them: one index a pixel (Y, X), from back to front; a hat and hair only where they are."""
    indices = np.full(masks.shape[1:], FREE, dtype=np.int64)
    for name in (name for name in _PAINTED if name in names and name not in absent(shown)):
        indices[masks[names.index(name)]] = names.index(name)
    return cut(indices, names, shown)


def _drawn(
    bench: Bench, prompts: Sequence[Prompt], maps: Sequence[RegionMap], kinds: dict[str, dict[str, Any]], sheet: str
) -> dict[str, dict[str, float]]:
    said = scores.mention_table([p.mentioned for p in prompts], bench.schema)
    images: dict[str, list[Image.Image]] = {kind: [] for kind in kinds}
    seconds = dict.fromkeys(kinds, 0.0)
    for row, prompt in enumerate(progress(list(prompts), sheet, len(prompts))):
        for kind, given in kinds.items():
            more = {name: sources[row] for name, sources in given.items()}
            start = time.perf_counter()
            (face,) = bench.pipeline.generate(prompt.text, seeds=bench.seed * _SEEDS_APART + row, options=bench.options, **more)
            seconds[kind] += time.perf_counter() - start
            images[kind].append(face.image)
    bench.sheet(sheet, [image for row in zip(*images.values(), strict=True) for image in row], [*kinds] * len(prompts))

    def accuracy(found: Sequence[Image.Image]) -> float:
        return scores.slot_shares(bench.judge.predict(as_array(found)), said, bench.schema).overall

    return {
        kind: {"agreement": _mean(bench, found, maps), "accuracy": accuracy(found), "relative_time": seconds[kind] / seconds["nothing"]}
        for kind, found in images.items()
    }


def _mean(bench: Bench, images: Sequence[Image.Image], maps: Sequence[RegionMap]) -> float:
    """Return the mean agreement of pictures with maps, by the parser."""
    pipeline = bench.pipeline
    read = (pipeline.coverage(pipeline.pixels(image)) for image in images)
    return float(np.mean([wanted.agreement(coverage) for wanted, coverage in zip(maps, read, strict=True)]))


def _shares(mask: NDArray[np.bool_], grid: int) -> NDArray[np.float32]:
    cell = mask.shape[0] // grid
    shares: NDArray[np.float32] = mask.reshape(grid, cell, grid, cell).mean(axis=(1, 3), dtype=np.float32)
    return shares
