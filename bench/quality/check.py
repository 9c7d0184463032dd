"""What ``check=True`` gains: mentioned attributes by a judge that the model never saw, and the time, without and with repairs.

Groups of pictures are drawn without and with by turns in one process, so that both see the same machine.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from bench.quality import scores
from bench.quality.edit import planned_edits, requested
from bench.quality.faces import progress
from bench.quality.quality import Bench, as_array, as_images

#: Most repairs of a picture; the second is what ``check=True`` means.
ROUNDS = (1, 2, 4)
_GROUP = 8


def check(bench: Bench) -> dict[str, Any]:
    """Draw the prompts of three tenths of ``images`` faces, and a tenth as many edits, without and with repairs."""
    return {"generate": _generate(bench), "edit": _edit(bench)}


def _generate(bench: Bench) -> dict[str, Any]:
    prompts = bench.prompts[: max(3 * bench.images // 10, 1)]
    seeds = [bench.seed * 1_000_000 + row for row in range(len(prompts))]
    said = scores.mention_table([p.mentioned for p in prompts], bench.schema)
    images: dict[int, list[Image.Image]] = {rounds: [] for rounds in (0, *ROUNDS)}
    seconds = dict.fromkeys(images, 0.0)
    own: dict[int, list[float]] = {rounds: [] for rounds in ROUNDS}
    for begin in progress(range(0, len(prompts), _GROUP), "check", -(-len(prompts) // _GROUP)):
        group = slice(begin, begin + _GROUP)
        for rounds in images:
            start = time.perf_counter()
            faces = bench.pipeline.generate([p.text for p in prompts[group]], seeds=seeds[group], options=bench.options, check=rounds)
            seconds[rounds] += time.perf_counter() - start
            images[rounds] += [face.image for face in faces]
            if rounds:
                own[rounds] += [face.check.score for face in faces if face.check is not None]
    judged = {rounds: bench.judge.predict(as_array(pictures)) for rounds, pictures in images.items()}
    shares = {rounds: scores.slot_shares(answers, said, bench.schema) for rounds, answers in judged.items()}
    reading = [bench.pipeline.analyze(image)[0].best for image in images[0]]
    return {
        "prompts": len(prompts),
        "mentions": int((said >= 0).sum()),
        "accuracy_without": shares[0].overall,
        "own_reading_agrees_with_judge": _agreement(scores.mention_table(reading, bench.schema), judged[0], said),
        "rounds": {
            str(rounds): {
                "accuracy": shares[rounds].overall,
                "own_score": float(np.mean(own[rounds])),
                "relative_time": seconds[rounds] / seconds[0],
            }
            for rounds in ROUNDS
        },
        "by_slot": {name: {"without": share, "with": shares[ROUNDS[1]].by_slot[name]} for name, share in shares[0].by_slot.items()},
    }


def _agreement(reading: scores.Table, judged: scores.Table, said: scores.Table) -> float:
    """Return the share of mentioned slots of which the model and the judge say alike whether the picture shows what was mentioned."""
    given = said >= 0
    return float(((reading == said) == (judged == said))[given].mean())


def _edit(bench: Bench) -> dict[str, Any]:
    edits = planned_edits(bench)[: max(bench.images // 10, 1)]
    originals = [as_images(bench.faces.images[e.row : e.row + 1])[0] for e in edits]
    images: dict[int, list[Image.Image]] = {0: [], ROUNDS[1]: []}
    seconds = dict.fromkeys(images, 0.0)
    for index, (planned, original) in enumerate(progress(list(zip(edits, originals, strict=True)), "check edits", len(edits))):
        for rounds, pictures in images.items():
            start = time.perf_counter()
            seed = bench.seed * 1_000_000 + index
            result = bench.pipeline.edit(original, planned.prompt, planned.kind.region, seed=seed, options=bench.options, check=rounds)
            seconds[rounds] += time.perf_counter() - start
            pictures.append(result.image)
    without, repaired = (_hit(bench, edits, pictures) for pictures in images.values())
    relative = seconds[ROUNDS[1]] / seconds[0]
    return {"edits": len(edits), "accuracy_without": without, "accuracy": repaired, "relative_time": relative}


def _hit(bench: Bench, edits: Sequence[Any], pictures: Sequence[Image.Image]) -> float:
    return float(requested(bench, edits, bench.judge.predict(as_array(pictures))).mean())
