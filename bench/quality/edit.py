"""Edits of held-out renders, described or instructed: accuracy of the requested attribute, tokens outside the region, other slots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.quality.faces import HeldOutFaces, progress
from bench.quality.quality import Bench, as_array, as_images
from bench.results import Results
from f2edge.errors import InputError

_KEPT_IN_PROMPT = 5


@dataclass(frozen=True)
class EditKind:
    """One kind of edit.

    Attributes:
        slot: edited attribute.
        region: named region that is regenerated.
        values: possible new values.
        only: required values of other slots.
        bound: slots that the new value may change or hide; not counted as "other".
    """

    slot: str
    region: str
    values: tuple[str, ...]
    only: Mapping[str, tuple[str, ...]]
    bound: tuple[str, ...] = ()


_OPEN_FACE = {"face_mask": ("none",), "action": ("none",)}

KINDS: tuple[EditKind, ...] = (
    EditKind("hair_color", "hair", ("black", "brown", "blonde", "red", "gray", "blue"), {"hair_length": ("short", "medium", "long")}),
    EditKind("eyewear", "eyes", ("none", "eyeglasses", "sunglasses"), {}, ("eye_color", "eye_shape", "eye_bags", "makeup")),
    EditKind("lipstick", "mouth", ("none", "red", "pink", "purple"), _OPEN_FACE, ("lips",)),
    EditKind("action", "mouth", ("smile",), _OPEN_FACE | {"emotion": ("neutral", "happy")}, ("emotion", "lips", "cheeks", "chin")),
    EditKind(
        "beard",
        "chin",
        ("full", "goatee", "stubble"),
        _OPEN_FACE | {"beard": ("none",), "gender_presentation": ("masculine",)},
        ("chin", "face_shape", "sideburns", "lips", "mustache"),
    ),
    EditKind("clothing_color", "clothing", ("white", "black", "red", "blue", "green", "yellow"), {}),
    EditKind("background", "background", ("gray", "blue", "green", "orange", "pink", "dark"), {}),
)


@dataclass(frozen=True)
class PlannedEdit:
    """One edit of one face: row in the faces, kind, new value, prompt."""

    row: int
    kind: EditKind
    value: str
    prompt: str


def plan_edits(faces: HeldOutFaces, kinds: Sequence[EditKind], count: int, seed: int) -> list[PlannedEdit]:
    """Plan about ``count`` edits, equally many of each kind, at most one per face; the prompt describes the whole edited face."""
    from export.data.text.captions import caption

    rng = np.random.default_rng([seed, 0xED17])
    left = {kind.slot: -(-count // len(kinds)) for kind in kinds}
    planned: list[PlannedEdit] = []
    for row, shown in enumerate(faces.visible):
        open_kinds = [k for k in kinds if left[k.slot] and k.slot in shown and all(shown.get(s) in v for s, v in k.only.items())]
        choices = [(k, [v for v in k.values if v != shown[k.slot]]) for k in open_kinds]
        choices = [(k, values) for k, values in choices if values]
        if not choices or len(planned) == count:
            continue
        kind, values = choices[int(rng.integers(len(choices)))]
        value = values[int(rng.integers(len(values)))]
        others = [name for name in shown if name not in (kind.slot, "gender_presentation", *kind.bound)]
        kept = [name for name in ("gender_presentation",) if name in shown]
        kept += [str(name) for name in rng.choice(others, size=min(_KEPT_IN_PROMPT, len(others)), replace=False)]
        wanted = {name: shown[name] for name in kept} | {kind.slot: value}
        planned.append(PlannedEdit(row, kind, value, caption(wanted, rng, attributes=len(wanted)).text))
        left[kind.slot] -= 1
    return planned


def edit(bench: Bench) -> Results:
    """Score two fifths of ``images`` edits, spread over :data:`KINDS`, whose prompts describe the whole edited face."""
    return _score(bench, planned_edits(bench), "edit")


def instruct(bench: Bench) -> Results:
    """Score the same edits, asked for as instructions: "remove the beard", "make her smile"."""
    from export.data.text.instructions import can_instruct, instruction

    edits = [e for e in planned_edits(bench) if can_instruct(e.kind.slot, e.value)]
    rngs = [np.random.default_rng([bench.seed, row, 0xD0]) for row in range(len(edits))]
    said = [replace(e, prompt=instruction(e.kind.slot, e.value, rng)) for e, rng in zip(edits, rngs, strict=True)]
    return _score(bench, said, "instruct")


def planned_edits(bench: Bench) -> list[PlannedEdit]:
    """Return two fifths of ``images`` edits, of the kinds that the bundle's regions allow."""
    known = bench.pipeline.bundle.regions
    kinds = [kind for kind in KINDS if kind.region in known]
    if not kinds:
        raise InputError(f"bundle: its regions ({', '.join(known) or 'none'}) allow none of the edits of the quality bench")
    return plan_edits(bench.faces, kinds, max(bench.images * 2 // 5, 1), bench.seed)


def _score(bench: Bench, edits: Sequence[PlannedEdit], name: str) -> Results:
    originals = [as_images(bench.faces.images[e.row : e.row + 1])[0] for e in edits]
    results = []
    for index, (planned, image) in enumerate(progress(list(zip(edits, originals, strict=True)), name, len(edits))):
        seed = bench.seed * 1_000_000 + index
        results.append(bench.pipeline.edit(image, planned.prompt, planned.kind.region, seed=seed, options=bench.options))
    after = bench.judge.predict(as_array(r.image for r in results))
    before = bench.judge.predict(as_array(originals))
    kept = [~bench.pipeline.token_mask(r.region) for r in results]  # (N,) each
    outside = [bool(np.array_equal(r.codes[keep], r.original_codes[keep])) for r, keep in zip(results, kept, strict=True)]
    pairs = [image for original, r in zip(originals, results, strict=True) for image in (original, r.image)]
    bench.sheet(name, pairs, [text for e in edits for text in ("original", f"{e.kind.region}: {e.prompt}")])
    return edit_results(bench, edits, before, after, outside)


def requested(bench: Bench, edits: Sequence[PlannedEdit], after: Any) -> NDArray[np.bool_]:
    """Return of which edits the judge's answers ``(n, K)`` show the requested value, ``(n,)``."""
    names = list(bench.schema)
    return np.array([after[i, names.index(e.kind.slot)] == bench.schema[e.kind.slot].index(e.value) for i, e in enumerate(edits)])


def edit_results(bench: Bench, edits: Sequence[PlannedEdit], before: Any, after: Any, outside: Sequence[bool]) -> Results:
    """Return results from the judge's answers before and after, ``(n, K)``, and whether outside tokens are unchanged, ``(n,)``."""
    names = list(bench.schema)
    hit = requested(bench, edits, after)
    kept: list[float] = []
    for i, planned in enumerate(edits):
        shown = bench.faces.visible[planned.row]
        others = [k for k, n in enumerate(names) if n in shown and n != planned.kind.slot and n not in planned.kind.bound]
        kept.append(float((after[i, others] == before[i, others]).mean()))
    slots = [e.kind.slot for e in edits]
    return {
        "edits": len(edits),
        "accuracy": float(hit.mean()),
        "tokens_outside_identical": float(np.mean(outside)),
        "other_slots_unchanged": float(np.mean(kept)),
        "by_slot": {
            slot: {"edits": slots.count(slot), "accuracy": float(hit[[s == slot for s in slots]].mean())} for slot in dict.fromkeys(slots)
        },
    }
