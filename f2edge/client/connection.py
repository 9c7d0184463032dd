"""Address, credentials and error translation shared by the synchronous and the asyncio client."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from f2edge.errors import (
    AccessError,
    CancelledError,
    DeadlineExceededError,
    F2EdgeError,
    ImageError,
    InputError,
    PromptError,
    QueueFullError,
    SensitiveError,
    ServerError,
    ServerUnavailableError,
    UnknownAttributeError,
    UnknownRegionError,
)
from f2edge.transport import is_loopback, read_pem
from f2edge.wire import STATUS_DETAILS_KEY

DEFAULT_ADDRESS = "127.0.0.1:8033"
_TLS_SCHEME = "grpcs://"
#: Prefixes of gRPC's name syntax: https://github.com/grpc/grpc/blob/master/doc/naming.md
_NAMINGS = ("unix:", "unix-abstract:", "dns:", "ipv4:", "ipv6:")
_HOST_PORT = re.compile(r"(?:[^\s:/@\[\]]+|\[[0-9A-Fa-f:.%]+\]):([0-9]{1,5})")
LARGEST_RESPONSE_BYTES = 16 << 20
_KEEPALIVE_MS = 20_000
_LONGEST_S = 1e9
#: Round robin over all addresses of a name ("dns:///name:port"), retries of calls that were refused before an answer, and waiting for a
#: restarting server.  gRPC's server ends calls that arrive while it stops with CANCELLED (30 of 257 calls over 15 restarts, none with both
#: codes listed here); f2edge's server uses that code only for calls that their caller cancelled, which gRPC never retries.
SERVICE_CONFIG = json.dumps(
    {
        "loadBalancingConfig": [{"round_robin": {}}],
        "methodConfig": [
            {
                "name": [{"service": "f2edge.v1.FaceService"}],
                "waitForReady": True,
                "retryPolicy": {
                    "maxAttempts": 5,
                    "initialBackoff": "0.2s",
                    "maxBackoff": "5s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
                },
            }
        ],
    }
)
_INPUT_ERRORS: Mapping[str, type[InputError]] = MappingProxyType(
    {
        "PROMPT": PromptError,
        "IMAGE": ImageError,
        "REGION": UnknownRegionError,
        "ATTRIBUTE": UnknownAttributeError,
        "SENSITIVE": SensitiveError,
    }
)


@dataclass(frozen=True)
class Connection:
    """Address and credentials of a server.

    Attributes:
        address: "host:port", "[::1]:port", "unix:/path", another gRPC name ("dns:///name:port", "ipv4:address:port,address:port"),
            or "grpcs://" and one of these for TLS.
        token: bearer token; sent over TLS or to a loopback address only.
        ca_file: PEM file of trusted authorities instead of the system's; enables TLS.
        cert_file, key_file: PEM files of the client certificate and its key; enable TLS.
    """

    address: str = DEFAULT_ADDRESS
    token: str | None = None
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None

    def __post_init__(self) -> None:
        if not _is_target(self.target):
            raise InputError(f"server address {self.address[:100]!r}: give host:port, unix:/path or grpcs://host:port")
        if (self.cert_file is None) != (self.key_file is None):
            raise InputError("a client certificate needs both cert_file and key_file; give the other one too")
        if self.token is not None and not (self.token.isascii() and self.token.isprintable() and self.token.strip() == self.token):
            raise InputError("the token has invalid characters; copy it again")
        if self.token and not self.tls and not self._local:
            raise InputError(f"server {self.target}: a token is sent over TLS only; write the address as {_TLS_SCHEME}{self.target}")

    @classmethod
    def from_environment(cls, address: str, environment: Mapping[str, str] = os.environ) -> Connection:
        """Return a connection with the settings of ``F2EDGE_TOKEN``, ``F2EDGE_CA_FILE``, ``F2EDGE_CERT_FILE`` and ``F2EDGE_KEY_FILE``."""
        files = {name: environment.get(f"F2EDGE_{name.upper()}") for name in ("ca_file", "cert_file", "key_file")}
        paths = {name: Path(text) if text else None for name, text in files.items()}
        return cls(address, environment.get("F2EDGE_TOKEN") or None, **paths)

    @property
    def target(self) -> str:
        """Address in gRPC's syntax."""
        return self.address.removeprefix(_TLS_SCHEME)

    @property
    def tls(self) -> bool:
        return self.address.startswith(_TLS_SCHEME) or self.ca_file is not None or self.cert_file is not None

    @property
    def options(self) -> list[tuple[str, Any]]:
        """Options of the gRPC channel."""
        return [
            ("grpc.service_config", SERVICE_CONFIG),
            ("grpc.enable_retries", 1),
            ("grpc.max_receive_message_length", LARGEST_RESPONSE_BYTES),
            ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
            ("grpc.enable_http_proxy", int(not self._local)),  # local calls, with their tokens, bypass proxies
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 2000),
        ]

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()

    def credentials(self) -> grpc.ChannelCredentials | None:
        """Return the TLS credentials; None for plaintext.  Raises :class:`InputError` for a file that cannot be read or holds no PEM."""
        if not self.tls:
            return None
        files = (
            (self.ca_file, "authorities", "CERTIFICATE"),
            (self.cert_file, "client certificate", "CERTIFICATE"),
            (self.key_file, "client key", "PRIVATE KEY"),
        )
        ca, cert, key = (None if file is None else read_pem(file, what, block) for file, what, block in files)
        return grpc.ssl_channel_credentials(root_certificates=ca, private_key=key, certificate_chain=cert)

    def call(self, seconds: float) -> dict[str, Any]:
        """Return the arguments of a call with a deadline of ``seconds``."""
        if not 0 < seconds < _LONGEST_S:  # gRPC treats a longer one as no deadline
            raise InputError(f"timeout_s must lie above 0 and below {_LONGEST_S:g}, got {seconds}")
        return {"timeout": seconds, "metadata": self.metadata}

    @property
    def _local(self) -> bool:
        return self.target.startswith("unix:") or is_loopback(self.target.rpartition(":")[0])


