"""Figures for Prometheus: calls counted as they end, the engine's own counters copied when somebody looks.

Every name begins with ``f2edge_``, times are in seconds, no label has more values than the contract has names.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from socketserver import ThreadingMixIn
from threading import BoundedSemaphore, Thread, Timer
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from f2edge.engine.requests import EngineStats, Timings
from f2edge.errors import InputError
from f2edge.server.rpc import SERVICE, Call
from f2edge.wire import ModelFacts

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_CODES = ("OK", "CANCELLED", "DEADLINE_EXCEEDED", "INTERNAL", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "UNAVAILABLE")
_ROWS = (1, 2, 4, 8, 16, 32, 64)
#: Connections of scrapers at once, and how long each may last in seconds; more are closed unanswered.
MOST_SCRAPES, LONGEST_S = 8, 10.0


class Metrics:
    """The figures of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        methods = [method.name for method in SERVICE.methods]
        self._requests = Counter("f2edge_requests", "Calls that have ended.", ("method", "code"), registry=self.registry)
        self._seconds = self._histogram("f2edge_request_seconds", "From the start of a call to its end.", ("method",))
        self._first = self._histogram("f2edge_first_token_seconds", "From the start of a streaming call to its first message.", ("method",))
        self._queue = self._histogram("f2edge_queue_seconds", "From acceptance by the engine to the first run.", ("method",))
        self._open = Gauge("f2edge_open_calls", "Calls in progress.", ("method",), registry=self.registry)
        self._dropped = Counter("f2edge_frames_dropped", "Frames replaced by a later one.", registry=self.registry)
        self._frames = Counter("f2edge_frames", "Frames answered.", registry=self.registry)
        self.denied = Counter("f2edge_denied", "Calls turned away for want of a token.", registry=self.registry)
        self.ready = Gauge("f2edge_ready", "1 where calls are welcome.", registry=self.registry)
        self.loop_lag = Gauge("f2edge_event_loop_lag_seconds", "How late the loop woke up last.", registry=self.registry)
        for method in methods:
            self._open.labels(method)
            for code in _CODES:
                self._requests.labels(method, code)

    def call_started(self, method: str) -> None:
        self._open.labels(method).inc()

    def call_ended(self, call: Call, code: str, now: float) -> None:
        self._open.labels(call.method).dec()
        self._requests.labels(call.method, code).inc()
        self._seconds.labels(call.method).observe(now - call.started)
        if call.first_sent is not None:
            self._first.labels(call.method).observe(call.first_sent - call.started)

    def engine_finished(self, method: str, timings: Timings) -> None:
        """A request of the engine has ended with a result."""
        self._queue.labels(method).observe(timings.queued_ms / 1e3)

    def frame_answered(self, dropped: int) -> None:
        """A frame of a stream has been answered, ``dropped`` before it never will be."""
        self._frames.inc()
        self._dropped.inc(dropped)

    def watch(self, facts: ModelFacts, stats: Callable[[], EngineStats], heartbeat_age_ms: Callable[[], float]) -> None:
        """Copy an engine's counters at every look."""
        self.registry.register(EngineCollector(facts, stats, heartbeat_age_ms))

    def serve(self, host: str, port: int) -> tuple[Callable[[], None], int]:
        """Answer ``http://host:port/metrics`` from a thread; returns how to stop that, and the port.

        Raises:
            InputError: the address cannot be bound.
        """
        try:
            return serve_metrics(self.registry, host, port)
        except OSError as error:
            raise InputError(f"--metrics-port {port}: {host} cannot be bound ({error.strerror}); choose another") from error

    def _histogram(self, name: str, text: str, labels: tuple[str, ...]) -> Histogram:
        return Histogram(name, text, labels, buckets=_SECONDS, registry=self.registry)


