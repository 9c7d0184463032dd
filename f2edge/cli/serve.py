"""``f2edge serve``, ``studio`` and ``token``: the server, its page in the browser and its access tokens."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import signal
import sys
import threading
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from f2edge.backends.memory import few_heaps
from f2edge.cli.options import (
    BackendOption,
    BundleOption,
    JsonOption,
    QuietOption,
    SignCertOption,
    SignKeyOption,
    ThreadsOption,
    WatermarkKeyOption,
    WatermarkOption,
    chosen_signer,
    chosen_watermark,
    open_bundle,
    output,
)

if TYPE_CHECKING:
    from f2edge.server.lifecycle import FaceServer
    from f2edge.server.settings import ServerSettings

logger = logging.getLogger("f2edge.server")

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
#: Exit code after a second signal.
_AT_ONCE = 130
#: Seconds for a server that its supervisor cannot reach to end by itself.
_UNREACHABLE_S = 0.4
#: Interpreter switch interval in seconds (default 5 ms), so that worker threads do not delay health checks on the event loop.
SWITCH_S = 0.001

TokenFileOption = Annotated[
    Path | None, typer.Option("--token-file", metavar="FILE", help="Require one of these tokens (`f2edge token`).", show_default=False)
]


def serve(
    *,
    bundle: BundleOption = "nano",
    backend: BackendOption = "auto",
    threads: ThreadsOption = None,
    host: Annotated[str, typer.Option("--host", help="An address, or unix:/path.  A non-loopback address needs TLS.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="TCP port; 0 selects a free one.")] = 8033,
    tls_cert: Annotated[
        Path | None, typer.Option("--tls-cert", metavar="FILE", help="PEM certificate chain; reloaded when it changes.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option("--tls-key", metavar="FILE", help="PEM private key.")] = None,
    client_ca: Annotated[
        Path | None,
        typer.Option("--client-ca", metavar="FILE", help="Require client certificates signed by this authority.", show_default=False),
    ] = None,
    token_file: TokenFileOption = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Serve plaintext on a non-loopback address.")] = False,
    metrics_port: Annotated[
        int | None, typer.Option("--metrics-port", help="Port of the Prometheus metrics, also for `f2edge top`.", show_default=False)
    ] = None,
    metrics_host: Annotated[str, typer.Option("--metrics-host", help="Address of the metrics.")] = "127.0.0.1",
    metrics_insecure: Annotated[bool, typer.Option("--metrics-insecure", help="Serve metrics on a non-loopback address.")] = False,
    health_port: Annotated[
        int | None, typer.Option("--health-port", help="Port of a plaintext health service, for probes without TLS.", show_default=False)
    ] = None,
    http: Annotated[
        str | None,
        typer.Option("--http", metavar="HOST:PORT", help="Serve HTTP too: REST, OpenAI-compatible calls.", show_default=False),
    ] = None,
    reflection: Annotated[bool, typer.Option("--reflection/--no-reflection", help="Serve gRPC reflection.")] = True,
    traces: Annotated[
        bool, typer.Option("--traces", help="Export OpenTelemetry spans to OTEL_EXPORTER_OTLP_ENDPOINT; needs the extra traces.")
    ] = False,
    deadline: Annotated[float, typer.Option("--deadline", help="Maximum duration of a call, in seconds.")] = 300.0,
    lame_duck: Annotated[float, typer.Option("--lame-duck", help="Seconds between reporting NOT_SERVING and refusing new calls.")] = 1.0,
    grace: Annotated[float, typer.Option("--grace", help="Seconds to finish accepted work after SIGTERM.")] = 30.0,
    watermark: WatermarkOption = True,
    watermark_key: WatermarkKeyOption = None,
    sign_cert: SignCertOption = None,
    sign_key: SignKeyOption = None,
    quiet: QuietOption = False,
) -> int:
    """Serve the model over gRPC and, with --http, HTTP; SIGTERM or Ctrl-C finishes accepted work, a second signal exits immediately."""
    from f2edge.server.engine_protocol import open_served
    from f2edge.server.logs import log_as_json
    from f2edge.server.settings import ServerSettings

    http_host, http_port = _http_address(http)
    settings = ServerSettings(
        host=host,
        port=port,
        insecure=insecure,
        tls_cert=tls_cert,
        tls_key=tls_key,
        client_ca=client_ca,
        token_file=token_file,
        metrics_host=metrics_host,
        metrics_port=metrics_port,
        metrics_insecure=metrics_insecure,
        health_port=health_port,
        http_host=http_host,
        http_port=http_port,
        reflection=reflection,
        traces=traces,
        deadline_s=deadline,
        lame_duck_s=lame_duck,
        grace_s=grace,
    )
    mark, signer = chosen_watermark(watermark, watermark_key), chosen_signer(sign_cert, sign_key)
    opened = open_bundle(bundle, backend, threads)
    log_as_json(level="WARNING" if quiet else "INFO")
    if mark is None:
        logger.warning("pictures are not watermarked (--no-watermark)")
    return asyncio.run(_serve(settings, lambda: open_served(opened, backend, threads, mark, signer)))


def studio(
    *,
    bundle: BundleOption = "nano",
    backend: BackendOption = "auto",
    threads: ThreadsOption = None,
    port: Annotated[int, typer.Option("--port", help="TCP port of the page; 0 selects a free one.")] = 8080,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page.")] = True,
) -> int:
    """Serve the model on this machine and open the studio, its page, in the browser."""
    from f2edge.server.engine_protocol import open_served
    from f2edge.server.logs import log_as_json
    from f2edge.server.settings import ServerSettings

    def show(server: FaceServer) -> None:
        _announce(server)
        if browser:
            threading.Thread(target=webbrowser.open, args=(server.http_address,), daemon=True).start()  # some browsers block

    settings = ServerSettings(port=0, http_port=port, lame_duck_s=0.0, grace_s=5.0)
    opened = open_bundle(bundle, backend, threads)
    log_as_json(level="WARNING")
    return asyncio.run(_serve(settings, lambda: open_served(opened, backend, threads), show))


def _http_address(given: str | None) -> tuple[str, int | None]:
    """Return the host and port of --http."""
    if given is None:
        return "127.0.0.1", None
    host, colon, port = given.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and len(port) <= 5):
        from f2edge.errors import InputError

        raise InputError(f"--http {given[:200]}: is not HOST:PORT; give an address such as 127.0.0.1:8080")
    return host, int(port)


def token(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the token's holder.", show_default=False)],
    *,
    token_file: Annotated[Path, typer.Option("--token-file", metavar="FILE", help="File to which its hash is appended.")] = Path(
        "tokens.txt"
    ),
    json: JsonOption = False,
) -> None:
    """Create a bearer token for `serve --token-file`; it is shown only once."""
    from f2edge.server.tokens import new_token

    made = new_token(token_file, name)
    printer = output(json, quiet=False)
    printer.document({"name": name, "token": made, "file": str(token_file)})
    printer.line(made)


async def _serve(settings: ServerSettings, load: Any, started: Callable[[FaceServer], None] | None = None) -> int:
    from f2edge.server.lifecycle import LAST_S
    from f2edge.server.lifecycle import serve as run

    sys.setswitchinterval(SWITCH_S)
    few_heaps()
    loop, stop = asyncio.get_running_loop(), asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            os._exit(_AT_ONCE)
        stop.set()
        _end_within(settings.lame_duck_s + settings.grace_s + LAST_S)  # whatever hangs

    watch_signals(loop, on_signal)
    return await run(settings, load, stop, started or _announce, lambda: _end_within(_UNREACHABLE_S))


def watch_signals(loop: asyncio.AbstractEventLoop, on_signal: Callable[[], None]) -> None:
    """Call a function in the loop at SIGTERM and Ctrl-C; also where loops take no signals, as on Windows."""
    for number in _SIGNALS:
        try:
            loop.add_signal_handler(number, on_signal)
        except RuntimeError:  # of which Windows raises a kind
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(on_signal))


def _end_within(seconds: float) -> None:
    """End the process after so many seconds if it is still there, saying where it hangs."""

    def end() -> None:
        faulthandler.dump_traceback()
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


def _announce(server: FaceServer) -> None:
    """Print the address on one line, which scripts can wait for."""
    sys.stdout.write(f"f2edge serves on {server.address}\n")
    if server.http_address is not None:
        sys.stdout.write(f"f2edge serves on {server.http_address}\n")
    sys.stdout.flush()
