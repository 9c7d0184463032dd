"""Reader of a live source: a thread that delivers the newest frame, detects stalls and reconnects.

A read that hangs (drivers and RTSP do) cannot be interrupted.  Its thread is abandoned; if the read returns, the thread closes its source
and ends.  At most three threads are abandoned at a time, so a dead camera does not leak memory.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from threading import Event as Flag
from threading import Lock, Thread
from time import monotonic

from f2edge.camera import READ_THREADS
from f2edge.camera.frames import Frame
from f2edge.camera.output.events import Notify
from f2edge.camera.slots import LatestSlot
from f2edge.camera.source.errors import FrameError, SourceLostError
from f2edge.camera.source.sources import Source
from f2edge.camera.source.url import redact
from f2edge.errors import F2EdgeError, InputError

logger = logging.getLogger(__name__)

_LEFT_BEHIND = 3
_TICK_S = 0.02
_BAD_IN_A_ROW = 200


@dataclass(frozen=True)
class ReaderSettings:
    """Timeouts of a reader, in seconds.

    Attributes:
        stall_s: time without a frame after which the source is reopened.
        open_s: the same before the first frame, since opening may be slow on a busy machine.
        first_wait_s: wait before the first reconnect, doubled after each failure
        longest_wait_s: up to this.
        give_up_s: time after which a source that never delivered a frame is given up; one that did is retried for ever.
        most_fps: maximum frame rate; faster frames are skipped; None for no limit.
    """

    stall_s: float = 6.0
    open_s: float = 20.0
    first_wait_s: float = 0.1
    longest_wait_s: float = 1.0
    give_up_s: float = 12.0
    most_fps: float | None = None

    def __post_init__(self) -> None:
        good = min(self.stall_s, self.open_s, self.first_wait_s, self.give_up_s) > 0 and self.longest_wait_s >= self.first_wait_s
        if not good or (self.most_fps is not None and self.most_fps <= 0):
            raise InputError(f"reader settings are out of range: {self}")

    def wait_s(self, failures: int) -> float:
        """Return the wait in seconds after a number (at least 1) of consecutive failures."""
        return min(self.longest_wait_s, self.first_wait_s * 2.0 ** min(failures - 1, 30))


class Reader:
    """Reader of one live source until :meth:`stop`, its end or a permanent failure.

    Args:
        open_source: opens the source; called in the reading thread.
        slot: receives the frames; closed at the end.
        notify: called on every change of the connection, from several threads.
        settings: timeouts.
        reconnects: whether the end of the source means a lost connection (camera) or the end of the data (pipe).

    Attributes:
        failure: permanent failure, or None.
        connections: number of connections that delivered a frame.
    """

    def __init__(
        self,
        open_source: Callable[[], Source],
        slot: LatestSlot[Frame],
        notify: Notify,
        settings: ReaderSettings | None = None,
        *,
        reconnects: bool = True,
    ) -> None:
        self.open_source = open_source
        self._slot = slot
        self._notify = notify
        self._settings = settings or ReaderSettings()
        self.reconnects = reconnects
        self._stopped = Flag()
        self._supervisor = Thread(target=self._supervise, name="camera-watch", daemon=True)
        self._left: list[_Attempt] = []
        self._lock = Lock()
        self._number = 0
        self._last_kept_s = -1e9
        self.failure: F2EdgeError | None = None
        self.connections = 0

    def start(self) -> None:
        self._supervisor.start()

    def stop(self, timeout_s: float = 2.0) -> None:
        """End reading and close the slot; a read that hangs is abandoned."""
        self._stopped.set()
        if self._supervisor.is_alive():
            self._supervisor.join(timeout_s)

    def _supervise(self) -> None:
        failures, began = 0, monotonic()
        try:
            while not self._stopped.is_set():
                self._left = [attempt for attempt in self._left if attempt.thread.is_alive()]
                if len(self._left) >= _LEFT_BEHIND:
                    self._stopped.wait(self._settings.longest_wait_s)
                    continue
                attempt = _Attempt(self)
                reason = self._watch(attempt)
                if reason is None or self.failure is not None or self._stopped.is_set():
                    return
                failures = 1 if attempt.frames else failures + 1
                if self.connections == 0 and monotonic() - began > self._settings.give_up_s:
                    self.failure = SourceLostError(f"{reason}; given up after {self._settings.give_up_s:g} s without a frame")
                    return
                if attempt.frames or failures == 1:
                    self._notify("lost", reason)
                self._stopped.wait(self._settings.wait_s(failures))
        finally:
            self._slot.close()

    def _watch(self, attempt: _Attempt) -> str | None:
        """Wait for the end of an attempt; return why the source was lost, or None if it ended."""
        attempt.thread.start()
        while attempt.thread.is_alive():
            attempt.thread.join(_TICK_S)
            if self._stopped.is_set():
                attempt.dismissed.set()
                attempt.thread.join(0.3)
                return None
            longest_s = self._settings.stall_s if attempt.frames else self._settings.open_s
            if monotonic() - attempt.last_s > longest_s:
                attempt.dismissed.set()
                self._left.append(attempt)
                return f"no frame for {longest_s:g} s"
        return attempt.reason

    def take(self, source: Source, attempt: _Attempt) -> bool:
        """Read one frame for an attempt; return False at the end."""
        capture = source.read()
        if capture is None:
            return False
        now = monotonic()
        attempt.last_s = now
        with self._lock:
            if attempt.dismissed.is_set():
                return False
            if attempt.frames == 0:
                self.connections += 1
                self._notify("connected", f"{capture.image.shape[1]}x{capture.image.shape[0]}")
            attempt.frames += 1
            most = self._settings.most_fps
            if most is not None and now - self._last_kept_s < 0.98 / most:
                return True
            self._last_kept_s = now
            self._slot.put(Frame(capture.image, self._number, now, capture.known))
            self._number += 1
        return True

    def fail(self, error: F2EdgeError) -> None:
        """Record a permanent failure."""
        self.failure = error

    def damaged(self, error: FrameError, bad: int) -> None:
        """Report a damaged frame: the 1st, 2nd, 4th, 8th … in a row."""
        if bad & (bad - 1) == 0:
            self._notify("corrupt", f"{redact(str(error))}" + (f" ({bad} in a row)" if bad > 1 else ""))


class _Attempt:
    """One connection to the source, in its own thread."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self.dismissed = Flag()
        self.last_s = monotonic()
        self.frames = 0
        self.reason: str | None = None
        self.thread = Thread(target=self._run, name="camera-read", daemon=True)
        READ_THREADS.add(self.thread)

    def _run(self) -> None:
        reader = self._reader
        try:
            source = reader.open_source()
        except (SourceLostError, OSError) as error:
            self.reason = redact(str(error))
            return
        except F2EdgeError as error:
            reader.fail(error)
            return
        except Exception as error:  # noqa: BLE001  as in reading, below
            self.reason = f"unexpected {type(error).__name__} while opening"
            return
        try:
            self._read(source)
        except (SourceLostError, OSError) as error:
            self.reason = redact(str(error))
        except Exception as error:  # noqa: BLE001  a driver's failure of any kind is a lost source, not the end of the program
            self.reason = f"unexpected {type(error).__name__} while reading"
        finally:
            source.close()

    def _read(self, source: Source) -> None:
        bad = 0
        while not self.dismissed.is_set():
            try:
                if not self._reader.take(source, self):
                    self.reason = "the source ended" if self._reader.reconnects and not self.dismissed.is_set() else None
                    return
                bad = 0
            except FrameError as error:
                bad += 1
                self._reader.damaged(error, bad)
                if bad >= _BAD_IN_A_ROW:
                    raise SourceLostError(f"{bad} damaged frames in a row") from error
