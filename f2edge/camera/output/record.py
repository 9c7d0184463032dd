"""Video recording at a constant rate, closed before the disk or the process's file-size limit is full.

Matroska (.mkv) and AVI files play up to the last second if the process is killed or the power fails.  An .mp4 file has its index at the
end and plays only if the recording was closed: pip's OpenCV cannot write fragmented MP4.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection
from pathlib import Path

import cv2

from f2edge.camera.frames import Picture
from f2edge.errors import InputError, OutputError
from f2edge.provenance.saving import check_writable, write_atomically

#: File suffixes and codecs that pip's OpenCV can write.
CODECS = {".mkv": "mp4v", ".avi": "MJPG", ".mp4": "mp4v"}
_DEFAULT_SUFFIX = ".mkv"
#: File suffixes of single pictures.
STILLS = (".jpg", ".jpeg", ".png")
_QUALITY = 88
_RESERVE_BYTES = 64 << 20
#: Of the process's file-size limit: for the writer's buffer and an .mp4 file's index.
_LIMIT_RESERVE_BYTES = 1 << 20
_CHECK_EVERY = 30  # pictures
_LONGEST_FREEZE_S = 10.0


class Recorder:
    """Recorder at a constant frame rate; pictures are repeated or dropped to keep real time.

    Args:
        path: file ending in .mp4, .mkv or .avi; an existing file is replaced.
        fps: frame rate of the file.
        free_bytes: returns the free space of the disk; for tests.

    Raises:
        InputError: another suffix, or a file that cannot be written.
    """

    def __init__(self, path: Path, fps: float, free_bytes: Callable[[], int] | None = None) -> None:
        check_path(path)
        self._path = path
        self._fps = fps
        self._free = free_bytes or (lambda: shutil.disk_usage(path.absolute().parent).free)
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)
        self._shift_s: float | None = None
        self.written = 0
        self.closed = False

    def write(self, image: Picture, time_s: float) -> None:
        """Add a picture captured at a time; the first fixes the size, later ones are scaled to it.

        Raises:
            OutputError: the disk is nearly full or the file cannot be written; it is closed and complete up to here.
        """
        if self.closed:
            return
        if self._writer is None:
            self._open(image)
        self._check_room()
        if self._shift_s is None:
            self._shift_s = time_s - self.written / self._fps
        due = round((time_s - self._shift_s) * self._fps) + 1 - self.written
        if due > _LONGEST_FREEZE_S * self._fps or due < -self._fps:  # a long gap or a clock set back: continue from here
            self._shift_s, due = time_s - self.written / self._fps, 1
        if (image.shape[1], image.shape[0]) != self._size:
            image = cv2.resize(image, self._size, interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
        for _ in range(due):
            assert self._writer is not None
            self._writer.write(image)
            self.written += 1

    def close(self) -> None:
        """Close the file; idempotent.

        Raises:
            OutputError: the file cannot be played; something else has removed or damaged it.
        """
        self.closed = True
        if self._writer is not None:
            self._writer.release()
            self._writer = None
            played = cv2.VideoCapture(str(self._path))
            good = self.written == 0 or played.read()[0]
            played.release()
            if not good:
                raise OutputError(f"{self._path}: the recording cannot be played; check the disk and record to another one")

    def _check_room(self) -> None:
        """Close the file and raise if the disk is nearly full, or the file nearly as large as the process may write."""
        if self.written % _CHECK_EVERY == 0 and self._free() < _RESERVE_BYTES:
            self.close()
            raise OutputError(f"{self._path}: recording ended, under {_RESERVE_BYTES >> 20} MB are left on the disk; free some space")
        limit = _size_limit()
        if limit is not None and _size(self._path) > limit - max(_LIMIT_RESERVE_BYTES, limit // 8):
            self.close()
            raise OutputError(f"{self._path}: recording ended at the limit of {limit} bytes per file (ulimit -f); raise it")

    def _open(self, image: Picture) -> None:
        self._size = (image.shape[1] // 2 * 2, image.shape[0] // 2 * 2)
        codec = cv2.VideoWriter.fourcc(*CODECS[self._path.suffix.lower()])
        self._writer = cv2.VideoWriter(str(self._path), codec, self._fps, self._size)
        if not self._writer.isOpened():
            self.close()
            raise OutputError(f"{self._path}: cannot be written as {self._path.suffix}; check the folder's permissions or choose .avi")


def recording_path(path: Path) -> Path:
    """Return the path of a recording; one without a suffix becomes Matroska."""
    return path if path.suffix else path.with_name(path.name + _DEFAULT_SUFFIX)


def _size_limit() -> int | None:
    """Return the largest file in bytes that this process may write; None if there is no limit."""
    try:
        import resource
    except ImportError:  # not POSIX
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return None if limit == resource.RLIM_INFINITY else limit


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # removed meanwhile; closing reports it
        return 0


def save_still(image: Picture, path: Path) -> None:
    """Write one picture as a JPEG or PNG file.

    Raises:
        OutputError: the file cannot be written.
    """
    kind = path.suffix.lower()
    good, data = cv2.imencode(kind, image, [] if kind == ".png" else [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    assert good
    write_atomically(path, data.tobytes())


def check_path(path: Path, option: str = "--record", endings: Collection[str] = tuple(CODECS)) -> None:
    """Raise :class:`~f2edge.errors.InputError` for a path that cannot become a recording or still."""
    if path.suffix.lower() not in endings:
        raise InputError(f"{option} {path}: the name must end in {', '.join(endings)}")
    check_place(path, option)


def check_place(path: Path, option: str) -> None:
    """Raise :class:`~f2edge.errors.OutputError` for a path where no file can be written."""
    try:
        check_writable(path)
    except OutputError as error:
        raise OutputError(f"{option} {error}") from error
