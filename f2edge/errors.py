"""Every failure has a class of its own, which is also a builtin, and a message that names the input, what is wrong and the cure.

The command line turns :class:`InputError` (the caller can mend it) into exit code 2 and everything else into 1.
"""

from __future__ import annotations


class F2EdgeError(Exception):
    """Base of every error that f2edge raises on purpose."""


class InputError(F2EdgeError, ValueError):
    """What the caller gave cannot be used as it is."""


class UnknownAttributeError(InputError, LookupError):
    """An attribute or a value of one that the schema does not have."""


class UnknownRegionError(InputError, LookupError):
    """A region of the face that is not among the known names and is no box or mask."""


class PromptError(InputError):
    """A prompt or question that is empty, too long or not plain text."""


class ImageError(InputError):
    """An image that is missing, damaged, too large, animated or of a kind that is not accepted."""


class OutputError(InputError, OSError):
    """A file cannot be written where it was asked for."""


class BundleError(InputError):
    """A bundle that is missing, damaged, of an unknown version or lacking a part."""


class BundleNotFoundError(BundleError, FileNotFoundError):
    """No bundle of that name or at that path."""


class ChecksumError(BundleError):
    """A file of a bundle that differs from what its manifest promises."""


class BackendError(F2EdgeError, RuntimeError):
    """A backend that cannot be used on this machine, or that failed while running."""


class CancelledError(F2EdgeError, RuntimeError):
    """The caller stopped the work between two steps."""


class QueueFullError(F2EdgeError, RuntimeError):
    """The engine has as much work as it accepts.

    Attributes:
        retry_after_ms: when to try again, from measured step times.
    """

    def __init__(self, message: str, retry_after_ms: float) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms


class DeadlineUnreachableError(F2EdgeError, TimeoutError):
    """Refused at once: by measured step times the work cannot be done before its deadline."""


class DeadlineExceededError(F2EdgeError, TimeoutError):
    """The deadline passed while the work was queued or running; it was stopped between two steps."""


class EngineClosedError(F2EdgeError, RuntimeError):
    """The engine is draining or closed and takes no new work, or was closed before this work was done."""


class ServerUnavailableError(F2EdgeError, ConnectionError):
    """No server answers at the address, or it is starting or shutting down."""


class AccessError(InputError, PermissionError):
    """A server that does not let the caller in: no token, or a wrong one."""


class ServerError(F2EdgeError, RuntimeError):
    """A server that failed, or that does not speak the contract."""
