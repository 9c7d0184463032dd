"""``f2edge serve`` and ``token``: let others use the model, and who."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
#: What a process that a second signal ended is said to end with.
_AT_ONCE = 130
#: For a server that its own supervisor cannot reach to end by itself.
_UNREACHABLE_S = 0.4
#: Threads that draw, mark and compress take turns with the event loop this often instead of every 5 ms, or health checks wait for several.
SWITCH_S = 0.001

TokenFileOption = Annotated[
    Path | None, typer.Option("--token-file", metavar="FILE", help="Ask for one of these tokens (`f2edge token`).", show_default=False)
]


def serve(
    *,
    bundle: BundleOption = "nano",
    backend: BackendOption = "auto",
    threads: ThreadsOption = None,
    host: Annotated[str, typer.Option("--host", help="An address, or unix:/path.  Beyond this machine it needs TLS.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="0 takes a free one.")] = 8033,
    tls_cert: Annotated[Path | None, typer.Option("--tls-cert", metavar="FILE", help="PEM chain; read again when it changes.")] = None,
    tls_key: Annotated[Path | None, typer.Option("--tls-key", metavar="FILE", help="PEM key.")] = None,
    client_ca: Annotated[
        Path | None, typer.Option("--client-ca", metavar="FILE", help="Ask clients for a certificate signed by it.", show_default=False)
    ] = None,
    token_file: TokenFileOption = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Serve plaintext beyond this machine.")] = False,
    metrics_port: Annotated[
        int | None, typer.Option("--metrics-port", help="Prometheus figures, for `f2edge top` too.", show_default=False)
    ] = None,
    metrics_host: Annotated[str, typer.Option("--metrics-host", help="Their address.")] = "127.0.0.1",
    health_port: Annotated[
        int | None, typer.Option("--health-port", help="Health checks alone, in plaintext, for probes without TLS.", show_default=False)
    ] = None,
    reflection: Annotated[bool, typer.Option("--reflection/--no-reflection", help="Tell tools the contract.")] = True,
    deadline: Annotated[float, typer.Option("--deadline", help="Longest call, in seconds.")] = 300.0,
    lame_duck: Annotated[float, typer.Option("--lame-duck", help="Seconds between 'not ready' and 'no more work'.")] = 1.0,
    grace: Annotated[float, typer.Option("--grace", help="Seconds for accepted work after SIGTERM.")] = 30.0,
    watermark: WatermarkOption = True,
    watermark_key: WatermarkKeyOption = None,
    sign_cert: SignCertOption = None,
    sign_key: SignKeyOption = None,
    quiet: QuietOption = False,
) -> int:
    """Serve the model over gRPC; SIGTERM or Ctrl-C finishes what was accepted, a second one ends at once."""
    from f2edge.server.engine_protocol import open_served
    from f2edge.server.logs import log_as_json
    from f2edge.server.settings import ServerSettings

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
        health_port=health_port,
        reflection=reflection,
        deadline_s=deadline,
        lame_duck_s=lame_duck,
        grace_s=grace,
    )
    mark, signer = chosen_watermark(watermark, watermark_key), chosen_signer(sign_cert, sign_key)
    opened = open_bundle(bundle, backend, threads)
    log_as_json(level="WARNING" if quiet else "INFO")
    if mark is None:
        logger.warning("pictures are not watermarked, as --no-watermark says")
    return asyncio.run(_serve(settings, lambda: open_served(opened, backend, threads, mark, signer)))


def token(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose token it is.", show_default=False)],
    *,
    token_file: Annotated[Path, typer.Option("--token-file", metavar="FILE", help="Where its hash is appended.")] = Path("tokens.txt"),
    json: JsonOption = False,
) -> None:
    """Make a bearer token for `serve --token-file`; it is shown this once."""
    from f2edge.server.tokens import new_token

    made = new_token(token_file, name)
    speak = output(json, quiet=False)
    speak.document({"name": name, "token": made, "file": str(token_file)})
    speak.line(made)


async def _serve(settings: ServerSettings, load: Any) -> int:
    from f2edge.server.lifecycle import LAST_S
    from f2edge.server.lifecycle import serve as run

    sys.setswitchinterval(SWITCH_S)
    loop, stop = asyncio.get_running_loop(), asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            os._exit(_AT_ONCE)
        stop.set()
        _end_within(settings.lame_duck_s + settings.grace_s + LAST_S)  # whatever hangs

    for number in _SIGNALS:
        loop.add_signal_handler(number, on_signal)
    return await run(settings, load, stop, _announce, lambda: _end_within(_UNREACHABLE_S))


def _end_within(seconds: float) -> None:
    """End the process after so many seconds if it is still there, saying where it hangs."""

    def end() -> None:
        faulthandler.dump_traceback()
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


def _announce(server: FaceServer) -> None:
    """One line that a person can read and a script can wait for."""
    sys.stdout.write(f"f2edge serves on {server.address}\n")
    sys.stdout.flush()
