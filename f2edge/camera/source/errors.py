"""Errors of sources."""

from __future__ import annotations

from f2edge.errors import F2EdgeError


class FrameError(F2EdgeError, ValueError):
    """Damaged frame; the source continues."""


class SourceLostError(F2EdgeError, ConnectionError):
    """Lost or unresponsive source; it may come back."""
