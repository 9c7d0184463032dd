"""Answers about each track: smoothed attribute probabilities, text answers, and their ages.

A face is analyzed when it has no answers, when they are old, or when the face has changed; otherwise the stored answers are used.  New
probabilities are averaged with old ones in the log domain, and the displayed value changes only when another one leads clearly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from f2edge.camera.crops import drift
from f2edge.errors import InputError
from f2edge.results import FaceReport

Signature = NDArray[np.float32]
_SMALLEST = 1e-6
_LEAST_WEIGHT = 0.3
#: Drift above which a face is another person's.  In the demo a face changes in 0.25 s by 0.07 (at most 0.8), from others by 1.2
#: (at least 0.94).
_ANOTHER_FACE = 0.9


@dataclass(frozen=True)
class Freshness:
    """Conditions for a new analysis.

    Attributes:
        refresh_s: age in seconds at which attributes are analyzed again.
        drift: change of a face (:func:`~f2edge.camera.crops.drift`) above which it is analyzed again,
        patience_s: at the earliest after this many seconds.
        words_s: age in seconds at which questions are asked again.
        smoothing_s: time constant of the probabilities; 0 disables smoothing.
        lead: probability margin by which another value must lead to be displayed.
    """

    refresh_s: float = 0.3
    drift: float = 0.6
    patience_s: float = 0.12
    words_s: float = 4.0
    smoothing_s: float = 0.5
    lead: float = 0.1

    def __post_init__(self) -> None:
        good = min(self.refresh_s, self.words_s) > 0 and min(self.drift, self.patience_s, self.smoothing_s) >= 0 and 0 <= self.lead < 1
        if not good:
            raise InputError(f"freshness settings are out of range: {self}")


@dataclass(frozen=True)
class Shown:
    """Displayed value of one attribute and its smoothed probability."""

    value: str
    probability: float


@dataclass(frozen=True)
class Words:
    """Answer to a question, and the capture time of its frame."""

    text: str
    captured_s: float


@dataclass(frozen=True)
class Facts:
    """Snapshot of the answers about a track.

    Attributes:
        shown: displayed value of each slot.
        captured_s: capture time of the newest frame analyzed; None before the first.
        latency_s: seconds from that capture to the answer.
        words: text answers by question.
        unfamiliar, include_sensitive: of the newest report (:class:`f2edge.results.FaceReport`).
    """

    shown: Mapping[str, Shown]
    captured_s: float | None
    latency_s: float
    words: Mapping[str, Words]
    unfamiliar: float | None = None
    include_sensitive: bool = False


@dataclass
class _Known:
    probabilities: dict[str, dict[str, float]] = field(default_factory=dict)
    shown: dict[str, Shown] = field(default_factory=dict)
    captured_s: float | None = None
    latency_s: float = 0.0
    signature: Signature | None = None
    words: dict[str, Words] = field(default_factory=dict)
    unfamiliar: float | None = None
    include_sensitive: bool = False


class AnswerBook:
    """Thread-safe store of the answers about live tracks."""

    def __init__(self, freshness: Freshness | None = None) -> None:
        self.freshness = freshness or Freshness()
        self._known: dict[int, _Known] = {}
        self._lock = Lock()

    def follow(self, tracks: Iterable[int]) -> None:
        """Keep the answers of these tracks and delete all others: nothing about a face outlives its track."""
        with self._lock:
            self._known = {number: self._known.get(number) or _Known() for number in tracks}

    def take(self, track: int, report: FaceReport, captured_s: float, latency_s: float, signature: Signature) -> bool:
        """Merge a report into a track's answers; return False without effect if the track is gone or has newer answers."""
        with self._lock:
            known = self._known.get(track)
            if known is None or (known.captured_s is not None and captured_s < known.captured_s):
                return False
            another = known.signature is not None and drift(signature, known.signature) > _ANOTHER_FACE
            weight = 1.0 if another else self._weight(known.captured_s, captured_s)
            if another:  # another person in the same place: earlier answers do not apply
                known.shown.clear()
                known.words.clear()
            for slot, values in report.probabilities.items():
                known.probabilities[slot] = _mixed(known.probabilities.get(slot), values, weight)
                known.shown[slot] = _shown(known.shown.get(slot), known.probabilities[slot], self.freshness.lead)
            known.captured_s, known.latency_s, known.signature = captured_s, latency_s, signature
            known.unfamiliar, known.include_sensitive = report.unfamiliar, report.include_sensitive
            return True

    def answer(self, track: int, question: str, text: str, captured_s: float) -> None:
        """Store a text answer; no effect if the track is gone."""
        with self._lock:
            if track in self._known:
                self._known[track].words[question] = Words(text, captured_s)

    def urgency(self, track: int, now_s: float, signature: Signature) -> float:
        """Return the priority of a new analysis: infinite without answers, 0 while they are fresh, else their age in seconds."""
        with self._lock:
            known = self._known.get(track)
            if known is None or known.captured_s is None or known.signature is None:
                return math.inf
            age, before = max(0.0, now_s - known.captured_s), known.signature
        changed = age >= self.freshness.patience_s and drift(signature, before) > self.freshness.drift
        return max(age, 1e-9) if changed or age >= self.freshness.refresh_s else 0.0

    def is_fresh(self, track: int, now_s: float) -> bool:
        """Return whether the answers are younger than ``patience_s``, so that the face need not be cropped."""
        with self._lock:
            known = self._known.get(track)
            return known is not None and known.captured_s is not None and now_s - known.captured_s < self.freshness.patience_s

    def oldest_words(self, tracks: Iterable[int], questions: Iterable[str], now_s: float) -> tuple[int, str] | None:
        """Return the track and question whose answer is missing or oldest; None if all are fresh."""
        questions, alive = tuple(questions), set(tracks)
        with self._lock:
            ages = [
                (now_s - known.words[q].captured_s if q in known.words else math.inf, -number, q)
                for number, known in self._known.items()
                if number in alive
                for q in questions
            ]
        age, number, question = max(ages, key=lambda entry: entry[:2], default=(0.0, 0, ""))
        return (-number, question) if age >= self.freshness.words_s else None

    def facts(self, track: int) -> Facts:
        """Return a snapshot of a track's answers; empty if it is gone."""
        with self._lock:
            known = self._known.get(track) or _Known()
            return Facts(dict(known.shown), known.captured_s, known.latency_s, dict(known.words), known.unfamiliar, known.include_sensitive)

    def __len__(self) -> int:
        return len(self._known)

    def _weight(self, before_s: float | None, now_s: float) -> float:
        if before_s is None or self.freshness.smoothing_s == 0:
            return 1.0
        return max(_LEAST_WEIGHT, 1 - math.exp(-(now_s - before_s) / self.freshness.smoothing_s))


def _mixed(old: Mapping[str, float] | None, new: Mapping[str, float], weight: float) -> dict[str, float]:
    """Return the normalised geometric mean of two distributions, the new one weighted by ``weight``."""
    if old is None:
        return dict(new)
    logs = {v: (1 - weight) * math.log(max(old.get(v, 0.0), _SMALLEST)) + weight * math.log(max(p, _SMALLEST)) for v, p in new.items()}
    top = max(logs.values())
    raised = {value: math.exp(log - top) for value, log in logs.items()}
    total = sum(raised.values())
    return {value: p / total for value, p in raised.items()}


def _shown(old: Shown | None, probabilities: Mapping[str, float], lead: float) -> Shown:
    best = max(probabilities, key=probabilities.__getitem__)
    if old is not None and old.value in probabilities and probabilities[best] < probabilities[old.value] + lead:
        best = old.value
    return Shown(best, probabilities[best])
