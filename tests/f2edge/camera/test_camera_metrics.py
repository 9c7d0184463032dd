"""Camera metrics for Prometheus: names that last, counters that count, a page that can be scraped, and a port that is taken."""

from __future__ import annotations

import socket
from threading import Thread
from time import monotonic, sleep
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from f2edge.camera.loop import RunStats
from f2edge.camera.metrics import HELP, CameraMetrics
from f2edge.camera.run import ModelInput, Request, run
from f2edge.camera.source.url import parse_source
from f2edge.errors import OutputError
from f2edge.spec.attributes import F2EDGE_SCHEMA
from tests.support.camera_fake import NAMES, ScriptedModel

pytestmark = pytest.mark.runtime


class Asked:
    calls, faces, questions = 3, 4, 0


def test_every_figure_of_a_summary_has_a_name_and_a_meaning() -> None:
    stats = RunStats(0.0).document(Asked())  # type: ignore[arg-type]
    assert set(stats) == set(HELP)


def test_the_text_is_well_formed_and_leaves_out_what_is_unknown() -> None:
    metrics = CameraMetrics('a "camera" \\ with\nquotes')
    metrics.update({"frames": 7, "accuracy": None, "frame_age_ms_p50": 12.5})
    families = {family.name: family for family in text_string_to_metric_families(metrics.text())}
    assert set(families) == {"f2edge_camera_frames", "f2edge_camera_frame_age_ms_p50"}
    assert families["f2edge_camera_frames"].type == "counter"
    (sample,) = families["f2edge_camera_frame_age_ms_p50"].samples
    assert (sample.value, sample.labels["camera"]) == (12.5, 'a "camera" \\ with\nquotes')


def test_a_run_can_be_scraped_while_it_lasts_and_no_longer() -> None:
    pages: list[str] = []
    addresses: list[str] = []

    def on_event(kind: str, reason: str) -> None:
        if kind == "metrics":
            addresses.append(reason)

    def scrape() -> None:
        end = monotonic() + 20
        while monotonic() < end and not any("frames_total" in page for page in pages):
            if addresses:
                with urlopen(addresses[0], timeout=5) as page:
                    pages.append(page.read().decode("utf-8"))
            sleep(0.05)

    scraper = Thread(target=scrape)
    scraper.start()
    request = Request(
        url=parse_source("demo"), detector="given", attributes=NAMES, size_wh=(160, 96), max_fps=10, duration_s=2.5, metrics_port=0
    )
    run(request, ScriptedModel(), ModelInput(F2EDGE_SCHEMA, None, 128), None, on_event)
    scraper.join()
    assert 'f2edge_camera_frames_total{camera="demo"}' in pages[-1]
    with pytest.raises(OSError, match="refused"):
        urlopen(addresses[0], timeout=2)


def test_a_taken_port_is_refused() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OutputError, match="--metrics-port"):
            CameraMetrics("demo").serve(taken.getsockname()[1])
