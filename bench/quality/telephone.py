"""The telephone game: a face is described, drawn from its description, described again …; what is left of it after each round.

A model whose words and pictures mean the same loses nothing after the first round.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from bench.quality import scores
from bench.quality.faces import progress
from bench.quality.quality import Bench, as_array, as_images
from bench.results import Results

ROUNDS = 5
_SHARE, _SHOWN = 5, 8


def telephone(bench: Bench) -> Results:
    """Play with a fifth of ``images`` faces; the share of what the first description says rightly that each picture shows."""
    faces = bench.faces[: max(bench.images // _SHARE, 1)]
    images: list[Image.Image] = as_images(faces.images)
    shown = [images[:_SHOWN]]
    told = _told(bench, images, "telephone 1")
    first = scores.mention_table([bench.texts.mentioned(text) for text in told], bench.schema)
    wanted = np.where(first == faces.slots, first, -1)
    shares = [scores.slot_shares(bench.judge.predict(faces.images), wanted, bench.schema).overall]
    for number in range(1, ROUNDS + 1):
        seeds = [bench.seed * 1_000_000 + 1000 * number + row for row in range(len(told))]
        images = bench.draw(told, seeds, f"telephone {number}")
        shown.append(images[:_SHOWN])
        shares.append(scores.slot_shares(bench.judge.predict(as_array(images)), wanted, bench.schema).overall)
        if number < ROUNDS:
            told = _told(bench, images, f"telephone {number + 1}")
    captions = [("the face" if number == 0 else f"round {number}") for number in range(ROUNDS + 1)]
    bench.sheet(
        "telephone", [row for group in shown for row in group], [caption for caption, g in zip(captions, shown, strict=True) for _ in g]
    )
    return {
        "faces": len(faces),
        "mentions": int((wanted >= 0).sum()),
        "judge_on_renders": shares[0],
        "after_one": shares[1],
        "after_all": shares[-1],
        "by_round": {str(number): share for number, share in enumerate(shares)},
    }


def _told(bench: Bench, images: list[Image.Image], name: str) -> list[str]:
    return [bench.pipeline.describe(image).text for image in progress(images, name, len(images))]
