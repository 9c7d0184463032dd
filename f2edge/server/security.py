"""Who may connect: TLS with certificates that can be renewed while the server runs, and bearer tokens for every call but health checks."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from math import inf
from pathlib import Path
from typing import Any

import grpc

from f2edge.errors import InputError
from f2edge.server.settings import ServerSettings
from f2edge.server.status import RefusedError, trailers
from f2edge.server.tokens import Tokens
from f2edge.transport import check_dates, read_pem

logger = logging.getLogger(__name__)

#: A probe's question.  Health streams need a token like every other call.
_OPEN_TO_ALL = "/grpc.health.v1.Health/Check"


class Certificates:
    """The server's key and chain and, for mutual TLS, the clients' authority; looked at again for every handshake.

    Raises:
        InputError: a file that is missing or holds no PEM, or a certificate that is not valid now.
    """

    def __init__(self, settings: ServerSettings) -> None:
        assert settings.tls_cert is not None
        assert settings.tls_key is not None
        self._files = (settings.tls_cert, settings.tls_key, settings.client_ca)
        self._ends_s = inf
        self._stamps = self._look()
        self._current = self._read()

    @property
    def credentials(self) -> grpc.ServerCredentials:
        return grpc.dynamic_ssl_server_credentials(self._current, self._fetch, require_client_authentication=self._files[2] is not None)

    def _fetch(self) -> Any:
        """Called by gRPC, on a thread of its own, when a client connects; None keeps what is in use."""
        try:
            stamps = self._look()
            if stamps == self._stamps:
                self._report_expiry()
                return None
            self._current = self._read()
            self._stamps = stamps
        except InputError:  # half written, perhaps: the next handshake looks again
            logger.exception("the certificates cannot be used any more; those in use stay")
            return None
        logger.info("certificates read again")
        return self._current

    def _report_expiry(self) -> None:
        """Log once that the certificate in use has expired; clients refuse it."""
        if time.time() > self._ends_s:
            self._ends_s = inf
            logger.error("the server's certificate has expired; renew %s", self._files[0])

    def _look(self) -> tuple[tuple[int, int], ...]:
        return tuple((seen.st_mtime_ns, seen.st_ino) for seen in (_stat(file) for file in self._files if file is not None))

    def _read(self) -> Any:
        certificate, key, authority = self._files
        assert certificate is not None
        assert key is not None
        pair = (read_pem(key, "server key", "PRIVATE KEY"), read_pem(certificate, "server certificate", "CERTIFICATE"))
        self._ends_s = check_dates(certificate, pair[1])
        roots = None if authority is None else read_pem(authority, "clients' authority", "CERTIFICATE")
        try:
            return grpc.ssl_server_certificate_configuration([pair], root_certificates=roots)
        except ValueError as error:
            raise InputError(f"{certificate}: gRPC cannot use it; check that the key belongs to the certificate") from error


class TokenGate(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # gRPC is not typed
    """Lets calls through that show a token; health checks pass without one.

    Args:
        tokens: those that count.
        denied: hears of each call that is turned away.
    """

    def __init__(self, tokens: Tokens, denied: Callable[[], None]) -> None:
        self._tokens = tokens
        self._denied = denied

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]], details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler:
        if details.method == _OPEN_TO_ALL or self._tokens.holder(authorization(details.invocation_metadata)) is not None:
            return await continuation(details)
        return grpc.stream_stream_rpc_method_handler(self._deny)  # of any method: it reads no message, so none is waited for

    async def _deny(self, _messages: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> None:
        self._denied()
        logger.info("turned away", extra={"peer": context.peer()})
        refusal = no_token()
        await context.abort(refusal.code, str(refusal), trailers(refusal, ""))


def no_token() -> RefusedError:
    """Return why a call is turned away."""
    return RefusedError(grpc.StatusCode.UNAUTHENTICATED, "no valid token; send metadata 'authorization: Bearer TOKEN'", "TOKEN")


def authorization(metadata: Any) -> str:
    """Value of the header of that name, "" where there is none or more than one."""
    values = [value for key, value in metadata or () if key == "authorization" and isinstance(value, str)]
    return values[0] if len(values) == 1 else ""


def _stat(path: Path) -> Any:
    try:
        return path.stat()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give a PEM file") from error
