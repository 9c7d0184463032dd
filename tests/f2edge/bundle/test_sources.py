"""Bundles from folders and addresses: whole or not at all, checked, and without a network where the files are known."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from f2edge.bundle import sources
from f2edge.bundle.bundle import Bundle, embedded_folder, list_bundles, user_folder
from f2edge.cli.main import run
from f2edge.errors import BundleError, ChecksumError, InputError

pytestmark = pytest.mark.runtime
NANO = embedded_folder() / "nano"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folders, empty."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(sources.NAMES, raising=False)
    return tmp_path


class Web:
    """A folder on loopback; ``asked`` lists the paths."""

    def __init__(self, folder: Path) -> None:
        asked: list[str] = []

        class Handler(SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                if self.path.startswith("/elsewhere/"):
                    self.send_response(302)
                    self.send_header("Location", "http://example.invalid/bundle")
                    self.end_headers()
                    return
                super().do_GET()

            def log_message(self, *_arguments: Any) -> None:
                """Print nothing."""

        self.folder, self.asked = folder, asked
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    folder = tmp_path / "web"
    shutil.copytree(NANO, folder / "nano")
    made = Web(folder)
    yield made
    made.close()


def left() -> list[str]:
    return sorted(path.name for path in user_folder().iterdir()) if user_folder().is_dir() else []


def test_a_folder_and_an_address_give_the_same_bundle(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    copied, fetched = sources.install(str(NANO), name="copied"), sources.install(f"{web.address}/nano/", name="fetched")
    assert left() == ["copied", "fetched"]
    for bundle in (copied, fetched):
        assert {path.name: path.read_bytes() for path in bundle.folder.iterdir()} == {p.name: p.read_bytes() for p in NANO.iterdir()}
    assert {"copied", "fetched"} < {found.name for found in list_bundles()}
    monkeypatch.setenv(sources.NAMES, web.address)
    assert sources.install("nano", name="named").name == "nano"
    assert Bundle.load("named").total_bytes == copied.total_bytes


def test_files_that_are_known_are_not_fetched_again(web: Web) -> None:
    sources.install(f"{web.address}/nano", name="first")
    web.asked.clear()
    steps: list[tuple[int, int]] = []
    sources.install(f"{web.address}/nano", name="second", progress=lambda done, total: steps.append((done, total)))
    assert web.asked == ["/nano/manifest.json"]
    assert steps[-1][0] == steps[-1][1] == Bundle.load("second").total_bytes


@pytest.mark.parametrize("harm", ["flipped", "short", "long", "missing", "seal"])
def test_of_a_damaged_bundle_nothing_is_left(web: Web, harm: str) -> None:
    file = web.folder / "nano" / ("manifest.json" if harm == "seal" else "t2i_step.onnx")
    data = file.read_bytes()
    file.write_bytes(
        {"flipped": data[:-1] + bytes([data[-1] ^ 1]), "short": data[:-1], "long": data + b"x" * 3_000_000}.get(harm, data[:50])
    )
    if harm == "missing":
        file.unlink()
    with pytest.raises(BundleError) as caught:
        sources.install(f"{web.address}/nano", name="bad")
    assert isinstance(caught.value, ChecksumError) or harm in ("missing", "seal")
    assert left() == []


def test_a_name_is_taken_once(web: Web) -> None:
    sources.install(str(NANO), name="mine")
    with pytest.raises(InputError, match="installed already"):
        sources.install(str(NANO), name="mine")
    marker = user_folder() / "mine" / "marker"
    marker.write_text("old")
    sources.install(f"{web.address}/nano", name="mine", replace=True)
    assert not marker.exists()
    assert left() == ["mine"]


def test_what_is_trusted_is_said(web: Web) -> None:
    digest = hashlib.sha256((NANO / "manifest.json").read_bytes()).hexdigest()
    with pytest.raises(ChecksumError, match=digest):
        sources.install(f"{web.address}/nano", name="mine", sha256="0" * 64)
    assert sources.install(f"{web.address}/nano", name="mine", sha256=digest.upper()).name == "nano"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("http://example.org/nano", "not served over TLS"),
        ("ftp://example.org/nano", "not served over TLS"),
        ("no-such-bundle", "no bundle 'no-such-bundle'"),
        ("", "no bundle"),
        ("../up", "no bundle"),
    ],
)
def test_sources_that_are_none(source: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        sources.install(source)
    assert left() == []


def test_a_redirection_to_plain_http_is_not_followed(web: Web) -> None:
    with pytest.raises(InputError, match="not served over TLS"):
        sources.install(f"{web.address}/elsewhere")


def test_a_repository_is_an_address() -> None:
    assert sources._base("hf:owner/some.name") == "https://huggingface.co/owner/some.name/resolve/main"
    assert sources._base("hf:owner/name@v1.2") == "https://huggingface.co/owner/name/resolve/v1.2"
    assert sources._base("https://huggingface.co/owner/name") == "https://huggingface.co/owner/name/resolve/main"


def test_the_command_line_adds_and_lists(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bundles", "add", str(NANO), "--name", "mine", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "mine"
    assert run(["bundles", "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)["bundles"]] == ["nano", "mine"]
    assert run(["bundles", "add", "missing"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
