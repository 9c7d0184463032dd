"""How a server runs: addresses, limits, times.  Checked when made; a server that would be open to the network by accident is refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from f2edge.errors import InputError
from f2edge.imaging.guard import ImageLimits
from f2edge.transport import is_loopback

DEFAULT_PORT = 8033
#: Room for a prompt and the other fields beside an image of the largest size.
_OTHER_FIELDS_BYTES = 64 << 10
#: Pixels decoded at once by all threads together, at three bytes each.
_PIXEL_BUDGET_BYTES = 128 << 20
#: A telephone's photograph passes; 16 million pixels with an alpha channel would take more than 200 MB.
PICTURES = ImageLimits(largest_pixels=4096 * 3072, largest_decode_ms=120.0)
_LOWEST = {
    "start_wait_s": 0,
    "lame_duck_s": 0,
    "grace_s": 0,
    "hang_exit_s": 0,
    "deadline_s": 0.1,
    "heartbeat_limit_s": 0.1,
    "streams": 1,
    "connections": 1,
    "waiting_bytes": 1,
    "decode_threads": 1,
}
#: Seconds, bytes and counts alike; gRPC's clock and the event loop's take no infinity.
_LARGEST = 1e9


@dataclass(frozen=True)
class ServerSettings:
    """Everything about a server but its model.

    Attributes:
        host: an address, a host name, or "unix:/path".  Other than loopback needs TLS, or ``insecure``.
        port: 0 takes a free one.
        insecure: serve plaintext beyond loopback all the same.
        tls_cert, tls_key: PEM files of the server; read again when they change.
        client_ca: PEM file; clients must show a certificate that it signed.
        token_file: names and hashes of bearer tokens (:mod:`f2edge.server.tokens`); read again when it changes.
        metrics_host, metrics_port: of the Prometheus endpoint; a port of None is none, 0 a free one.  It is plaintext without access
            control, so a host other than loopback needs ``metrics_insecure``.
        metrics_insecure: serve metrics beyond loopback all the same.
        health_port: health checks alone, in plaintext and without a token, at the same host (loopback for a socket): probes that speak no
            TLS, such as those of Kubernetes, go there.  A port of None is none, 0 a free one.
        http_host, http_port: of the HTTP interface (:mod:`f2edge.http`); a port of None is none, 0 a free one.  The same TLS files and
            tokens hold, and a host other than loopback needs TLS or ``insecure`` too.
        reflection: serve the contract to tools such as grpcurl.
        traces: export a span of each call (:mod:`f2edge.traces`).
        images: what a picture may be.
        decode_threads: pictures opened or written at once.
        waiting_bytes: of requests that wait for such a thread; more are refused.
        streams: open ``AnalyzeStream`` calls; more are refused.
        connections: open at once; more are closed as soon as they are made.
        deadline_s: longer deadlines, and none, are cut to it.
        start_wait_s: while the model loads, calls wait for it so long before they are refused.
        lame_duck_s: after SIGTERM: not ready, but still taking work, so that balancers can turn away.
        grace_s: then, for what was accepted, until it is cut off.
        heartbeat_limit_s: engine silence until the server is not ready; ten of its longest turns where those take longer.
        hang_exit_s: engine silence until the process ends with an error; 0 for never.
    """

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    insecure: bool = False
    tls_cert: Path | None = None
    tls_key: Path | None = None
    client_ca: Path | None = None
    token_file: Path | None = None
    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = None
    metrics_insecure: bool = False
    health_port: int | None = None
    http_host: str = "127.0.0.1"
    http_port: int | None = None
    reflection: bool = True
    traces: bool = False
    images: ImageLimits = PICTURES
    decode_threads: int = 2
    waiting_bytes: int = 64 << 20
    streams: int = 16
    connections: int = 512
    deadline_s: float = 300.0
    start_wait_s: float = 10.0
    lame_duck_s: float = 1.0
    grace_s: float = 30.0
    heartbeat_limit_s: float = 10.0
    hang_exit_s: float = 120.0

    def __post_init__(self) -> None:
        ports = {"--port": self.port, "--metrics-port": self.metrics_port, "--health-port": self.health_port, "--http": self.http_port}
        for option, port in ports.items():
            if port is not None and not 0 <= port <= 65535:
                raise InputError(f"{option} {port}: must lie in 0 … 65535")
        for name, lowest in _LOWEST.items():
            if not lowest <= getattr(self, name) <= _LARGEST:
                raise InputError(f"server settings: {name} must lie in {lowest} … {_LARGEST:g}, got {getattr(self, name)}")
        if self.decode_threads * self.images.largest_pixels * 3 > _PIXEL_BUDGET_BYTES:
            raise InputError(
                f"server settings: {self.decode_threads} pictures of {self.images.largest_pixels} pixels at once take more than "
                f"{_PIXEL_BUDGET_BYTES >> 20} MiB; lower one of the two"
            )
        self._check_security()

    def _check_security(self) -> None:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise InputError("TLS needs both --tls-cert and --tls-key; give the other one too")
        if self.client_ca is not None and self.tls_cert is None:
            raise InputError("--client-ca asks clients for certificates, which needs TLS; give --tls-cert and --tls-key")
        if not (self.is_local or self.tls or self.insecure):
            raise InputError(
                f"--host {self.host}: reachable from other machines, so it needs TLS (--tls-cert, --tls-key); "
                "--insecure serves plaintext all the same"
            )
        if self.http_port is not None and not (self.http_is_local or self.tls or self.insecure):
            raise InputError(
                f"--http {self.http_host}: reachable from other machines, so it needs TLS (--tls-cert, --tls-key); "
                "--insecure serves plaintext all the same"
            )
        if self.metrics_port is not None and not (is_loopback(self.metrics_host) or self.metrics_insecure):
            raise InputError(
                f"--metrics-host {self.metrics_host}: reachable from other machines, and metrics are plaintext for everybody; "
                "--metrics-insecure serves them all the same"
            )

    @property
    def tls(self) -> bool:
        return self.tls_cert is not None

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect."""
        return self.host.startswith("unix:") or is_loopback(self.host)

    @property
    def http_is_local(self) -> bool:
        """Whether only this machine can connect over HTTP."""
        return is_loopback(self.http_host)

    @property
    def target(self) -> str:
        """The address as gRPC writes it."""
        return self.host if self.host.startswith("unix:") else _joined(self.host, self.port)

    @property
    def health_target(self) -> str | None:
        """The address of health checks alone."""
        if self.health_port is None:
            return None
        return _joined("127.0.0.1" if self.host.startswith("unix:") else self.host, self.health_port)

    @property
    def message_bytes(self) -> int:
        """Largest request."""
        return self.images.largest_bytes + _OTHER_FIELDS_BYTES


def _joined(host: str, port: int) -> str:
    host = host.strip("[]")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
