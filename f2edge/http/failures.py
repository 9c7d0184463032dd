"""A refused call as an HTTP status and a JSON document of the form that OpenAI's clients read.

========================  ======  ====================================
gRPC status               HTTP    ``error.type``
========================  ======  ====================================
INVALID_ARGUMENT          400     invalid_request_error
UNAUTHENTICATED           401     authentication_error
PERMISSION_DENIED         403     permission_error
NOT_FOUND                 404     not_found_error
DEADLINE_EXCEEDED         408     timeout_error
RESOURCE_EXHAUSTED        429     rate_limit_error
CANCELLED                 499     cancelled_error
INTERNAL                  500     server_error
UNIMPLEMENTED             501     server_error
UNAVAILABLE               503     server_error
========================  ======  ====================================

Some reasons have a status of their own: MODEL_NAME 404, METHOD 405, SIZE 413, MEDIA 415.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import grpc

from f2edge.server.status import RefusedError, shown

_CODE = grpc.StatusCode
_STATUS: Mapping[grpc.StatusCode, tuple[int, str]] = MappingProxyType(
    {
        _CODE.INVALID_ARGUMENT: (400, "invalid_request_error"),
        _CODE.UNAUTHENTICATED: (401, "authentication_error"),
        _CODE.PERMISSION_DENIED: (403, "permission_error"),
        _CODE.NOT_FOUND: (404, "not_found_error"),
        _CODE.DEADLINE_EXCEEDED: (408, "timeout_error"),  # the caller's, the server's longest, or a request that does not arrive
        _CODE.RESOURCE_EXHAUSTED: (429, "rate_limit_error"),
        _CODE.CANCELLED: (499, "cancelled_error"),
        _CODE.INTERNAL: (500, "server_error"),
        _CODE.UNIMPLEMENTED: (501, "server_error"),
        _CODE.UNAVAILABLE: (503, "server_error"),
    }
)
_OF_REASON: Mapping[str, tuple[int, str]] = MappingProxyType(
    {
        "METHOD": (405, "invalid_request_error"),
        "MODEL_NAME": (404, "not_found_error"),
        "SIZE": (413, "invalid_request_error"),
        "MEDIA": (415, "invalid_request_error"),
    }
)
#: Every status that a failed request can have.
STATUSES = tuple(sorted({status for status, _type in (*_STATUS.values(), *_OF_REASON.values())}))


def status_of(refusal: RefusedError) -> int:
    """Return the HTTP status."""
    return _kind(refusal)[0]


def failure_document(refusal: RefusedError, request_id: str) -> dict[str, Any]:
    """Return ``{"error": {…}}``."""
    error = {
        "message": shown(str(refusal)),
        "type": _kind(refusal)[1],
        "param": refusal.field or None,
        "code": refusal.reason,
        "status": refusal.code.name,
        "request_id": request_id,
    }
    return {"error": error if refusal.retry_after_ms is None else {**error, "retry_after_ms": refusal.retry_after_ms}}


def _kind(refusal: RefusedError) -> tuple[int, str]:
    return _OF_REASON.get(refusal.reason) or _STATUS.get(refusal.code, _STATUS[_CODE.INTERNAL])
