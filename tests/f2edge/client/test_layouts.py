"""Layouts over the wire: clients, REST and the command line against a real server on the model of paper."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from f2edge.cli.main import run
from f2edge.client.aio import AsyncClient
from f2edge.client.sync import Client
from f2edge.errors import InputError
from f2edge.imaging.map_pictures import FREE, map_picture
from f2edge.pipeline import FacePipeline
from tests.support.serving import SETTINGS, ServerThread, paper_pipeline, paper_served, photo, serving

PROMPT = "an old man"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> FacePipeline:
    return paper_pipeline(tmp_path_factory.mktemp("paper"))


@pytest.fixture(scope="module")
def paper(pipeline: FacePipeline) -> Iterator[ServerThread]:
    with serving(paper_served(pipeline), replace(SETTINGS, http_port=0)) as running:
        yield running


@pytest.fixture(scope="module")
def sketch(pipeline: FacePipeline) -> Image.Image:
    indices = np.full((200, 200), FREE)
    indices[:100] = 0
    return map_picture(indices, pipeline.bundle.regions)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_clients_draw_what_the_pipeline_draws(paper: ServerThread, pipeline: FacePipeline, sketch: Image.Image) -> None:
    (by_map,) = pipeline.generate(PROMPT, seeds=3, layout=sketch, layout_strength=0.7)
    (by_face,) = pipeline.generate(PROMPT, seeds=3, layout_from=photo())
    with Client(paper.address) as client:
        (found,) = client.generate(PROMPT, seeds=3, layout=sketch, layout_strength=0.7)
        assert np.array_equal(found.codes, by_map.codes)
        assert found.layout_agreement == by_map.layout_agreement is not None
        (found,) = client.generate(PROMPT, seeds=3, layout=np.array([[0], [FREE]]).repeat(2, axis=1), layout_strength=0.7)
        assert np.array_equal(found.codes, by_map.codes), "a small array says the same"
        (found,) = client.generate(PROMPT, seeds=3, layout_from=photo())
        assert np.array_equal(found.codes, by_face.codes)
        assert client.generate(PROMPT, seeds=3)[0].layout_agreement is None
        wrong = Image.new("RGB", (64, 64), (1, 2, 3))
        with pytest.raises(InputError, match="#010203 of the map is no region's"):
            client.generate(PROMPT, layout=wrong)
        with pytest.raises(InputError, match="exclude"):
            client.generate(PROMPT, layout=sketch, layout_from=photo())

    async def other() -> None:
        async with AsyncClient(paper.address) as client:
            (face,) = await client.generate(PROMPT, seeds=3, layout=sketch, layout_strength=0.7)
            assert np.array_equal(face.codes, by_map.codes)

    asyncio.run(other())


def test_rest_takes_maps_as_base64_and_as_files(paper: ServerThread, pipeline: FacePipeline, sketch: Image.Image) -> None:
    (by_map,) = pipeline.generate(PROMPT, seeds=3, layout=sketch)
    data = png(sketch)
    with httpx.Client(base_url=str(paper.server.http_address), timeout=60, trust_env=False) as http:
        found = http.post("/v1/generate", json={"prompt": PROMPT, "seed": 3, "layout": base64.b64encode(data).decode()}).json()
        assert found["picture"]["tokens"] == by_map.codes.tolist()
        assert found["layout_agreement"] == pytest.approx(by_map.layout_agreement)
        form = http.post("/v1/generate", data={"prompt": PROMPT, "seed": "3"}, files={"layout": data}).json()
        assert form["picture"]["tokens"] == found["picture"]["tokens"]
        assert "layout_agreement" not in http.post("/v1/generate", json={"prompt": PROMPT}).json()
        for fields, named in (
            ({"layout": base64.b64encode(b"GIF89a").decode()}, "layout"),
            ({"layout_from": base64.b64encode(b"").decode()}, "layout_from"),
            ({"layout": base64.b64encode(png(Image.new("RGB", (64, 64), (9, 9, 9)))).decode()}, "layout"),
            ({"layout": base64.b64encode(data).decode(), "layout_strength": 3}, "layout_strength"),
        ):
            refused = http.post("/v1/generate", json={"prompt": PROMPT, **fields})
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, named), refused.text


def test_the_command_line(paper: ServerThread, sketch: Image.Image, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where, out = tmp_path / "map.png", tmp_path / "face.png"
    sketch.save(where)
    (tmp_path / "face.jpg").write_bytes(photo())
    words = ["generate", PROMPT, "--server", paper.address, "--seed", "3", "-o", str(out)]
    assert run([*words, "--layout", str(where)]) == 0
    assert "agrees with the layout to" in "".join(capsys.readouterr())
    assert run([*words, "--layout-from", str(tmp_path / "face.jpg"), "--layout-strength", "0.7", "--json"]) == 0
    (face,) = json.loads(capsys.readouterr().out)["faces"]
    assert 0 <= face["layout_agreement"] <= 1
    out.unlink()
    for more, told in (
        (["--layout", str(where), "--layout-from", str(where)], "exclude"),
        (["--layout-strength", "0.5"], "needs --layout"),
        (["--layout", str(tmp_path / "none.png")], "none.png"),
        (["--layout", str(where), "--layout-strength", "7"], "0 … 1"),
    ):
        assert run([*words, *more]) == 2
        assert told in capsys.readouterr().err
    assert not out.exists()
