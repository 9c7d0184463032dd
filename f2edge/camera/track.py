"""Faces over time: boxes of one frame are joined to those of earlier ones by overlap, each moving on at constant velocity in between.

Everything is measured in seconds, never in frames, so that a slow or uneven camera changes nothing.  A face must be seen a few times before
it counts (``confirm_hits``), and may be missing for a while before it is forgotten (``forget_s``): the two together keep flicker out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from f2edge.camera.detect import Detection
from f2edge.camera.frames import Box, overlap
from f2edge.errors import InputError


@dataclass(frozen=True)
class TrackerSettings:
    """How faces are joined.

    Attributes:
        least_overlap: of a detection with where a face should be, in (0, 1).
        confirm_hits: detections until a face counts, at least 1.
        forget_s: a face not seen for longer is gone; one that never counted goes after a third of it.
        smoothing_s: time constant of the box and its velocity; 0 takes every detection as it is.
        most: tracks held at once; further detections start none.
    """

    least_overlap: float = 0.25
    confirm_hits: int = 3
    forget_s: float = 0.8
    smoothing_s: float = 0.08
    most: int = 64

    def __post_init__(self) -> None:
        good = 0 < self.least_overlap < 1 and self.confirm_hits >= 1 and self.forget_s > 0 and self.smoothing_s >= 0 and self.most >= 1
        if not good:
            raise InputError(f"tracker settings are out of range: {self}")


@dataclass(frozen=True)
class Track:
    """One face.

    Attributes:
        number: never given to another face.
        box: at ``updated_s``.
        velocity: of the box's x, y, width, height in pixels per second.
        began_s: first seen.
        seen_s: last seen in a frame.
        updated_s: what ``box`` is an estimate for; later than ``seen_s`` while the face is missing.
        hits: detections joined so far.
        confirmed: whether it counts.
        detection: the latest one.
    """

    number: int
    box: Box
    velocity: Box
    began_s: float
    seen_s: float
    updated_s: float
    hits: int
    confirmed: bool
    detection: Detection

    def at(self, time_s: float) -> Track:
        """The track with its box moved on to a time; speed dies away, for a face that is not seen is not trusted to walk on for long."""
        ahead = max(0.0, time_s - self.seen_s)
        reach = 0.3 * (1 - np.exp(-ahead / 0.3)) - 0.3 * (1 - np.exp(-max(0.0, self.updated_s - self.seen_s) / 0.3))
        x, y, width, height = (float(b + v * reach) for b, v in zip(self.box, self.velocity, strict=True))
        return replace(self, box=(x, y, max(1.0, width), max(1.0, height)), updated_s=max(time_s, self.updated_s))


class Tracker:
    """Joins detections to tracks.  ``update`` takes frames in order of their time."""

    def __init__(self, settings: TrackerSettings | None = None) -> None:
        self._settings = settings or TrackerSettings()
        self._tracks: list[Track] = []
        self._next = 1

    def update(self, detections: Sequence[Detection], time_s: float) -> tuple[Track, ...]:
        """Take the faces of a frame; returns the tracks alive, oldest first, confirmed or not.

        A time before that of the previous frame counts as the same time: clocks of files may step back, tracks do not.
        """
        settings = self._settings
        now = max([time_s, *(track.updated_s for track in self._tracks)])
        remembered = [track for track in self._tracks if self._remembers(track, now)]
        moved = [track.at(now) for track in remembered]
        pairs = _match([track.box for track in moved], [d.box for d in detections], settings.least_overlap)
        joined = {t: self._joined(remembered[t], moved[t], detections[d], now) for t, d in pairs}
        tracks = [joined.get(t, track) for t, track in enumerate(moved)]
        taken = {d for _, d in pairs}
        for index, detection in enumerate(detections):
            if index not in taken and len(tracks) < settings.most:
                confirmed = settings.confirm_hits <= 1
                tracks.append(Track(self._next, detection.box, (0.0, 0.0, 0.0, 0.0), now, now, now, 1, confirmed, detection))
                self._next += 1
        self._tracks = tracks
        return tuple(tracks)

    def _remembers(self, track: Track, now: float) -> bool:
        return now - track.seen_s <= self._settings.forget_s * (1.0 if track.confirmed else 1 / 3)

    def _joined(self, before: Track, predicted: Track, detection: Detection, now: float) -> Track:
        elapsed = now - before.seen_s
        trust = 1.0 if self._settings.smoothing_s == 0 else 1 - float(np.exp(-max(elapsed, 1e-3) / self._settings.smoothing_s))
        trust = max(trust, 0.35)
        x, y, width, height = (p + trust * (d - p) for p, d in zip(predicted.box, detection.box, strict=True))
        box = (x, y, width, height)
        velocity = before.velocity
        if elapsed > 1e-3:
            measured = [(d - b) / elapsed for d, b in zip(box, before.box, strict=True)] if before.seen_s == before.updated_s else velocity
            velocity = tuple(v + 0.5 * trust * (m - v) for v, m in zip(velocity, measured, strict=True))  # type: ignore[assignment]
        hits = before.hits + 1
        return replace(
            before,
            box=box,
            velocity=velocity,
            seen_s=now,
            updated_s=now,
            hits=hits,
            confirmed=before.confirmed or hits >= self._settings.confirm_hits,
            detection=detection,
        )


def _match(tracks: Sequence[Box], detections: Sequence[Box], least: float) -> list[tuple[int, int]]:
    """Pairs (track, detection) by falling overlap, each in one pair at most; ties go to the older track."""
    scored = [(overlap(t, d), i, j) for i, t in enumerate(tracks) for j, d in enumerate(detections)]
    pairs: list[tuple[int, int]] = []
    used_tracks: set[int] = set()
    used_detections: set[int] = set()
    for score, i, j in sorted(scored, key=lambda entry: (-entry[0], entry[1], entry[2])):
        if score < least:
            break
        if i not in used_tracks and j not in used_detections:
            pairs.append((i, j))
            used_tracks.add(i)
            used_detections.add(j)
    return pairs
