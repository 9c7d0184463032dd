"""From the engine's thread to a call: the events of one request, as a reader in the event loop takes them.

A slow reader delays no other and queues nothing: a step replaces one that was not yet read, pieces of text are joined.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from threading import Lock

from f2edge.decoding.parallel import StepEvent
from f2edge.engine.requests import Event, Failed, Token
from f2edge.engine.sequences import RequestHandle
from f2edge.errors import CancelledError


class Events:
    """Queue of one request's events.  Made in the event loop; :meth:`emit` may be called from any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Event] = deque()
        self._arrived = asyncio.Event()
        self._handle: RequestHandle | None = None
        self._closed = False
        self._lock = Lock()

    def submit(self, submit: Callable[[Callable[[Event], None]], RequestHandle]) -> None:
        """Submit the request to the engine, from any thread; :class:`CancelledError` where the caller has gone meanwhile."""
        if self._closed:
            raise CancelledError("the caller has gone")
        handle = submit(self.emit)
        with self._lock:
            self._handle = handle
        self._cancel_if_left()

    def emit(self, event: Event) -> None:
        """Queue an event; the engine's ``on_event``."""
        with self._lock:
            if self._closed:
                return
            last = self._waiting[-1] if self._waiting else None
            if isinstance(event, StepEvent) and isinstance(last, StepEvent):
                self._waiting[-1] = event
            elif isinstance(event, Token) and isinstance(last, Token):
                self._waiting[-1] = Token(last.text + event.text)
            else:
                self._waiting.append(event)
        self._loop.call_soon_threadsafe(self._arrived.set)

    async def next(self) -> Event:
        """Return the next event; :class:`Failed` raises its error instead."""
        while not self._waiting:
            self._arrived.clear()
            if not self._waiting:  # one that came before the flag was cleared
                await self._arrived.wait()
        with self._lock:
            event = self._waiting.popleft()
        if isinstance(event, Failed):
            raise event.error
        return event

    def close(self) -> None:
        """Stop the request unless it has ended: the caller has left."""
        with self._lock:
            self._closed = True
        self._cancel_if_left()

    def _cancel_if_left(self) -> None:
        with self._lock:
            handle = self._handle if self._closed else None
        if handle is not None:
            handle.cancel()
