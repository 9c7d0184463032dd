"""HTTP endpoint of Prometheus metrics with bounded threads: idle and slow scrapers cannot collect.

At most :data:`MOST_SCRAPES` connections are open at once, each for at most :data:`LONGEST_S` seconds; more are closed unanswered.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from socketserver import ThreadingMixIn
from threading import BoundedSemaphore, Thread, Timer
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

MOST_SCRAPES, LONGEST_S = 8, 10.0


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
