"""Watching a server: the dashboard's metrics exist, HTTP shows them to whom it should, and calls leave spans."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import generate_latest

from f2edge.cli.top import scrape, summary
from f2edge.server.metrics import Metrics
from f2edge.server.tokens import new_token
from f2edge.v1 import face_pb2 as pb
from tests.support.serving import FACTS, SETTINGS, ScriptedEngine, eventually, photo, refused, scripted, serving, stub

ROOT = Path(__file__).parents[3]
HTTP = replace(SETTINGS, http_port=0)
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def served_names() -> set[str]:
    """Names of all samples of a server that has just started, with those that a labelled metric gets on its first use."""
    metrics, engine = Metrics(), ScriptedEngine()
    metrics.watch(FACTS, engine.stats, lambda: 1.0)
    text = generate_latest(metrics.registry).decode()
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    endings = {"histogram": ("_bucket", "_sum", "_count"), "summary": ("_sum", "_count")}
    return {name + ending for name, kind in kinds.items() for ending in endings.get(kind, ("",))}


def test_the_dashboard_asks_for_metrics_that_there_are() -> None:
    board = json.loads((ROOT / "deploy" / "grafana.json").read_text(encoding="utf-8"))
    asked = {name for panel in board["panels"] for target in panel["targets"] for name in re.findall(r"f2edge_\w+", target["expr"])}
    assert len(asked) > 15
    assert asked <= served_names()
    places = [tuple(panel["gridPos"][key] for key in "xy") for panel in board["panels"]]
    assert len(set(places)) == len(places)


def test_http_shows_the_metrics_to_top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = new_token(tmp_path / "tokens.txt", "alice")
    with serving(scripted(ScriptedEngine()), replace(HTTP, token_file=tmp_path / "tokens.txt")) as server:
        address = server.server.http_address
        assert address is not None
        assert httpx.get(f"{address}/metrics", trust_env=False).status_code == 401
        monkeypatch.setenv("F2EDGE_TOKEN", token)
        assert summary(scrape(address))["model"] == "scripted"


def test_beyond_loopback_metrics_need_a_token_or_a_word() -> None:
    for open_, status in ((False, 403), (True, 200)):
        settings = replace(HTTP, http_host="0.0.0.0", insecure=True, metrics_insecure=open_)
        with serving(scripted(ScriptedEngine()), settings) as server:
            assert server.server.http_address is not None
            port = server.server.http_address.rpartition(":")[2].rstrip("/")
            assert httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).status_code == status


def test_calls_of_both_doors_leave_spans_without_content(monkeypatch: pytest.MonkeyPatch) -> None:
    from opentelemetry.exporter.otlp.proto.http import trace_exporter
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    spans: list[Any] = []

    class Keeping(SpanExporter):
        def export(self, batch: Sequence[Any]) -> SpanExportResult:
            spans.extend(batch)
            return SpanExportResult.SUCCESS

    monkeypatch.setattr(trace_exporter, "OTLPSpanExporter", Keeping)
    with serving(scripted(ScriptedEngine()), replace(HTTP, traces=True)) as server:
        parent = ("traceparent", f"00-{TRACE}-{PARENT}-01")
        with stub(server.address) as face:
            list(face.Ask(pb.AskRequest(image=photo(), question="a secret?"), metadata=(parent,)))
            refused(lambda: list(face.Ask(pb.AskRequest(image=b"", question="a secret?"))))
        httpx.post(f"{server.server.http_address}/v1/generate", json={"prompt": "a secret"}, trust_env=False, timeout=20)
    assert eventually(lambda: len(spans) == 3)
    asked, failed, generated = spans
    assert [span.name.rpartition("/")[2] for span in spans] == ["Ask", "Ask", "Generate"]
    assert f"{asked.context.trace_id:032x}" == TRACE
    assert f"{asked.parent.span_id:016x}" == PARENT
    assert failed.parent is None
    assert (asked.status.is_ok, failed.status.is_ok, failed.attributes["f2edge.status"]) == (True, False, "INVALID_ARGUMENT")
    assert generated.end_time > generated.start_time
    assert [event.name for event in asked.events] == ["first message"]
    assert "secret" not in "".join(span.to_json() for span in spans)


def test_a_deadline_of_nothing_is_the_callers_mistake() -> None:
    with serving(scripted(ScriptedEngine()), HTTP) as server:
        answer = httpx.get(f"{server.server.http_address}/v1/model", headers={"x-deadline-ms": "0"}, trust_env=False)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "x-deadline-ms"