class EngineCollector(Collector):
    """An engine's counters as metrics."""

    def __init__(self, facts: ModelFacts, stats: Callable[[], EngineStats], heartbeat_age_ms: Callable[[], float]) -> None:
        self._facts = facts
        self._stats = stats
        self._heartbeat_age_ms = heartbeat_age_ms

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        info = GaugeMetricFamily("f2edge_model_info", "The model served; always 1.", labels=("model", "version", "backend"))
        info.add_metric((self._facts.name, self._facts.f2edge_version, self._facts.backend), 1)
        yield info
        yield GaugeMetricFamily("f2edge_engine_heartbeat_age_seconds", "Since the engine was last seen.", self._heartbeat_age_ms() / 1e3)
        yield _gauge("f2edge_queue_depth", "Accepted, nothing run yet.", "priority", stats.queued)
        yield _gauge("f2edge_running", "In progress.", "priority", stats.running)
        seconds = {kind: ms / 1e3 for kind, ms in stats.work_ms.items()}
        yield _gauge("f2edge_work_seconds", "Engine time still to be spent, estimated.", "class", seconds)
        yield _counter("f2edge_accepted", "Requests that the engine took.", "request", stats.accepted)
        yield _counter("f2edge_done", "Requests that ended with a result.", "request", stats.done)
        yield _counter("f2edge_failed", "Requests that ended without a result.", "reason", stats.failed)
        yield _counter("f2edge_rejected", "Requests that the engine refused.", "reason", stats.rejected)
        yield _counter("f2edge_cancelled", "Requests cancelled or expired.", "stage", stats.cancelled_at)
        yield CounterMetricFamily("f2edge_steps", "Decoding steps of images, counted by row.", stats.image_steps)
        yield CounterMetricFamily("f2edge_wasted_steps", "Those of images that were never finished.", stats.wasted_steps)
        yield CounterMetricFamily("f2edge_preemptions", "Times that work of a lower lane had to wait.", stats.preemptions)
        yield CounterMetricFamily("f2edge_engine_faults", "Forward passes that failed.", stats.faults)
        yield CounterMetricFamily("f2edge_degraded", "Results with fewer steps than asked for.", stats.degraded)
        yield _counter("f2edge_prefix_hits", "Prefixes found in memory.", "of", {"image": stats.prefix_hits, "prompt": stats.prompt_hits})
        yield _counter("f2edge_prefix_misses", "Prefixes computed.", "of", {"image": stats.prefix_misses, "prompt": stats.prompt_misses})
        steps = SummaryMetricFamily("f2edge_step_seconds", "Engine time of units of work.", labels=("task",))
        for stage, turns in stats.turns.items():
            steps.add_metric((stage,), turns, stats.turn_ms.get(stage, 0.0) / 1e3)
        yield steps
        yield _batches(stats.rows)


def _gauge(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=(label,))
    for key, value in values.items():
        family.add_metric((key,), value)
    return family


def _counter(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(name, text, labels=(label,))
    for key, value in values.items():
        family.add_metric((key,), value)
    return family


def _batches(rows: Mapping[str, Mapping[int, int]]) -> Metric:
    family = HistogramMetricFamily("f2edge_batch_size", "Rows of one forward pass.", labels=("task",))
    for stage, counts in rows.items():
        buckets = [(str(float(size)), float(sum(n for row, n in counts.items() if row <= size))) for size in _ROWS]
        everything = float(sum(counts.values()))
        family.add_metric((stage,), [*buckets, ("+Inf", everything)], sum(row * n for row, n in counts.items()))
    return family


# HTTP ---------------------------------------------------------------------------------------------------------------------------------


class _Handler(WSGIRequestHandler):
    timeout = LONGEST_S

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Log nothing: request lines are untrusted."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._slots = BoundedSemaphore(MOST_SCRAPES)
        super().__init__(*arguments, **options)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._slots.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        timer = Timer(LONGEST_S, _cut, (request,))
        timer.daemon = True
        timer.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            timer.cancel()
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report nothing: a scraper that goes away is no error of the server."""


def serve_metrics(registry: CollectorRegistry, host: str, port: int) -> tuple[Callable[[], None], int]:
    """Serve ``http://host:port/metrics`` from threads; return a function that stops it, and the port (of port 0, the one chosen).

    Raises:
        OSError: the address cannot be bound.
    """
    family = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0][0]
    kind = type("_FamilyServer", (_Server,), {"address_family": family})
    server: WSGIServer = make_server(host.strip("[]"), port, make_wsgi_app(registry), kind, _Handler)
    thread = Thread(target=server.serve_forever, name="f2edge-metrics", daemon=True)
    thread.start()

    def stop() -> None:
        server.shutdown()
        server.socket.close()
        thread.join()

    return stop, int(server.server_port)


def _cut(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
