"""The policy on sensitive traits: by kind of face, and the same at every door."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from f2edge.bundle.bundle import Bundle, embedded_folder
from f2edge.bundle.manifest import check_manifest
from f2edge.cli.main import run
from f2edge.client.aio import AsyncClient
from f2edge.client.messages import FrameRequest
from f2edge.client.sync import Client
from f2edge.errors import BundleError, SensitiveError, UnknownAttributeError
from f2edge.pipeline import FacePipeline
from f2edge.spec.attributes import F2EDGE_SCHEMA, Slot
from f2edge.spec.sensitive import DRAWN, PHOTOGRAPHED, SensitivePolicy
from tests.support.paper_model import PaperBackend, paper_bundle
from tests.support.serving import SETTINGS, paper_served, photo, serving

EVERYTHING = list(F2EDGE_SCHEMA)
PLAIN = [slot.name for slot in F2EDGE_SCHEMA.values() if not slot.sensitive]
CLOSED, OPEN = SensitivePolicy(protected=True), SensitivePolicy(protected=True, include=True)


def test_traits_of_drawn_faces_are_open_and_those_of_photographed_ones_are_asked_for() -> None:
    assert SensitivePolicy.of(DRAWN, include=False).attributes(F2EDGE_SCHEMA, None) == tuple(EVERYTHING)
    assert SensitivePolicy.of(PHOTOGRAPHED, include=False) == SensitivePolicy.of(DRAWN, include=False, camera=True) == CLOSED
    assert CLOSED.attributes(F2EDGE_SCHEMA, None) == tuple(PLAIN)
    assert OPEN.attributes(F2EDGE_SCHEMA, None) == tuple(EVERYTHING)
    assert OPEN.attributes(F2EDGE_SCHEMA, ["hat", "age"]) == ("hat", "age")
    with pytest.raises(SensitiveError, match="sensitive: age"):
        CLOSED.attributes(F2EDGE_SCHEMA, ["hat", "age"])
    with pytest.raises(UnknownAttributeError, match="shoes"):
        OPEN.attributes(F2EDGE_SCHEMA, ["shoes"])


@pytest.mark.parametrize("slot", [slot for slot in F2EDGE_SCHEMA.values() if slot.sensitive], ids=lambda slot: slot.name)
def test_no_sensitive_question_passes_in_words(slot: Slot) -> None:
    with pytest.raises(SensitiveError, match="include-sensitive"):
        CLOSED.check_question(slot.question)
    OPEN.check_question(slot.question)


@pytest.mark.parametrize("slot", [slot for slot in F2EDGE_SCHEMA.values() if not slot.sensitive and slot.name != "skin_texture"])
def test_other_questions_pass(slot: Slot) -> None:
    CLOSED.check_question(slot.question)
    CLOSED.check_question("is the person smiling?")


def test_a_caption_is_no_way_around() -> None:
    with pytest.raises(SensitiveError, match="description"):
        CLOSED.check_question("Please describe this image in detail.")
    OPEN.check_caption()


def test_a_manifest_that_does_not_say_is_of_photographs() -> None:
    document = json.loads((embedded_folder() / "nano" / "manifest.json").read_bytes())
    assert Bundle.load("nano").faces == DRAWN
    assert check_manifest({key: value for key, value in document.items() if key != "faces"}).faces == PHOTOGRAPHED
    with pytest.raises(BundleError, match="faces needs one of drawn, photographed"):
        check_manifest({**document, "faces": "painted"})


# Every door -----------------------------------------------------------------------------------------------------------------------------


class Doors:
    """One model behind each door; every method returns the slots reported and whether the answer says that they were asked for."""

    def __init__(self, folder: Path, faces: str, remote: Client, http: httpx.Client) -> None:
        self.folder, self.remote, self.http = folder, remote, http
        self.local = FacePipeline(Bundle.load(folder), PaperBackend())
        self.faces = faces

    def ways(self) -> dict[str, Callable[[bool], tuple[list[str], bool]]]:
        return {"library": self.by_library, "client": self.client, "asyncio": self.asyncio, "http": self.rest}

    def by_library(self, include: bool) -> tuple[list[str], bool]:
        (report,) = self.local.analyze(photo(), include_sensitive=include)
        return list(report.probabilities), report.include_sensitive

    def client(self, include: bool) -> tuple[list[str], bool]:
        (report,) = self.remote.analyze(photo(), include_sensitive=include)
        return list(report.probabilities), report.include_sensitive

    def asyncio(self, include: bool) -> tuple[list[str], bool]:
        async def ask() -> Any:
            async with AsyncClient(self.remote.connection) as client:
                return await client.analyze(photo(), include_sensitive=include)

        (report,) = asyncio.run(ask())
        return list(report.probabilities), report.include_sensitive

    def rest(self, include: bool) -> tuple[list[str], bool]:
        body = {"image": base64.b64encode(photo()).decode(), "include_sensitive": include}
        report = self.http.post("/v1/analyze", json=body).json()["report"]
        return [slot["name"] for slot in report["slots"]], report["include_sensitive"]


@pytest.fixture(scope="module", params=[DRAWN, PHOTOGRAPHED])
def doors(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    folder = tmp_path_factory.mktemp(request.param)
    served = FacePipeline(paper_bundle(folder, faces=request.param), PaperBackend())
    with serving(paper_served(served), replace(SETTINGS, http_port=0)) as server, Client(server.address) as client:
        assert server.server.http_address is not None
        with httpx.Client(base_url=server.server.http_address, timeout=20, trust_env=False) as http:
            yield Doors(folder, request.param, client, http)


def test_attributes_are_the_same_at_every_door(doors: Doors) -> None:
    expected = EVERYTHING if doors.faces == DRAWN else PLAIN
    for name, way in doors.ways().items():
        assert way(False) == (expected, False), name
        assert way(True) == (EVERYTHING, True), name


def test_questions_and_captions_are_the_same_at_every_door(doors: Doors) -> None:
    question, picture = "how old does the person look?", "data:image/png;base64," + base64.b64encode(photo()).decode()

    def chat(text: str, **fields: Any) -> httpx.Response:
        content = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": picture}}]
        return doors.http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": content}], **fields})

    for model in (doors.local, doors.remote):
        if doors.faces == PHOTOGRAPHED:
            with pytest.raises(SensitiveError, match="sensitive trait"):
                model.ask(photo(), question, max_tokens=3)
            with pytest.raises(SensitiveError, match="description"):
                model.describe(photo(), max_tokens=3)
        else:
            assert not model.ask(photo(), question, max_tokens=3).include_sensitive
            assert not model.describe(photo(), max_tokens=3).include_sensitive
        assert model.ask(photo(), question, max_tokens=3, include_sensitive=True).include_sensitive
        assert model.describe(photo(), max_tokens=3, include_sensitive=True).include_sensitive
    for text in (question, "describe"):
        refused = chat(text)
        assert refused.status_code == (400 if doors.faces == PHOTOGRAPHED else 200)
        if doors.faces == PHOTOGRAPHED:
            error = refused.json()["error"]
            assert (error["code"], error["param"]) == ("SENSITIVE", "include_sensitive")
        assert chat(text, include_sensitive=True).json()["include_sensitive"] is True


def test_frames_are_a_cameras_whatever_faces_the_model_knows(doors: Doors) -> None:
    def slots(**settings: Any) -> tuple[list[str], str]:
        (answer,) = doors.remote.analyze_frames([FrameRequest(photo())], **settings)
        return [name for report in answer.reports for name in report.probabilities], answer.problem

    assert slots() == (PLAIN, "")
    assert slots(include_sensitive=True) == (EVERYTHING, "")
    names, problem = slots(attributes=["age"])
    assert names == []
    assert "sensitive: age" in problem


def test_the_command_line_says_what_it_left_out(doors: Doors, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    face = tmp_path / "face.png"
    face.write_bytes(photo())
    server = ["--server", doors.remote.connection.address]
    assert run(["analyze", str(face), *server]) == 0
    assert ("sensitive attributes are left out" in capsys.readouterr().out) == (doors.faces == PHOTOGRAPHED)
    assert run(["describe", str(face), *server]) == (2 if doors.faces == PHOTOGRAPHED else 0)
    capsys.readouterr()
    assert run(["describe", str(face), "--include-sensitive", "--json", *server]) == 0
    assert json.loads(capsys.readouterr().out)["include_sensitive"] is True
