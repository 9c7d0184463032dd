"""What may be wrong with a source."""

from __future__ import annotations

from f2edge.errors import F2EdgeError


class FrameError(F2EdgeError, ValueError):
    """One frame is damaged; the source goes on."""


class SourceLostError(F2EdgeError, ConnectionError):
    """The source is gone or does not answer; it may come back."""