def _is_target(text: str) -> bool:
    """Return whether a text is a gRPC name, which gRPC checks, or host:port."""
    if not text.isprintable() or " " in text:
        return False
    if text.startswith(_NAMINGS):
        return True
    found = _HOST_PORT.fullmatch(text)
    return found is not None and 1 <= int(found[1]) <= 65535


@contextmanager
def translated_errors(address: str) -> Iterator[None]:
    """Raise gRPC's errors as this package's."""
    try:
        yield
    except grpc.RpcError as error:
        raise error_of(error, address) from error
    except F2EdgeError:
        raise
    except (AttributeError, TypeError, ValueError, LookupError, ArithmeticError, DecodeError) as error:
        raise ServerError(
            f"server {address}: its answer cannot be read ({type(error).__name__}); is it an f2edge of another version?"
        ) from error


def error_of(error: grpc.RpcError, address: str) -> F2EdgeError:
    """Return the error of a status, with the server's message."""
    code, message = error.code(), error.details() or ""
    try:
        reason, retry_after_ms, request_id = _details(error)
    except (DecodeError, ValueError, ArithmeticError):  # the server's details are not what they should be; its code stands
        reason, retry_after_ms, request_id = "", None, ""
    if code == grpc.StatusCode.INVALID_ARGUMENT:
        return _INPUT_ERRORS.get(reason, InputError)(message)
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED and retry_after_ms is not None:
        return QueueFullError(message, retry_after_ms)
    kind, text = {
        grpc.StatusCode.RESOURCE_EXHAUSTED: (InputError, f"server {address}: {message}"),
        grpc.StatusCode.DEADLINE_EXCEEDED: (DeadlineExceededError, message if reason else f"server {address} did not answer in time"),
        grpc.StatusCode.CANCELLED: (CancelledError, "the call was cancelled"),
        grpc.StatusCode.UNAUTHENTICATED: (AccessError, f"server {address}: {message} (F2EDGE_TOKEN)"),
        grpc.StatusCode.UNAVAILABLE: (
            ServerUnavailableError,
            f"server {address} cannot be reached ({message}); check the address, its TLS and whether it runs",
        ),
    }.get(code, (ServerError, f"server {address}: {code.name}: {message}" + (f" (request {request_id})" if request_id else "")))
    return kind(text)


def _details(error: grpc.RpcError) -> tuple[str, float | None, str]:
    """Return the reason, the retry delay in ms and the request id of an error."""
    reason, retry_after_ms, request_id = "", None, ""
    packed = [value for key, value in error.trailing_metadata() or () if key == STATUS_DETAILS_KEY]
    for detail in status_pb2.Status.FromString(packed[0]).details if packed else ():
        for kind in (error_details_pb2.ErrorInfo, error_details_pb2.RetryInfo, error_details_pb2.RequestInfo):
            if not detail.Is(kind.DESCRIPTOR):
                continue
            content = kind.FromString(detail.value)
            reason = getattr(content, "reason", reason)
            request_id = getattr(content, "request_id", request_id)
            if isinstance(content, error_details_pb2.RetryInfo):
                retry_after_ms = content.retry_delay.ToTimedelta().total_seconds() * 1e3
    return reason, retry_after_ms, request_id


def no_answer(address: str) -> ServerError:
    """Return the error of a stream that ended without a result."""
    return ServerError(f"server {address}: the stream ended without a result; the server may run another f2edge version")


def unreachable(address: str, seconds: float) -> ServerUnavailableError:
    """Return the error of a server that did not answer in time."""
    return ServerUnavailableError(
        f"no server answers at {address} within {seconds:g} s; start one with `f2edge serve`, or check the address"
    )
