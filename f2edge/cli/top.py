"""``f2edge top``: a server's metrics in the terminal, from its Prometheus endpoint."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from itertools import islice
from math import isfinite, isnan
from threading import Timer
from typing import TYPE_CHECKING, Annotated

import typer

from f2edge.cli.options import JsonOption, output
from f2edge.errors import InputError, ServerUnavailableError
from f2edge.text import one_line
from f2edge.transport import is_loopback

if TYPE_CHECKING:
    from rich.console import RenderableType

_TIMEOUT_S, _DEADLINE_S = 5.0, 15.0
#: Values of a label that are shown; a server has fewer.
_MOST_VALUES = 64
_LARGEST_BYTES = 4 << 20
_PRIORITIES = ("live", "normal", "background")
#: Name and labels of a sample.
SampleKey = tuple[str, tuple[tuple[str, str], ...]]


@dataclass(frozen=True)
class Scrape:
    """Samples of one scrape."""

    samples: Mapping[SampleKey, float]
    at_s: float

    def value(self, name: str, **labels: str) -> float:
        """Return one sample; 0 if absent."""
        return self.samples.get((name, tuple(sorted(labels.items()))), 0.0)

    def total(self, name: str, **labels: str) -> float:
        """Return the sum of the samples that have at least these labels."""
        wanted = set(labels.items())
        return sum(value for (found, pairs), value in self.samples.items() if found == name and wanted <= set(pairs))

    def labels(self, name: str, label: str) -> list[str]:
        """Return the values of a label, in the order of the page."""
        found = (dict(pairs).get(label) for key, pairs in self.samples if key == name)
        return list(islice(dict.fromkeys(value for value in found if value is not None), _MOST_VALUES))

    def quantile_ms(self, name: str, share: float, **labels: str) -> float | None:
        """Return the upper edge in ms of the bucket that holds a quantile; None if nothing was observed."""
        buckets: dict[float, float] = {}
        wanted = set(labels.items())
        for (found, pairs), value in self.samples.items():
            if found == f"{name}_bucket" and wanted <= set(pairs):
                edge = _edge(dict(pairs).get("le", ""))
                if edge is None:
                    continue
                buckets[edge] = buckets.get(edge, 0.0) + value
        count = max(buckets.values(), default=0.0)
        return next((1e3 * edge for edge in sorted(buckets) if count and buckets[edge] >= share * count), None)


def top(
    server: Annotated[
        str, typer.Argument(metavar="HOST:PORT|URL", help="Address of `serve --metrics-port` or `--http`; https://… and F2EDGE_TOKEN too.")
    ] = "127.0.0.1:9090",
    *,
    every: Annotated[float, typer.Option("--every", help="Seconds between two scrapes.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Scrape once and exit.")] = False,
    json: JsonOption = False,
) -> None:
    """Show a server's calls, latency, queues and steps."""
    from rich.console import Console
    from rich.live import Live

    if not 0.1 <= every <= 3600:
        raise InputError(f"--every {every}: must lie in 0.1 … 3600 seconds")
    before = after = scrape(server)
    if once or json:
        output(json, quiet=False).document(summary(after))
        if not json:
            Console().print(render(after, after))
        return
    with Live(render(before, after), console=Console(), screen=False, auto_refresh=False) as live:
        while True:
            time.sleep(every)
            before, after = after, scrape(server)
            live.update(render(before, after), refresh=True)


def scrape(server: str) -> Scrape:
    """Return a server's current metrics.

    Raises:
        InputError: malformed address.
        ServerUnavailableError: no answer, or not the metrics page of an f2edge server.
    """
    from prometheus_client.parser import text_string_to_metric_families

    secure = server.startswith("https://")
    host, _, port = server.removeprefix("http://").removeprefix("https://").rstrip("/").rpartition(":")
    if not host or not (port.isdecimal() and 1 <= int(port[:6]) <= 65535):
        raise InputError(f"{server[:100]!r}: give HOST:PORT of the metrics, as set by `f2edge serve --metrics-port` or `--http`")
    try:
        families = list(text_string_to_metric_families(_page(host.strip("[]"), int(port), secure=secure)))
    except Exception as error:  # the page is untrusted, and the parser raises errors of many classes
        raise _no_metrics(host, port, type(error).__name__) from error
    if not any(family.name.startswith("f2edge_") for family in families):
        raise _no_metrics(host, port, "another server's page")
    samples = {
        (s.name, tuple(sorted((label, one_line(value)) for label, value in s.labels.items()))): float(s.value)
        for family in families
        for s in family.samples
        if isfinite(s.value)
    }
    return Scrape(samples, time.monotonic())


def _page(host: str, port: int, *, secure: bool) -> str:
    """Return the text of a metrics page; raises for one that is not whole after :data:`_DEADLINE_S`."""
    import ssl
    from http.client import HTTPConnection, HTTPException, HTTPSConnection

    token = os.environ.get("F2EDGE_TOKEN")
    connection: HTTPConnection
    if secure:
        trusted = ssl.create_default_context(cafile=os.environ.get("F2EDGE_CA_FILE"))
        connection = HTTPSConnection(host, port, timeout=_TIMEOUT_S, context=trusted)
    else:
        connection = HTTPConnection(host, port, timeout=_TIMEOUT_S)
    connection.connect()
    timer = Timer(_DEADLINE_S, connection.sock.shutdown, (socket.SHUT_RDWR,))
    timer.daemon = True
    timer.start()
    try:
        # A token goes over TLS or to this machine only.
        headers = {"Authorization": f"Bearer {token}"} if token and (secure or is_loopback(host)) else {}
        connection.request("GET", "/metrics", headers=headers)
        response = connection.getresponse()
        if response.status != HTTPStatus.OK:
            raise HTTPException(response.reason)
        return response.read(_LARGEST_BYTES).decode()
    finally:
        timer.cancel()
        connection.close()


