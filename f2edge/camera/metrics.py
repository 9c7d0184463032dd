"""Camera metrics for Prometheus, as text for a node exporter's folder or by HTTP on the loopback address.

Ages cover the whole run; counters only grow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from f2edge.errors import OutputError

#: Help text of each metric; those in ``_COUNTED`` are counters.
HELP: Mapping[str, str] = {
    "seconds": "Seconds since the first frame.",
    "frames": "Frames shown.",
    "frames_per_second": "Frames shown, on average over the run.",
    "dropped": "Frames replaced by a newer one before they were processed.",
    "connections": "Connections of the source that delivered a frame.",
    "frame_age_ms_p50": "From capture to display, median.",
    "frame_age_ms_p99": "From capture to display, 99th percentile.",
    "answer_age_ms_p50": "From the capture that an answer is about to its display, median.",
    "answer_age_ms_p99": "From the capture that an answer is about to its display, 99th percentile.",
    "good_faces": "Faces of good quality, counted in every frame.",
    "model_calls": "Analysis calls of the model.",
    "faces_asked": "Faces analyzed in them.",
    "questions_asked": "Questions asked.",
    "asked_per_good_face": "Share of the good faces that were analyzed.",
    "accuracy": "Share of the displayed attributes that are correct (demo only).",
}
_COUNTED = ("frames", "dropped", "connections", "good_faces", "model_calls", "faces_asked", "questions_asked")


class CameraMetrics:
    """Latest metrics of one camera.

    Args:
        camera: label of every sample, without credentials.
    """

    def __init__(self, camera: str) -> None:
        self._camera = camera
        self._stats: Mapping[str, float | int | None] = {}
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._stop: Callable[[], None] = lambda: None

    def update(self, stats: Mapping[str, float | int | None]) -> None:
        """Replace the current values."""
        self._stats = dict(stats)

    def collect(self) -> Iterable[Metric]:
        """Yield the metrics for the registry, without unknown values."""
        for name, value in self._stats.items():
            if value is not None:
                family = CounterMetricFamily if name in _COUNTED else GaugeMetricFamily
                metric = family(f"f2edge_camera_{name}", HELP[name], labels=["camera"])
                metric.add_metric([self._camera], float(value))
                yield metric

    def text(self) -> str:
        """Return the metrics in Prometheus' text format."""
        return generate_latest(self._registry).decode("utf-8")

    def serve(self, port: int, address: str = "127.0.0.1") -> int:
        """Serve scrapes by HTTP until :meth:`close` and return the port; port 0 selects a free one.

        Raises:
            OutputError: the port is taken.
        """
        from f2edge.server.metrics import serve_metrics

        try:
            self._stop, chosen = serve_metrics(self._registry, address, port)
        except OSError as error:
            raise OutputError(f"--metrics-port {port}: {error.strerror}; choose another") from error
        return chosen

    def close(self) -> None:
        """End serving; idempotent."""
        self._stop()
        self._stop = lambda: None
