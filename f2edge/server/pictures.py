"""Pictures of a call, opened and written in a small pool: never in the event loop, never in the engine's thread, never without a bound."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import TYPE_CHECKING, TypeVar

import grpc
from PIL import Image

from f2edge.engine.requests import ReplyKind
from f2edge.imaging.images import resize
from f2edge.provenance.label import Label
from f2edge.provenance.saving import encode
from f2edge.results import EditedFace, GeneratedFace
from f2edge.server.status import RefusedError
from f2edge.v1 import face_pb2 as pb
from f2edge.wire import IMAGE_KINDS

if TYPE_CHECKING:
    from f2edge.provenance.c2pa import Signer
    from f2edge.server.engine_protocol import Served

Result = TypeVar("Result")

_PREVIEW_QUALITY = 80
_RETRY_MS = 200.0
#: What a waiting request costs beside its bytes, generously: it bounds how many small ones wait.
_REQUEST_BYTES = 64 << 10


class PicturePool:
    """Threads that open pictures, and others that write them.

    At most ``waiting_bytes`` of requests wait to be opened; a request beyond that is refused at once.  What one thread holds in pixels, and
    for how long it is busy with them, is bounded by the limits of a picture, so a deadline that passes meanwhile waits for no more.
    """

    def __init__(self, threads: int, waiting_bytes: int) -> None:
        self._readers = ThreadPoolExecutor(threads, thread_name_prefix="f2edge-readers")
        self._writers = ThreadPoolExecutor(threads, thread_name_prefix="f2edge-writers")
        self._room = waiting_bytes
        self._lock = Lock()

    async def open(self, size: int, work: Callable[[], Result]) -> Result:
        """Run what opens a request of ``size`` bytes; refuses with RESOURCE_EXHAUSTED where too much waits already."""
        size += _REQUEST_BYTES
        if not self._take(size):
            message = f"too many pictures wait to be opened; try again in {_RETRY_MS:.0f} ms"
            raise RefusedError(grpc.StatusCode.RESOURCE_EXHAUSTED, message, "QUEUE_FULL", retry_after_ms=_RETRY_MS)
        future = self._readers.submit(work)
        future.add_done_callback(lambda _future: self._take(-size))  # when the thread is done, not when the caller goes
        return await asyncio.wrap_future(future)

    async def write(self, work: Callable[[], Result]) -> Result:
        """Run what writes a picture; there are never more of them than requests in the engine."""
        return await asyncio.wrap_future(self._writers.submit(work))

    def close(self) -> None:
        for threads in (self._readers, self._writers):
            threads.shutdown(wait=False, cancel_futures=True)

    def _take(self, size: int) -> bool:
        with self._lock:
            if size > self._room:
                return False
            self._room -= size
            return True


def picture_message(face: GeneratedFace | EditedFace, output: pb.OutputOptions, label: Label, signer: Signer | None) -> pb.Picture:
    """A finished picture as the caller wants it, labelled and, with a signer, signed."""
    picture = resize(face.image, output.side) if output.side else face.image
    return pb.Picture(
        image=encode(picture, IMAGE_KINDS[output.format], label, quality=output.quality, signer=signer),
        format=output.format or pb.IMAGE_FORMAT_PNG,
        width=picture.width,
        height=picture.height,
        tokens=face.codes.tolist(),
        provenance=pb.Provenance(
            synthetic=label.synthetic,
            digital_source_type=label.source_type,
            software=label.software,
            model=label.bundle or "",
            marks=["xmp", *face.marks, *([] if signer is None else ["c2pa"])],
        ),
    )


def reply_kind(output: pb.OutputOptions, served: Served) -> ReplyKind:
    """What becomes of a finished picture, for the time that it takes."""
    signed = "" if served.signer is None else " signed"
    return ReplyKind(IMAGE_KINDS[output.format] + signed, (output.side or served.facts.image_side) ** 2)


def preview_picture(image: Image.Image, side: int, label: Label) -> bytes:
    """A guess as a small labelled JPEG."""
    return encode(resize(image, side), "JPEG", label, quality=_PREVIEW_QUALITY)
