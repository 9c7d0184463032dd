"""The studio's files as the server sends them; what they do in a browser is in test_page_browser.py."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from f2edge.http import page
from f2edge.server.tokens import new_token
from tests.f2edge.http.test_rest import HTTP, client_of
from tests.support.serving import ScriptedEngine, eventually, scripted, serving


@pytest.fixture
def http() -> Iterator[httpx.Client]:
    with serving(scripted(ScriptedEngine()), HTTP) as thread, client_of(thread) as client:
        yield client


def test_the_page_is_small_and_loads_nothing_from_elsewhere(http: httpx.Client) -> None:
    size = 0
    for path, (_, kind) in page.FILES.items():
        response = http.get(path)
        assert (response.status_code, response.headers["content-type"]) == (200, kind)
        policy = response.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'")
        assert "unsafe" not in policy
        assert not re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]+", response.text)
        size += len(response.content)
    assert size <= 150 << 10
    index = http.get("/").text
    assert set(re.findall(r'(?:src|href)="([^"]*)"', index)) == {"data:,", "/studio.css", "/studio.js"}
    assert not re.findall(r"<script>|<style>|\son[a-z]+=|\sstyle=", index)


def test_no_text_becomes_markup() -> None:
    script = page.read_page("/studio.js")[1].decode()
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", script)


def test_every_id_that_the_script_uses_is_there_and_every_input_has_a_label() -> None:
    index, script = (page.read_page(path)[1].decode() for path in ("/", "/studio.js"))
    ids = re.findall(r'\sid="([^"]+)"', index)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'\$\("([^"]+)"\)', script)) <= set(ids)
    fields = re.findall(r'<(?:input|select)[^>]*\sid="([^"]+)"', index)
    assert set(fields) <= set(re.findall(r'<label[^>]*\sfor="([^"]+)"', index))


def test_the_command_opens_the_page(tmp_path: Path) -> None:
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/opened\n', encoding="utf-8")
    browser.chmod(0o755)
    command = [sys.executable, "-m", "f2edge", "studio", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "BROWSER": f"{browser} %s"}) as server:
        try:
            assert eventually(lambda: (tmp_path / "opened").exists() and (tmp_path / "opened").read_text().endswith("\n"), 100)
            address = (tmp_path / "opened").read_text(encoding="utf-8").strip()
            assert "f2edge studio" in httpx.get(address, timeout=20, trust_env=False).text
            assert eventually(lambda: httpx.get(f"{address}/healthz", timeout=20, trust_env=False).status_code == 200, 100)
            server.send_signal(signal.SIGINT)
            assert server.wait(60) == 0
        finally:
            server.kill()


def test_the_page_needs_no_token_and_what_it_calls_does(tmp_path: Path) -> None:
    new_token(tmp_path / "tokens.txt", "alice")
    with serving(scripted(ScriptedEngine()), replace(HTTP, token_file=tmp_path / "tokens.txt")) as thread, client_of(thread) as http:
        assert [http.get(path).status_code for path in (*page.FILES, "/v1/model")] == [200, 200, 200, 401]
