"""Camera model on a server: faces are sent in one ``AnalyzeStream``, several per picture, and reports come back.

Only faces with some surroundings are sent, side by side, never the frame: the rest of the scene stays on the device.  The server crops
each face as its model requires.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from queue import Empty, SimpleQueue
from threading import Lock, Thread

from PIL import Image

from f2edge.camera.frames import Box
from f2edge.client.messages import FrameAnswer, FrameRequest
from f2edge.client.sync import Client
from f2edge.errors import BackendError, DeadlineExceededError, F2EdgeError
from f2edge.results import Answer, FaceReport

#: A face with its surroundings, and its box in that picture.
Around = tuple[Image.Image, Box]


class RemoteModel:
    """Model on a server.  The stream is opened on first use and reopened after a failure.

    Args:
        client: client of the server; closing it ends the stream.
        timeout_s: maximum wait for a report, in seconds.
    """

    def __init__(self, client: Client, timeout_s: float = 5.0) -> None:
        self._client = client
        self._timeout_s = timeout_s
        self._stream: _Stream | None = None
        self._lock = Lock()
        self._number = 0

    def analyze(
        self, images: Sequence[Image.Image], *, attributes: Sequence[str] | None = None, include_sensitive: bool = False
    ) -> list[FaceReport]:
        """Return reports of cropped faces, one unary call each."""
        return self._client.analyze(images, attributes=attributes, include_sensitive=include_sensitive, timeout_s=self._timeout_s)

    def analyze_around(self, faces: Sequence[Around], *, attributes: Sequence[str], include_sensitive: bool = False) -> list[FaceReport]:
        """Return reports of at most 8 faces, in order, from one message of the stream.

        Raises:
            F2EdgeError: the server refused, or did not answer in time (:class:`~f2edge.errors.DeadlineExceededError`).
        """
        picture, boxes = mosaic(faces)
        wanted = (tuple(attributes), include_sensitive)
        with self._lock:
            if self._stream is None or self._stream.wanted != wanted:
                self._drop()
                self._stream = _Stream(self._client, *wanted)
            self._number += 1
            try:
                answer = self._stream.ask(FrameRequest(picture, boxes, self._number), self._timeout_s)
            except F2EdgeError:
                self._drop()
                raise
        if answer.problem or len(answer.reports) != len(faces):
            raise BackendError(f"the server refused a frame: {answer.problem or f'{len(answer.reports)} reports of {len(faces)} faces'}")
        return list(answer.reports)

    def ask(self, image: Image.Image, question: str, *, max_tokens: int = 64, include_sensitive: bool = False) -> Answer:
        seconds = 2 * self._timeout_s
        return self._client.ask(image, question, max_tokens=max_tokens, include_sensitive=include_sensitive, timeout_s=seconds)

    def _drop(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None


class _Stream:
    """One ``AnalyzeStream`` with one frame in flight; a thread reads the answers."""

    def __init__(self, client: Client, attributes: tuple[str, ...], include_sensitive: bool) -> None:
        self.wanted = attributes, include_sensitive
        self._client = client
        self._frames: SimpleQueue[FrameRequest | None] = SimpleQueue()
        self._answers: SimpleQueue[FrameAnswer | F2EdgeError] = SimpleQueue()
        Thread(target=self._read, name="camera-remote", daemon=True).start()

    def ask(self, frame: FrameRequest, timeout_s: float) -> FrameAnswer:
        """Send a frame and return its answer."""
        self._frames.put(frame)
        while True:
            try:
                answer = self._answers.get(timeout=timeout_s)
            except Empty:
                raise DeadlineExceededError(f"{self._client.connection.address} sent no report for {timeout_s:g} s") from None
            if isinstance(answer, F2EdgeError):
                raise answer
            if answer.number == frame.number:
                return answer

    def close(self) -> None:
        self._frames.put(None)

    def _sent(self) -> Iterator[FrameRequest]:
        while (frame := self._frames.get()) is not None:
            yield frame

    def _read(self) -> None:
        attributes, include_sensitive = self.wanted
        try:
            for answer in self._client.analyze_frames(self._sent(), attributes=attributes, include_sensitive=include_sensitive):
                self._answers.put(answer)
            self._answers.put(BackendError(f"{self._client.connection.address} ended the stream of frames"))
        except F2EdgeError as error:
            self._answers.put(error)


def mosaic(faces: Sequence[Around]) -> tuple[Image.Image, list[Box]]:
    """Return the pictures side by side as one, and the faces' boxes in it."""
    sheet = Image.new("RGB", (sum(picture.width for picture, _ in faces), max(picture.height for picture, _ in faces)))
    boxes, left = [], 0
    for picture, (x, y, width, height) in faces:
        sheet.paste(picture, (left, 0))
        boxes.append((left + x, y, width, height))
        left += picture.width
    return sheet, boxes
