"""Face tracker: boxes are matched to tracks by overlap, with constant velocity in between.

Times are in seconds, never in frames, so a slow or uneven frame rate changes nothing.  A face is confirmed after a few detections
(``confirm_hits``) and may be missing for a while (``forget_s``), which suppresses flicker.
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
    """Settings of a tracker.

    Attributes:
        least_overlap: minimum overlap of a detection with a predicted box, in (0, 1).
        confirm_hits: detections until a face is confirmed, at least 1.
        forget_s: seconds without a detection after which a track ends; a third of it if unconfirmed.
        smoothing_s: time constant of the box and its velocity; 0 disables smoothing.
        most: maximum number of tracks; further detections are ignored.
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
    """One tracked face.

    Attributes:
        number: unique number.
        box: estimated box at ``updated_s``.
        velocity: change of the box's x, y, width, height in pixels per second.
        began_s: time of the first detection.
        seen_s: time of the last detection.
        updated_s: time of ``box``; later than ``seen_s`` while the face is missing.
        hits: number of detections.
        confirmed: whether it had enough detections.
        detection: latest detection.
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
        """Return the track with its box predicted for a time; the velocity decays while the face is not seen."""
        ahead = max(0.0, time_s - self.seen_s)
        reach = 0.3 * (1 - np.exp(-ahead / 0.3)) - 0.3 * (1 - np.exp(-max(0.0, self.updated_s - self.seen_s) / 0.3))
        x, y, width, height = (float(b + v * reach) for b, v in zip(self.box, self.velocity, strict=True))
        return replace(self, box=(x, y, max(1.0, width), max(1.0, height)), updated_s=max(time_s, self.updated_s))


class Tracker:
    """Matcher of detections to tracks; ``update`` takes frames in order of time."""

    def __init__(self, settings: TrackerSettings | None = None) -> None:
        self._settings = settings or TrackerSettings()
        self._tracks: list[Track] = []
        self._next = 1

    def update(self, detections: Sequence[Detection], time_s: float) -> tuple[Track, ...]:
        """Add the detections of a frame and return all live tracks, oldest first.

        A time before that of the previous frame counts as the same time, since clocks of files may step back.
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
    """Return pairs (track, detection) by decreasing overlap, each in at most one pair; ties go to the older track."""
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
