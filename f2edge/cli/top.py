"""``f2edge top``: a server's figures in the terminal, from its Prometheus endpoint."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from f2edge.cli.options import JsonOption, output
from f2edge.errors import InputError, ServerUnavailableError

if TYPE_CHECKING:
    from rich.console import RenderableType

_TIMEOUT_S = 5.0
_LARGEST_BYTES = 4 << 20
_LANES = ("live", "normal", "background")
#: Name and labels of a sample.
Key = tuple[str, tuple[tuple[str, str], ...]]


@dataclass(frozen=True)
class Figures:
    """The samples of one look."""

    samples: Mapping[Key, float]
    at_s: float

    def value(self, name: str, **labels: str) -> float:
        """One sample; 0 where it is not there."""
        return self.samples.get((name, tuple(sorted(labels.items()))), 0.0)

    def total(self, name: str, **labels: str) -> float:
        """Sum of the samples that have these labels among theirs."""
        wanted = set(labels.items())
        return sum(value for (found, pairs), value in self.samples.items() if found == name and wanted <= set(pairs))

    def labels(self, name: str, label: str) -> list[str]:
        """Values of a label, in the order of the document."""
        found = (dict(pairs).get(label) for key, pairs in self.samples if key == name)
        return list(dict.fromkeys(value for value in found if value is not None))

    def quantile_ms(self, name: str, share: float, **labels: str) -> float | None:
        """Upper edge of the bucket that holds the quantile, None where nothing was observed."""
        buckets: dict[float, float] = {}
        wanted = set(labels.items())
        for (found, pairs), value in self.samples.items():
            if found == f"{name}_bucket" and wanted <= set(pairs):
                edge = float(dict(pairs)["le"])
                buckets[edge] = buckets.get(edge, 0.0) + value
        count = max(buckets.values(), default=0.0)
        return next((1e3 * edge for edge in sorted(buckets) if count and buckets[edge] >= share * count), None)


def top(
    server: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Where `serve --metrics-port` answers.")] = "127.0.0.1:9090",
    *,
    every: Annotated[float, typer.Option("--every", help="Seconds between two looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Look once and end.")] = False,
    json: JsonOption = False,
) -> None:
    """Watch a server: calls, latency, queues, steps."""
    from rich.console import Console
    from rich.live import Live

    if not 0.1 <= every <= 3600:
        raise InputError(f"--every {every}: must lie in 0.1 … 3600 seconds")
    before = after = look(server)
    if once or json:
        output(json, quiet=False).document(summary(after))
        if not json:
            Console().print(render(after, after))
        return
    with Live(render(before, after), console=Console(), screen=False, auto_refresh=False) as live:
        while True:
            time.sleep(every)
            before, after = after, look(server)
            live.update(render(before, after), refresh=True)


def look(server: str) -> Figures:
    """A server's figures of now.

    Raises:
        InputError: no address.
        ServerUnavailableError: nobody answers there, or with something else.
    """
    from http.client import HTTPConnection, HTTPException

    from prometheus_client.parser import text_string_to_metric_families

    host, _, port = server.removeprefix("http://").rstrip("/").rpartition(":")
    if not host or not (port.isdecimal() and 1 <= int(port[:6]) <= 65535):
        raise InputError(f"{server[:100]!r}: give HOST:PORT of the metrics, as of `f2edge serve --metrics-port`")
    connection = HTTPConnection(host.strip("[]"), int(port), timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read(_LARGEST_BYTES).decode()
        families = list(text_string_to_metric_families(text))
    except (OSError, HTTPException, ValueError) as error:
        raise _no_figures(host, port, type(error).__name__) from error
    finally:
        connection.close()
    if not any(family.name.startswith("f2edge_") for family in families):
        raise _no_figures(host, port, "another server's page")
    samples = {(s.name, tuple(sorted(s.labels.items()))): float(s.value) for family in families for s in family.samples}
    return Figures(samples, time.monotonic())


def _no_figures(host: str, port: str, why: str) -> ServerUnavailableError:
    return ServerUnavailableError(f"no figures at http://{host}:{port}/metrics ({why}); start the server with --metrics-port {port}")


def summary(figures: Figures) -> dict[str, object]:
    """The same as numbers; a quantile is None where nothing was observed, or nothing below five minutes."""
    return {
        "model": next(iter(figures.labels("f2edge_model_info", "model")), None),
        "calls": {
            method: {
                "open": int(figures.value("f2edge_open_calls", method=method)),
                "ended": {
                    code: int(count)
                    for code in figures.labels("f2edge_requests_total", "code")
                    if (count := figures.value("f2edge_requests_total", method=method, code=code))
                },
                "p50_ms": _finite(figures.quantile_ms("f2edge_request_seconds", 0.5, method=method)),
                "p99_ms": _finite(figures.quantile_ms("f2edge_request_seconds", 0.99, method=method)),
            }
            for method in figures.labels("f2edge_open_calls", "method")
        },
        "queued": {lane: int(figures.value("f2edge_queue_depth", priority=lane)) for lane in _LANES},
        "running": {lane: int(figures.value("f2edge_running", priority=lane)) for lane in _LANES},
        "steps": int(figures.value("f2edge_steps_total")),
        "wasted_steps": int(figures.value("f2edge_wasted_steps_total")),
        "rejected": int(figures.total("f2edge_rejected_total")),
        "heartbeat_age_ms": round(1e3 * figures.value("f2edge_engine_heartbeat_age_seconds"), 1),
    }


def render(before: Figures, after: Figures) -> RenderableType:
    """Tables for the terminal; rates are of the time between the two looks."""
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
    lanes = [
        (lane, f"{after.value('f2edge_queue_depth', priority=lane):.0f}", f"{after.value('f2edge_running', priority=lane):.0f}")
        for lane in _LANES
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
        _table(("lane", ">queued", ">running"), lanes),
        _table(("work", ">per s", ">mean", ">rows"), tasks),
    )


def _failures(figures: Figures, method: str) -> float:
    everything = figures.total("f2edge_requests_total", method=method)
    return everything - figures.value("f2edge_requests_total", method=method, code="OK")


def _finite(value: float | None) -> float | None:
    """JSON has no infinity."""
    return None if value is None or value == float("inf") else value


def _ms(value: float | None) -> str:
    return "" if value is None else "> 5 min" if value == float("inf") else f"≤ {value:g} ms"


def _mean(figures: Figures, name: str, scale: float, unit: str, **labels: str) -> str:
    count = figures.total(f"{name}_count", **labels)
    return f"{scale * figures.total(f'{name}_sum', **labels) / count:.1f} {unit}".rstrip() if count else ""


def _table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> RenderableType:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column.lstrip(">"), justify="right" if column.startswith(">") else "left")
    for row in rows:
        table.add_row(*row)
    return table
