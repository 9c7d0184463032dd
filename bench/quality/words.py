"""Words as people say them: everyday words over several seeds, and prompts that no grammar wrote.

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

from bench.quality.faces import progress
from bench.quality.quality import Bench, as_array
from f2edge.spec.attributes import AttributeSchema

PROMPTS = Path(__file__).parent / "prompts"
SEEDS = 12
_GROUP = 16


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
    images = []
    for begin in progress(range(0, len(prompts), _GROUP), name, -(-len(prompts) // _GROUP)):
        group = slice(begin, begin + _GROUP)
        made = bench.pipeline.generate([p.text for p in prompts[group]], seeds=list(seeds[group]), options=bench.options)
        images += [face.image for face in made]
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
