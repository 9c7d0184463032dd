"""Exceptions: one class per failure, each also a builtin; the message names the input, what is wrong and the cure.

The command line exits with 2 on an :class:`InputError` (the caller can correct it) and with 1 on everything else.
"""

from __future__ import annotations


class F2EdgeError(Exception):
    """Base class of the errors that f2edge raises on purpose."""


class InputError(F2EdgeError, ValueError):
    """Input that cannot be used as it was given."""


class UnknownAttributeError(InputError, LookupError):
    """An attribute, or a value of an attribute, that the schema does not have."""


class UnknownRegionError(InputError, LookupError):
    """A region that is neither a known name nor a box nor a mask."""


class PromptError(InputError):
    """A prompt or question that is empty, too long or not plain text."""


class SensitiveError(InputError):
    """A question about a sensitive trait of a photographed face, without ``include_sensitive``."""


class ImageError(InputError):
    """An image that is missing, damaged, too large, animated or of a kind that is not accepted."""


class OutputError(InputError, OSError):
    """A file that cannot be written at the requested path."""


class BundleError(InputError):
    """A bundle that is missing, damaged, of an unknown version or lacking a part."""


class BundleNotFoundError(BundleError, FileNotFoundError):
    """A bundle that was not found by its name or path."""


class ChecksumError(BundleError):
    """A file whose size or checksum differs from the bundle's manifest."""


class BackendError(F2EdgeError, RuntimeError):
    """A backend that cannot be used on this machine, or that failed while running."""


class CancelledError(F2EdgeError, RuntimeError):
    """Work that the caller stopped between two steps."""


class QueueFullError(F2EdgeError, RuntimeError):
    """A full queue: the engine accepts no more work now.

    Attributes:
        retry_after_ms: milliseconds until a retry may succeed, estimated from measured step times.
    """

    def __init__(self, message: str, retry_after_ms: float) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms


class DeadlineUnreachableError(F2EdgeError, TimeoutError):
    """Work refused on arrival because, by measured step times, it cannot finish before its deadline."""


class DeadlineExceededError(F2EdgeError, TimeoutError):
    """Work stopped between two steps because its deadline passed while it was queued or running."""


class EngineClosedError(F2EdgeError, RuntimeError):
    """Work refused or ended because the engine is draining or closed."""


class ServerUnavailableError(F2EdgeError, ConnectionError):
    """A server that does not answer, is starting or is shutting down."""


class AccessError(InputError, PermissionError):
    """A missing, wrong or revoked token."""


class ServerError(F2EdgeError, RuntimeError):
    """A server that failed or broke the protocol."""
