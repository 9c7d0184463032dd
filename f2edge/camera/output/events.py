"""JSON lines of the camera, one document per line (``assets/events.schema.json``).

``frame`` lines report faces, ``event`` lines changes of the source and the outputs; one ``summary`` line ends the stream.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime, timezone
from importlib.resources import files
from io import FileIO
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from f2edge.camera.reports import FaceNow, Seen
from f2edge.errors import OutputError

#: Called for each event with its kind and reason.
Notify: TypeAlias = Callable[[str, str], None]
KINDS = ("connected", "lost", "corrupt", "model", "record", "output", "ended")
VERSION = 1


def schema() -> dict[str, Any]:
    """Return the JSON schema of a line (draft 2020-12)."""
    text = (files("f2edge.camera") / "assets" / "events.schema.json").read_text(encoding="utf-8")
    document: dict[str, Any] = json.loads(text)
    return document


def event_line(camera: str, kind: str, reason: str) -> dict[str, Any]:
    """Return the line of an event."""
    return {"type": "event", "version": VERSION, "camera": camera, "time": _now(), "kind": kind, "reason": reason}


def summary_line(camera: str, stats: Mapping[str, float | int | None]) -> dict[str, Any]:
    """Return the last line: the statistics of the run."""
    return {"type": "summary", "version": VERSION, "camera": camera, "time": _now(), "figures": dict(stats)}


def frame_line(camera: str, seen: Seen) -> dict[str, Any]:
    """Return the line of a frame with its faces; probabilities to four digits, ages to 0.1 ms."""
    return {
        "type": "frame",
        "version": VERSION,
        "camera": camera,
        "time": _now(),
        "frame": seen.frame.number,
        "size": list(seen.frame.size_wh),
        "captured_s": round(seen.frame.captured_s, 4),
        "age_ms": round(seen.age_ms, 1),
        "dropped": seen.dropped,
        "faces": [_face(face) for face in seen.faces],
    }


def _face(face: FaceNow) -> dict[str, Any]:
    shown = face.described
    document: dict[str, Any] = {
        "track": face.number,
        "box": [round(v, 1) for v in face.box],
        "seen_for_s": round(face.seen_for_s, 3),
        "unseen_ms": round(face.unseen_ms, 1),
        "score": round(face.score, 3),
        "gate": face.gate,
        "answer_age_ms": round(face.answer_age_ms, 1) if shown and face.answer_age_ms is not None else None,
        "attributes": {name: {"value": s.value, "probability": round(s.probability, 4)} for name, s in face.shown.items()} if shown else {},
        "answers": [{"question": q, "text": text, "age_ms": round(age, 1)} for q, text, age in face.words] if shown else [],
    }
    if shown and face.unfamiliar is not None:
        document["unfamiliar"] = round(face.unfamiliar, 4)
    if shown and face.include_sensitive:
        document["include_sensitive"] = True
    if face.truth is not None:
        document["truth"] = dict(face.truth)
    return document


class TextSink(Protocol):
    """Text output: a stream or a :class:`NewFile`."""

    def write(self, text: str, /) -> object: ...

    def flush(self) -> None: ...


class NewFile:
    """Text file or named pipe that is opened, and replaces an existing file, on the first write, so that a refused run changes nothing.

    A write that fails (disk full, size limit) leaves only the complete texts before it in a file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: FileIO | None = None
        self._whole_bytes = 0

    def write(self, text: str, /) -> None:
        if self._file is None:
            self._file = FileIO(self._path, "wb")
        rest = memoryview(text.encode("utf-8", errors="replace"))
        size = len(rest)
        try:
            while rest:
                rest = rest[self._file.write(rest) or 0 :]
        except OSError:
            with suppress(OSError):  # a pipe has no length
                self._file.truncate(self._whole_bytes)
            raise
        self._whole_bytes += size

    def flush(self) -> None:
        """Do nothing: writes are not buffered."""

    def close(self) -> None:
        """Close the file if it was opened."""
        if self._file is not None:
            self._file.close()


class LineWriter:
    """Writer of one document per line, flushed after each.

    A failure of the output (disk full, reader gone) raises :class:`~f2edge.errors.OutputError` once; later documents are dropped.
    """

    def __init__(self, file: TextSink, name: str) -> None:
        self._file = file
        self._name = name
        self.broken = False

    def write(self, document: Mapping[str, Any]) -> None:
        if self.broken:
            return
        try:
            self._file.write(json.dumps(document, allow_nan=False, separators=(",", ":")) + "\n")
            self._file.flush()
        except OSError as error:
            self.broken = True
            raise OutputError(f"{self._name}: {error.strerror or 'writing failed'}; lines up to here are whole") from error


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
