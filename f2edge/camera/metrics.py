"""Rates and ages for Prometheus: as text for a node exporter's folder, or served by HTTP on this machine.

Ages are those of the whole run so far; counters only grow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from f2edge.errors import OutputError

#: What each figure of a summary is, for people who read a dashboard; those in ``_COUNTED`` only grow.
HELP: Mapping[str, str] = {
    "seconds": "Since the first frame.",
    "frames": "Frames shown.",
    "frames_per_second": "Frames shown, on average over the run.",
    "dropped": "Frames that a newer one replaced before anybody looked at them.",
    "connections": "How often the source gave a first frame.",
    "frame_age_ms_p50": "From capture to display, median.",
    "frame_age_ms_p99": "From capture to display, 99th percentile.",
    "answer_age_ms_p50": "From the capture that an answer is about to its display, median.",
    "answer_age_ms_p99": "From the capture that an answer is about to its display, 99th percentile.",
    "good_faces": "Faces of good quality, counted in every frame.",
    "model_calls": "Calls of the model for attributes.",
    "faces_asked": "Faces asked about in them.",
    "questions_asked": "Questions asked in words.",
    "asked_per_good_face": "Share of the good faces that the model was asked about.",
    "accuracy": "Share of the attributes shown that are what the source knows to be true (demo only).",
}
_COUNTED = ("frames", "dropped", "connections", "good_faces", "model_calls", "faces_asked", "questions_asked")


class Metrics:
    """The latest figures of one camera.

    Args:
        camera: label of every sample; without credentials.
    """

    def __init__(self, camera: str) -> None:
        self._camera = camera
        self._figures: Mapping[str, float | int | None] = {}
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._server: Any = None

    def update(self, figures: Mapping[str, float | int | None]) -> None:
        """Take the figures of now."""
        self._figures = dict(figures)

    def collect(self) -> Iterable[Metric]:
        """For the registry; what is not known yet is left out."""
        for name, value in self._figures.items():
            if value is not None:
                family = CounterMetricFamily if name in _COUNTED else GaugeMetricFamily
                metric = family(f"f2edge_camera_{name}", HELP[name], labels=["camera"])
                metric.add_metric([self._camera], float(value))
                yield metric

    def text(self) -> str:
        """The exposition format."""
        return generate_latest(self._registry).decode("utf-8")

    def serve(self, port: int, address: str = "127.0.0.1") -> int:
        """Answer scrapes by HTTP until :meth:`close`; port 0 takes a free one, which is returned.

        Raises:
            OutputError: the port is taken.
        """
        try:
            self._server, _ = start_http_server(port, address, self._registry)
        except OSError as error:
            raise OutputError(f"--metrics-port {port}: {error.strerror}; choose another") from error
        return int(self._server.server_port)

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
