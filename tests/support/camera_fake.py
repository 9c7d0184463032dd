"""Fakes for the camera's tests: a scripted source, a model with scripted probabilities, a recording sink."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from threading import Event as Flag
from typing import TypeAlias

import numpy as np
from PIL import Image

from f2edge.camera.frames import KnownFace, Picture
from f2edge.camera.loop import RunStats
from f2edge.camera.reports import Seen
from f2edge.camera.source.sources import Capture
from f2edge.results import Answer, FaceReport
from f2edge.spec.attributes import F2EDGE_SCHEMA

#: What a source does at one reading.
Step: TypeAlias = "Picture | Capture | Exception | str"
NAMES = ("hair_color", "eyewear")


def picture(width: int = 160, height: int = 120, seed: int = 0) -> Picture:
    """Textured enough to pass the quality gate everywhere."""
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


class ScriptedSource:
    """Gives what its script says: a picture, an exception to raise, "hang" until closed, or the end."""

    def __init__(self, script: Iterable[Step], period_s: float = 0.002) -> None:
        self._script = list(script)
        self._period_s = period_s
        self._let_go = Flag()
        self.closed = False

    def read(self) -> Capture | None:
        time.sleep(self._period_s)
        if not self._script:
            return None
        step = self._script.pop(0)
        if isinstance(step, str):
            self._let_go.wait(20)
            return None
        if isinstance(step, Exception):
            raise step
        return step if isinstance(step, Capture) else Capture(step)

    def release(self) -> None:
        self._let_go.set()

    def close(self) -> None:
        self.closed = True


class SteadySource:
    """Faces at fixed places, at a steady rate, for ever or for so many frames."""

    def __init__(self, faces: int = 1, period_s: float = 0.01, frames: int | None = None, slots: Mapping[str, str] | None = None) -> None:
        self._image = picture(640, 160)
        self._known = tuple(KnownFace((20.0 + 150 * i, 40.0, 80.0, 80.0), slots or {}) for i in range(faces))
        self._period_s, self._left, self._count = period_s, frames, 0

    def read(self) -> Capture | None:
        time.sleep(self._period_s)
        if self._left is not None and self._count >= self._left:
            return None
        self._count += 1
        return Capture(self._image, (self._count - 1) * 0.04, self._known)

    def close(self) -> None:
        pass


class ScriptedModel:
    """Says red hair and eyeglasses with probability 0.9; can be slow, and can fail for a while."""

    def __init__(self, seconds: float = 0.0, failures: Iterable[Exception] = ()) -> None:
        self.seconds, self.failures = seconds, list(failures)
        self.batches: list[int] = []
        self.questions: list[str] = []

    def analyze(
        self, images: Sequence[Image.Image], *, attributes: Sequence[str] | None = None, include_sensitive: bool = False
    ) -> list[FaceReport]:
        if self.failures:
            raise self.failures.pop(0)
        time.sleep(self.seconds)
        assert all(isinstance(image, Image.Image) and image.size == (128, 128) for image in images)
        self.batches.append(len(images))
        likely = {"hair_color": "red", "eyewear": "eyeglasses"}
        return [FaceReport({name: self._distribution(name, likely[name]) for name in attributes or ()}) for _ in images]

    def ask(self, image: Image.Image, question: str, *, max_tokens: int = 64, include_sensitive: bool = False) -> Answer:
        self.questions.append(question)
        return Answer(f"answer {len(self.questions)}", (1,), 1.0, 1.0)

    @staticmethod
    def _distribution(name: str, value: str) -> dict[str, float]:
        values = F2EDGE_SCHEMA[name].values
        return {v: 0.9 if v == value else 0.1 / (len(values) - 1) for v in values}


class RememberingSink:
    """Keeps what the loop says."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.seen: list[Seen] = []
        self.events: list[tuple[str, str]] = []
        self._stop_after = stop_after

    def show(self, seen: Seen, _stats: RunStats) -> bool:
        self.seen.append(seen)
        return self._stop_after is None or len(self.seen) < self._stop_after

    def event(self, kind: str, reason: str) -> None:
        self.events.append((kind, reason))
