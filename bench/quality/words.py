"""Words as people say them: everyday words over several seeds, short prompts, and prompts that no grammar wrote.

The prompts (``bench/quality/prompts/typed.jsonl``) were written by hand, with the attributes that a person reads in them; nothing is
trained on them.  A slot may have several right values ("a hat").
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.quality.quality import Bench, as_array
from f2edge.spec.attributes import AttributeSchema

PROMPTS = Path(__file__).parent / "prompts"
SEEDS = 12


@dataclass(frozen=True)
class TypedPrompt:
    """A prompt and, for each slot that it speaks of, the values that are right."""

    text: str
    wanted: Mapping[str, tuple[str, ...]]


#: One prompt for each everyday word that the first release missed, or that stands for many like it.
EVERYDAY: Mapping[str, TypedPrompt] = {
    word: TypedPrompt(text, {slot: values})
    for word, text, slot, values in (
        ("glasses", "old man with glasses", "eyewear", ("eyeglasses",)),
        ("specs", "a woman with specs", "eyewear", ("eyeglasses",)),
        ("a hat", "a woman in a hat", "hat", ("cap", "beanie", "brimmed")),
        ("earrings", "a woman with earrings", "earrings", ("studs", "hoops")),
        ("necklace", "a lady wearing a necklace", "necklace", ("chain", "pearls")),
        ("makeup", "a woman with makeup", "makeup", ("heavy",)),
        ("mustache", "a man with a mustache", "mustache", ("present",)),
        ("beard", "a guy with a beard", "beard", ("full", "goatee", "stubble")),
        ("no hair", "a man with no hair", "hair_length", ("bald",)),
        ("bald", "a bald man", "hair_length", ("bald",)),
        ("a smile", "a woman with a smile", "action", ("smile",)),
        ("a tie", "a man wearing a tie", "necktie", ("tie", "bow_tie")),
        ("a mask", "a person with a mask", "face_mask", ("worn",)),
        ("no glasses", "a man without glasses", "eyewear", ("none",)),
        ("grandma", "grandma", "age", ("old",)),
        ("ginger", "a ginger bloke", "hair_color", ("red",)),
    )
}


#: Prompts that say little.
SHORT: Mapping[str, TypedPrompt] = {
    "a woman": TypedPrompt("a woman", {"gender_presentation": ("feminine",)}),
    "a man": TypedPrompt("a man", {"gender_presentation": ("masculine",)}),
}


def typed_prompts(path: Path = PROMPTS / "typed.jsonl") -> list[TypedPrompt]:
    """Return the hand-written prompts."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [TypedPrompt(r["prompt"], {s: (v,) if isinstance(v, str) else tuple(v) for s, v in r["slots"].items()}) for r in rows]


def right(prompt: TypedPrompt, answers: Sequence[int], schema: AttributeSchema) -> dict[str, bool]:
    """Return which wanted slots a picture shows, from the judge's value indices (K,)."""
    seen = dict(zip(schema, answers, strict=True))
    return {slot: schema[slot].values[int(seen[slot])] in values for slot, values in prompt.wanted.items()}


def draw(bench: Bench, prompts: Sequence[TypedPrompt], seeds: Sequence[int], name: str) -> list[dict[str, bool]]:
    """Generate a picture of each prompt with its seed, write the sheet, and return what the judge finds of it."""
    images = bench.draw([p.text for p in prompts], seeds, name)
    bench.sheet(name, images, [p.text for p in prompts])
    answers = bench.judge.predict(as_array(images))
    return [right(prompt, row, bench.schema) for prompt, row in zip(prompts, answers, strict=True)]


def everyday(bench: Bench) -> dict[str, Any]:
    """Every word of :data:`EVERYDAY` with :data:`SEEDS` seeds: the share of pictures that show it."""
    prompts = [prompt for prompt in EVERYDAY.values() for _ in range(SEEDS)]
    found = draw(bench, prompts, [bench.seed * 1000 + k for _ in EVERYDAY for k in range(SEEDS)], "everyday")
    shares = np.array([all(row.values()) for row in found]).reshape(len(EVERYDAY), SEEDS).mean(axis=1)
    return {"words": len(EVERYDAY), "seeds": SEEDS, "weakest": float(shares.min()), "mean": float(shares.mean()),
            "by_word": dict(zip(EVERYDAY, shares.tolist(), strict=True))}  # fmt: skip


def typed(bench: Bench) -> dict[str, Any]:
    """The hand-written prompts: share of their attributes that the pictures show."""
    prompts = typed_prompts()
    found = draw(bench, prompts, [bench.seed * 1000 + row for row in range(len(prompts))], "typed")
    by_slot: dict[str, list[bool]] = {}
    for row in found:
        for slot, good in row.items():
            by_slot.setdefault(slot, []).append(good)
    every = [good for goods in by_slot.values() for good in goods]
    return {"prompts": len(prompts), "mentions": len(every), "accuracy": float(np.mean(every)),
            "by_slot": {slot: float(np.mean(goods)) for slot, goods in by_slot.items()}}  # fmt: skip


def unsaid(bench: Bench) -> dict[str, Any]:
    """Compare what short prompts leave open with renders: the total variation distance of every slot's values, by the judge.

    The floor is that of as many renders of the same kind against the others.
    """
    names, count = list(bench.schema), max(bench.images // (2 * len(SHORT)), 1)
    answers, rng = bench.judge.predict(bench.faces.images), np.random.default_rng(bench.seed)
    prompts = [text for text in SHORT for _ in range(count)]
    images = bench.draw(prompts, [bench.seed * 1_000_000 + 7000 + row for row in range(len(prompts))], "unsaid")
    pairs = [
        image for pair in zip(*(images[first : first + count] for first in range(0, len(images), count)), strict=True) for image in pair
    ]
    bench.sheet("unsaid", pairs, list(SHORT) * count)
    drawn = bench.judge.predict(as_array(images)).reshape(len(SHORT), count, len(names))
    rows: dict[str, list[tuple[float, float]]] = {}
    for prompt, found in zip(SHORT.values(), drawn, strict=True):
        kin = [row for row, shown in enumerate(bench.faces.visible) if all(shown.get(s) in values for s, values in prompt.wanted.items())]
        real = answers[rng.permutation(kin)]
        for column, slot in enumerate(names):
            if slot not in prompt.wanted:
                values = len(bench.schema[slot].values)
                few, others = real[: min(count, len(real) // 2), column], real[min(count, len(real) // 2) :, column]
                rows.setdefault(slot, []).append((_variation(found[:, column], real[:, column], values), _variation(few, others, values)))
    table = {slot: np.mean(pairs, axis=0) for slot, pairs in rows.items()}
    distances, floors = (float(np.mean([pair[k] for pair in table.values()])) for k in (0, 1))
    return {"pictures": len(prompts), "distance": distances, "distance_of_renders": floors,
            "by_slot": {slot: {"distance": float(d), "distance_of_renders": float(f)} for slot, (d, f) in table.items()}}  # fmt: skip


def _variation(a: NDArray[np.integer[Any]], b: NDArray[np.integer[Any]], values: int) -> float:
    """Return half the sum of absolute differences of two samples' shares of values."""
    shares = [np.bincount(sample[sample >= 0], minlength=values)[:values] / max((sample >= 0).sum(), 1) for sample in (a, b)]
    return float(np.abs(shares[0] - shares[1]).sum() / 2)