def _edge(text: str) -> float | None:
    """Return the upper edge of a bucket; None if it is not a number."""
    try:
        edge = float(text)
    except ValueError:
        return None
    return None if isnan(edge) else edge


def _no_metrics(host: str, port: str, why: str) -> ServerUnavailableError:
    return ServerUnavailableError(f"no metrics at http://{host}:{port}/metrics ({why}); start the server with --metrics-port {port}")


def summary(found: Scrape) -> dict[str, object]:
    """Return the metrics as a JSON document; a quantile is None if nothing was observed or it exceeds five minutes."""
    return {
        "model": next(iter(found.labels("f2edge_model_info", "model")), None),
        "calls": {
            method: {
                "open": int(found.value("f2edge_open_calls", method=method)),
                "ended": {
                    code: int(count)
                    for code in found.labels("f2edge_requests_total", "code")
                    if (count := found.value("f2edge_requests_total", method=method, code=code))
                },
                "p50_ms": _finite(found.quantile_ms("f2edge_request_seconds", 0.5, method=method)),
                "p99_ms": _finite(found.quantile_ms("f2edge_request_seconds", 0.99, method=method)),
            }
            for method in found.labels("f2edge_open_calls", "method")
        },
        "queued": {priority: int(found.value("f2edge_queue_depth", priority=priority)) for priority in _PRIORITIES},
        "running": {priority: int(found.value("f2edge_running", priority=priority)) for priority in _PRIORITIES},
        "steps": int(found.value("f2edge_steps_total")),
        "wasted_steps": int(found.value("f2edge_wasted_steps_total")),
        "rejected": int(found.total("f2edge_rejected_total")),
        "heartbeat_age_ms": round(1e3 * found.value("f2edge_engine_heartbeat_age_seconds"), 1),
    }


def render(before: Scrape, after: Scrape) -> RenderableType:
    """Return tables for the terminal; rates refer to the time between the two scrapes."""
    from rich.console import Group
    from rich.text import Text

    seconds = max(after.at_s - before.at_s, 1e-9) if after is not before else None

    def rate(name: str, **labels: str) -> str:
        return "" if seconds is None else f"{(after.total(name, **labels) - before.total(name, **labels)) / seconds:.1f}"

    calls = [
        (
            method,
            f"{after.value('f2edge_open_calls', method=method):.0f}",
            rate("f2edge_requests_total", method=method),
            f"{after.total('f2edge_requests_total', method=method):.0f}",
            f"{_failures(after, method):.0f}",
            _ms(after.quantile_ms("f2edge_request_seconds", 0.5, method=method)),
            _ms(after.quantile_ms("f2edge_request_seconds", 0.99, method=method)),
            _ms(after.quantile_ms("f2edge_first_token_seconds", 0.5, method=method)),
        )
        for method in after.labels("f2edge_open_calls", "method")
    ]
    priorities = [
        (priority, f"{after.value('f2edge_queue_depth', priority=priority):.0f}", f"{after.value('f2edge_running', priority=priority):.0f}")
        for priority in _PRIORITIES
    ]
    tasks = [
        (
            task,
            rate("f2edge_step_seconds_count", task=task),
            _mean(after, "f2edge_step_seconds", 1e3, "ms", task=task),
            _mean(after, "f2edge_batch_size", 1.0, "", task=task),
        )
        for task in after.labels("f2edge_step_seconds_count", "task")
    ]
    model = ", ".join(after.labels("f2edge_model_info", "model")) or "loading"
    age_ms = 1e3 * after.value("f2edge_engine_heartbeat_age_seconds")
    rejected, wasted = after.total("f2edge_rejected_total"), after.value("f2edge_wasted_steps_total")
    return Group(
        Text(f"{model} · heartbeat {age_ms:.0f} ms ago · {rejected:.0f} refused · {wasted:.0f} steps wasted"),
        _table(("call", ">open", ">per s", ">ended", ">failed", ">p50", ">p99", ">first"), calls),
        _table(("priority", ">queued", ">running"), priorities),
        _table(("work", ">per s", ">mean", ">rows"), tasks),
    )


def _failures(found: Scrape, method: str) -> float:
    everything = found.total("f2edge_requests_total", method=method)
    return everything - found.value("f2edge_requests_total", method=method, code="OK")


def _finite(value: float | None) -> float | None:
    """Return None for infinity, which JSON lacks."""
    return None if value is None or value == float("inf") else value


def _ms(value: float | None) -> str:
    return "" if value is None else "> 5 min" if value == float("inf") else f"≤ {value:g} ms"


def _mean(found: Scrape, name: str, scale: float, unit: str, **labels: str) -> str:
    count = found.total(f"{name}_count", **labels)
    return f"{scale * found.total(f'{name}_sum', **labels) / count:.1f} {unit}".rstrip() if count else ""


def _table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column.lstrip(">"), justify="right" if column.startswith(">") else "left")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table
