"""JPEG pictures in sequence from a pipe, as ``ffmpeg -f mjpeg -`` writes them."""

from __future__ import annotations

import os
import select
from time import monotonic

from f2edge.camera.source.errors import FrameError, SourceLostError

_START, _END = b"\xff\xd8\xff", b"\xff\xd9"
_LARGEST_BYTES = 16 << 20  # a frame of 8K fits
_CHUNK = 1 << 16
_POLL_S = 0.05


class MjpegPipe:
    """Splitter of a byte stream into JPEG files.

    Args:
        descriptor: file descriptor of a pipe; bytes before the first picture are skipped.
        timeout_s: maximum wait for more bytes, in seconds.
        owned: whether :meth:`close` closes the descriptor.
    """

    def __init__(self, descriptor: int, timeout_s: float, *, owned: bool = True) -> None:
        self._descriptor = descriptor
        self._timeout_s = timeout_s
        self._owned = owned
        self._buffer = bytearray()
        self._searched = 0
        self._began = False

    def next_jpeg(self) -> bytes | None:
        """Return the bytes of the next picture; None once the writer has closed the pipe.

        Raises:
            SourceLostError: no data within the timeout.
            FrameError: a picture larger than 16 MiB, which is skipped.
        """
        while True:
            picture = self._split()
            if picture is not None:
                return picture
            data = self._more()
            if not data:
                return None
            self._buffer += data

    def close(self) -> None:
        if self._owned:
            os.close(self._descriptor)
            self._owned = False

    def _split(self) -> bytes | None:
        start = self._buffer.find(_START)
        if start < 0:
            del self._buffer[:-2]
            self._searched = 0
            return None
        if start:
            del self._buffer[:start]
            self._searched = 0
        end = self._buffer.find(_END, max(2, self._searched - 1))
        if end < 0:
            self._searched = len(self._buffer)
            if len(self._buffer) > _LARGEST_BYTES:
                self._buffer.clear()
                self._searched = 0
                raise FrameError(f"a picture in the pipe is larger than {_LARGEST_BYTES >> 20} MiB; lower its size or quality")
            return None
        picture = bytes(self._buffer[: end + 2])
        del self._buffer[: end + 2]
        self._searched = 0
        return picture

    def _more(self) -> bytes:
        """Return available bytes; empty once the writer has closed.  Waits for the first writer of a named pipe."""
        end = monotonic() + self._timeout_s
        while (rest := end - monotonic()) > 0:
            if not select.select([self._descriptor], [], [], rest)[0]:
                break
            try:
                data = os.read(self._descriptor, _CHUNK)
            except BlockingIOError:
                continue
            if data or self._began or not self._owned:
                self._began = self._began or bool(data)
                return data
            select.select([], [], [], _POLL_S)
        raise SourceLostError(f"nothing came through the pipe for {self._timeout_s:g} s")
