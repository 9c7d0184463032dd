"""Sources of frames: OpenCV captures, folders of images, MJPEG from a pipe, and the demo.

    source = open_source(parse_source("rtsp://…"))
    while (capture := source.read()) is not None: ...

A source only reads; ``reader.py`` detects stalls, reconnects and drops frames.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Protocol

import cv2
import numpy as np

from f2edge.camera.frames import KnownFace, Picture
from f2edge.camera.source.demo import Scene
from f2edge.camera.source.errors import FrameError, SourceLostError
from f2edge.camera.source.mjpeg import MjpegPipe
from f2edge.camera.source.url import SourceUrl
from f2edge.errors import BackendError, ImageError, InputError
from f2edge.imaging.guard import ImageLimits
from f2edge.imaging.images import load_image

_IMAGES = (".jpg", ".jpeg", ".png", ".webp")
_SMALLEST_SIDE, _LARGEST_SIDE = 16, 1920
# FFmpeg options of network streams: TCP (UDP loses packets), no audio, and no probing of the frame rate, which takes 20 pictures (0.8 s at
# 25 per second) and would time out on slow cameras.
_STREAM_OPTIONS = "rtsp_transport;tcp|allowed_media_types;video|fpsprobesize;0"
_UNDECODED_IN_A_ROW = 16
_PHOTOGRAPHS = ImageLimits(largest_bytes=64 << 20, largest_side=16384, largest_pixels=64_000_000)
_CSI = (
    "nvarguscamerasrc sensor-id={number} ! video/x-raw(memory:NVMM),width={width},height={height},framerate={fps}/1,format=NV12 ! "
    "queue max-size-buffers=2 leaky=downstream ! nvvidconv ! video/x-raw,format=BGRx ! videoconvert ! video/x-raw,format=BGR ! "
    "appsink drop=true max-buffers=1 sync=false"
)


@dataclass(frozen=True, eq=False)
class Capture:
    """Frame read by a source: picture (Y, X, 3) uint8 BGR, media time of a recording, and known faces if any."""

    image: Picture
    media_s: float | None = None
    known: tuple[KnownFace, ...] | None = None


class Source(Protocol):
    """Source of pictures."""

    def read(self) -> Capture | None:
        """Return the next picture; None at the end.

        Raises:
            FrameError: this picture is damaged; the next one may be good.
            SourceLostError: no more frames; reopen the source.
        """
        ...

    def close(self) -> None:
        """Release the device or file."""
        ...


@dataclass(frozen=True)
class SourceOptions:
    """Options for opening a source.

    Attributes:
        size_wh: frame size requested from webcams, CSI cameras and the demo; webcams may deliver another.
        fps: requested frame rate, also of a folder's images.
        timeout_s: seconds for opening and for each frame.
        people: number of people in the demo, 1 … 4.
    """

    size_wh: tuple[int, int] = (960, 540)
    fps: int = 24
    timeout_s: float = 5.0
    people: int = 3

    def __post_init__(self) -> None:
        if not (1 <= self.fps <= 240 and self.timeout_s > 0 and all(16 <= side <= 8192 for side in self.size_wh)):
            raise InputError(f"source options are out of range: {self}")


def open_source(url: SourceUrl, options: SourceOptions | None = None) -> Source:
    """Open a source; blocks up to its timeout.

    Raises:
        SourceLostError: it does not answer (now).
        InputError: not a video file, a folder without pictures, or a closed standard input.
        BackendError: this OpenCV cannot read such a source.
    """
    wanted = options or SourceOptions()
    if url.kind == "demo":
        return DemoSource(Scene(wanted.size_wh, wanted.people), wanted.fps)
    if url.kind == "folder":
        return FolderSource(Path(url.value), wanted.fps)
    if url.kind == "stdin":
        if sys.stdin is None:
            raise InputError("--source -: standard input is closed; pipe MJPEG into it, as `ffmpeg … -f mjpeg -` writes it")
        return PipeSource(MjpegPipe(sys.stdin.fileno(), wanted.timeout_s, owned=False))
    if url.kind == "pipe":
        return PipeSource(MjpegPipe(os.open(url.value, os.O_RDONLY | os.O_NONBLOCK), wanted.timeout_s))
    return VideoSource(url, wanted)


class DemoSource:
    """Demo scene in real time."""

    def __init__(self, scene: Scene, fps: int) -> None:
        self._scene = scene
        self._period_s = 1 / fps
        self._began = self._next = monotonic()

    def read(self) -> Capture | None:
        now = monotonic()
        if now < self._next:
            sleep(self._next - now)
        self._next = max(self._next + self._period_s, monotonic())
        image, known = self._scene.at(monotonic() - self._began)
        return Capture(image, known=known)

    def close(self) -> None:
        """Do nothing."""


class FolderSource:
    """Images of a folder in order of their names, each loaded behind the image guard."""

    def __init__(self, folder: Path, fps: int) -> None:
        self._paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in _IMAGES)
        if not self._paths:
            raise InputError(f"--source {folder}: holds no {', '.join(_IMAGES)}")
        self._fps = fps
        self._next = 0

    def read(self) -> Capture | None:
        if self._next >= len(self._paths):
            return None
        path, number = self._paths[self._next], self._next
        self._next += 1
        try:
            picture = np.asarray(load_image(path, limits=_PHOTOGRAPHS))
        except ImageError as error:
            raise FrameError(str(error)) from error
        return Capture(checked(picture[..., ::-1]), number / self._fps)

    def close(self) -> None:
        """Do nothing: files are closed after reading."""


class PipeSource:
    """MJPEG from a pipe."""

    def __init__(self, pipe: MjpegPipe) -> None:
        self._pipe = pipe

    def read(self) -> Capture | None:
        data = self._pipe.next_jpeg()
        if data is None:
            return None
        try:
            return Capture(checked(np.asarray(load_image(data, limits=_PHOTOGRAPHS))[..., ::-1]))
        except ImageError as error:
            raise FrameError(str(error)) from error

    def close(self) -> None:
        self._pipe.close()


class VideoSource:
    """Webcam, RTSP or HTTP stream, CSI camera or video file through OpenCV."""

    def __init__(self, url: SourceUrl, options: SourceOptions) -> None:
        self._live = url.live
        self._shown = url.shown
        self._capture = _opened(url, options)
        if not self._capture.isOpened():
            self._capture.release()
            message = f"{url.shown}: cannot be opened; {_CURE[url.kind]}"
            raise SourceLostError(message) if url.live else InputError(message)
        self._fps = float(self._capture.get(cv2.CAP_PROP_FPS)) or 25.0
        self._timeout_s = options.timeout_s
        self._tries = _UNDECODED_IN_A_ROW if url.kind in ("stream", "file") else 1
        self._waiting: np.ndarray[Any, Any] | None = None
        self._count = 0

    def read(self) -> Capture | None:
        image, self._waiting = self._waiting, None
        if image is None:
            try:
                image, damaged = self._next()
            except cv2.error as error:
                raise FrameError(f"{self._shown}: the decoder failed on a frame") from error
            if image is None:
                if self._live:
                    raise SourceLostError(f"{self._shown}: no more frames")
                return None
            if damaged:
                self._count += damaged
                self._waiting = image
                raise FrameError(f"{self._shown}: {damaged} damaged frame{'s' if damaged > 1 else ''} passed over")
        media_s = None if self._live else self._count / self._fps
        self._count += 1
        return Capture(checked(image), media_s)

    def _next(self) -> tuple[np.ndarray[Any, Any] | None, int]:
        """Return the next picture (None if there is none) and the number of undecodable pictures before it.

        OpenCV returns the same for an undecodable picture, a lost connection and a timeout.  Reading continues only after the first, and
        only the last takes long.
        """
        end = monotonic() + self._timeout_s
        for damaged in range(self._tries):
            good, image = self._capture.read()
            if good and image is not None:
                return image, damaged
            if monotonic() >= end:
                break
        return None, 0

    def close(self) -> None:
        self._capture.release()


_CURE = {
    "webcam": "is it plugged in and free, and may you read /dev/video*?",
    "stream": "check address, credentials and network",
    "csi": "is the camera plugged in, and does nvargus-daemon run?",
    "file": "OpenCV cannot read it as a video; convert it to H.264 or MJPEG",
}


def _opened(url: SourceUrl, options: SourceOptions) -> Any:
    """Return an OpenCV capture, opened or not.  FFmpeg's log is off because it may print addresses with passwords."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    os.environ.setdefault("OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT", str(max(1, round(options.timeout_s))))
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    if url.kind == "csi":
        if not cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER):
            raise BackendError(
                f"--source csi://{url.value} needs an OpenCV with GStreamer, and this one (pip's, {cv2.__version__}) has none; on a "
                "Jetson use the system's: apt install python3-opencv, and a virtual environment made with --system-site-packages"
            )
        width, height = options.size_wh
        return cv2.VideoCapture(_CSI.format(number=url.value, width=width, height=height, fps=options.fps), cv2.CAP_GSTREAMER)
    if url.kind == "webcam":
        capture = cv2.VideoCapture(int(url.value))
        capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*"MJPG"))  # before the size: uncompressed USB grants few frames
        for key, value in zip((cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT), options.size_wh, strict=True):
            capture.set(key, value)
        capture.set(cv2.CAP_PROP_FPS, options.fps)
        return capture
    if url.kind == "stream":
        os.environ.setdefault("OPENCV_FFMPEG_CAPTURE_OPTIONS", _STREAM_OPTIONS)
    timeout_ms = round(1e3 * options.timeout_s)
    limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, timeout_ms, cv2.CAP_PROP_READ_TIMEOUT_MSEC, timeout_ms]
    return cv2.VideoCapture(url.value, cv2.CAP_FFMPEG, limits)


def checked(image: np.ndarray[Any, Any]) -> Picture:
    """Return a picture as contiguous 8-bit BGR of at most 1920 pixels on its longer side.

    Raises:
        FrameError: it is empty, of another type, or smaller than 16 pixels.
    """
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
        raise FrameError(f"a frame of shape {image.shape} and type {image.dtype} is not a picture")
    if min(image.shape[:2]) < _SMALLEST_SIDE:
        raise FrameError(f"a frame of {image.shape[1]}x{image.shape[0]} pixels is too small; {_SMALLEST_SIDE} are needed")
    if image.ndim == 2 or image.shape[2] == 1:
        image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    elif image.shape[2] == 4:
        image = cv2.cvtColor(image, cv2.COLOR_BGRA2BGR)
    scale = max(image.shape[:2]) / _LARGEST_SIDE
    if scale > 1:
        size = (max(1, round(image.shape[1] / scale)), max(1, round(image.shape[0] / scale)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(image)
