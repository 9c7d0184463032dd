"""Every way in which a call can fail, as one gRPC status with google.rpc details; nothing of the inside gets out.

========================  ===================  ==================================================
status                    reason               when
========================  ===================  ==================================================
INVALID_ARGUMENT          PROMPT, IMAGE, …     BadRequest names the field and its rule
RESOURCE_EXHAUSTED        QUEUE_FULL           RetryInfo and ``grpc-retry-pushback-ms`` say when to come back
DEADLINE_EXCEEDED         DEADLINE             has passed; or cannot be met by measured step times: then ErrorInfo's metadata says
                                               ``accepted: false``, and nothing was done
UNAVAILABLE               STARTING, DRAINING   another replica, or the same one soon
CANCELLED                 CANCELLED            by the caller
UNAUTHENTICATED           TOKEN                no valid bearer token
UNIMPLEMENTED             MODEL                the model served lacks the part for this
INTERNAL                  INTERNAL             a defect; the request id leads to the log
========================  ===================  ==================================================
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2, error_details_pb2, status_pb2

from f2edge.errors import (
    BundleError,
    CancelledError,
    DeadlineExceededError,
    DeadlineUnreachableError,
    EngineClosedError,
    F2EdgeError,
    ImageError,
    InputError,
    OutputError,
    PromptError,
    QueueFullError,
    SensitiveError,
    UnknownAttributeError,
    UnknownRegionError,
)
from f2edge.text import one_line
from f2edge.wire import ERROR_DOMAIN, PUSHBACK_KEY, REQUEST_ID_KEY, STATUS_DETAILS_KEY

_LONGEST_MESSAGE = 600
_RETRY_MS = 500.0
#: Reason and field of a bad input whose error does not say more.
_INPUT_REASONS: Mapping[type[InputError], tuple[str, str]] = MappingProxyType(
    {
        PromptError: ("PROMPT", "prompt"),
        ImageError: ("IMAGE", "image"),
        UnknownRegionError: ("REGION", "region"),
        UnknownAttributeError: ("ATTRIBUTE", "attributes"),
        SensitiveError: ("SENSITIVE", "include_sensitive"),
        InputError: ("ARGUMENT", "options"),
    }
)

#: Errors of the engine: status, reason, and what the caller is told, where that is not the error's own message.
_PLAIN: tuple[tuple[type[F2EdgeError] | tuple[type[F2EdgeError], ...], grpc.StatusCode, str, str], ...] = (
    ((DeadlineUnreachableError, DeadlineExceededError), grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE", ""),
    (CancelledError, grpc.StatusCode.CANCELLED, "CANCELLED", "the call was cancelled"),
    (BundleError, grpc.StatusCode.UNIMPLEMENTED, "MODEL", "the model that is served cannot do this; GetModel says what it can"),
)


class RefusedError(F2EdgeError):
    """Why a call fails.

    Attributes:
        code: the status.
        reason: for programs, stable.
        field: of the request, where one is wrong.
        retry_after_ms: when to come back, where that helps.
        accepted: False where nothing was done because its deadline could not be met.
    """

    accepted = True

    def __init__(self, code: grpc.StatusCode, message: str, reason: str, *, field: str = "", retry_after_ms: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.field = field
        self.retry_after_ms = retry_after_ms


def bad_field(field: str, message: str, reason: str = "ARGUMENT") -> RefusedError:
    """A field that breaks a rule."""
    return RefusedError(grpc.StatusCode.INVALID_ARGUMENT, message, reason, field=field)


def starting() -> RefusedError:
    return RefusedError(grpc.StatusCode.UNAVAILABLE, "the server is loading its model; try again", "STARTING", retry_after_ms=_RETRY_MS)


def draining() -> RefusedError:
    return RefusedError(grpc.StatusCode.UNAVAILABLE, "the server is shutting down; try again", "DRAINING", retry_after_ms=_RETRY_MS)


def refusal_of(error: BaseException, fields: Mapping[type[InputError], str] | None = None) -> RefusedError:
    """What a caller is told about an error; ``fields`` names the field behind a kind of bad input, where it is not the usual one."""
    if isinstance(error, RefusedError):
        return error
    for kinds, code, reason, message in _PLAIN:
        if isinstance(error, kinds):
            refusal = RefusedError(code, message or str(error), reason)
            refusal.accepted = not isinstance(error, DeadlineUnreachableError)
            return refusal
    if isinstance(error, InputError) and not isinstance(error, OutputError):
        kind = next(kind for kind in type(error).__mro__ if kind in _INPUT_REASONS)
        reason, field = _INPUT_REASONS[kind]
        return bad_field((fields or {}).get(kind, field), str(error), reason)
    if isinstance(error, QueueFullError):
        return RefusedError(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error), "QUEUE_FULL", retry_after_ms=error.retry_after_ms)
    if isinstance(error, EngineClosedError):
        return draining()
    return RefusedError(grpc.StatusCode.INTERNAL, "internal error; the request id leads to the server's log", "INTERNAL")


def trailers(refusal: RefusedError, request_id: str) -> tuple[tuple[str, str | bytes], ...]:
    """Trailing metadata of a call that fails so: the details, the request id and when to come back."""
    more = {} if refusal.accepted else {"accepted": "false"}
    details = [
        error_details_pb2.ErrorInfo(reason=refusal.reason, domain=ERROR_DOMAIN, metadata=more),
        error_details_pb2.RequestInfo(request_id=request_id),
    ]
    if refusal.field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=refusal.field, description=shown(str(refusal)))
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    pairs: list[tuple[str, str | bytes]] = [(REQUEST_ID_KEY, request_id)]
    if refusal.retry_after_ms is not None:
        delay = Duration()
        delay.FromMilliseconds(round(refusal.retry_after_ms))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
        pairs.append((PUSHBACK_KEY, str(max(1, round(refusal.retry_after_ms)))))
    status = status_pb2.Status(code=code_pb2.Code.Value(refusal.code.name), message=shown(str(refusal)))
    for detail in details:
        status.details.add().Pack(detail)
    return (*pairs, (STATUS_DETAILS_KEY, status.SerializeToString()))


def refusal_from(code: grpc.StatusCode, message: str, metadata: Iterable[tuple[str, str | bytes]]) -> RefusedError:
    """Return the error that became this status and these trailers (:func:`trailers`)."""
    packed = dict(metadata)[STATUS_DETAILS_KEY]
    assert isinstance(packed, bytes)
    refusal = RefusedError(code, message, "")
    for detail in status_pb2.Status.FromString(packed).details:
        info, request, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            refusal.reason, refusal.accepted = info.reason, info.metadata.get("accepted") != "false"
        elif detail.Unpack(request):
            refusal.field = request.field_violations[0].field
        elif detail.Unpack(retry):
            refusal.retry_after_ms = float(retry.retry_delay.ToMilliseconds())
    return refusal


def shown(message: str) -> str:
    """A message that fits into a trailer and one line."""
    return one_line(message, _LONGEST_MESSAGE)
