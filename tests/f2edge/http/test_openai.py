"""OpenAI's own Python client, unmodified, against the real server."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
from PIL import Image

from f2edge.engine.requests import AskRequest, DescribeRequest, EditRequest
from f2edge.errors import QueueFullError
from f2edge.provenance.label import EDITED, read_label
from tests.f2edge.http.test_rest import HTTP, client_of, data_uri
from tests.support.serving import FACTS, WORDS, ScriptedEngine, ServerThread, photo, scripted, serving


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
def server(engine: ScriptedEngine) -> Iterator[ServerThread]:
    with serving(scripted(engine), HTTP) as thread:
        yield thread


@pytest.fixture
def client(server: ServerThread) -> Iterator[openai.OpenAI]:
    base = f"{server.server.http_address}/v1"
    with openai.OpenAI(base_url=base, api_key="none", timeout=20, max_retries=0) as made:
        yield made


def picture(text: str | None) -> Image.Image:
    assert text is not None
    data = base64.b64decode(text)
    assert read_label(data) is not None
    return Image.open(io.BytesIO(data))


def about(text: str, image: bytes | None = None) -> Any:
    shown = {"type": "image_url", "image_url": {"url": data_uri(image or photo())}}
    return [{"role": "user", "content": [{"type": "text", "text": text}, shown]}]


# Models ----------------------------------------------------------------------------------------------------------------------------------


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["scripted"]
    assert client.models.retrieve("scripted").owned_by == "f2edge"
    with pytest.raises(openai.NotFoundError, match="this server has scripted"):
        client.models.retrieve("gpt-image-1")


# Pictures --------------------------------------------------------------------------------------------------------------------------------


def test_generate(client: openai.OpenAI, engine: ScriptedEngine) -> None:
    size: Any = "64x64"
    found = client.images.generate(
        model="scripted", prompt="a woman", n=3, size=size, output_format="webp", quality="high", user="me", extra_body={"seed": 5}
    )
    assert found.data is not None
    assert [picture(item.b64_json).format for item in found.data] == ["WEBP"] * 3
    assert {picture(item.b64_json).size for item in found.data} == {(64, 64)}
    assert sorted(request.seed for request, _, _ in engine.submitted) == [5, 6, 7]
    assert [item.seed for item in found.data] == ["5", "6", "7"]  # type: ignore[attr-defined]


def test_generate_as_url(client: openai.OpenAI) -> None:
    (item,) = client.images.generate(prompt="a man", response_format="url").data or []
    assert item.url is not None
    assert picture(item.url.removeprefix("data:image/png;base64,")).size == (FACTS.image_side, FACTS.image_side)


def test_generate_with_partial_pictures(client: openai.OpenAI) -> None:
    *partials, last = client.images.generate(prompt="a man", stream=True, partial_images=2)
    assert [event.type for event in partials] == ["image_generation.partial_image"] * len(partials)
    assert [event.partial_image_index for event in partials] == list(range(len(partials)))  # type: ignore[union-attr]
    assert 1 <= len(partials) <= 2
    assert picture(partials[0].b64_json).format == "JPEG"
    assert last.type == "image_generation.completed"
    assert picture(last.b64_json).format == "PNG"


def test_edit_by_name_and_as_a_whole(client: openai.OpenAI, engine: ScriptedEngine) -> None:
    image = ("face.png", photo(), "image/png")
    for extra in ({"region": "hair"}, {}):
        (item,) = client.images.edit(model="scripted", image=image, prompt="red hair", extra_body=extra).data or []
        assert item.b64_json is not None
        label = read_label(base64.b64decode(item.b64_json))
        assert label is not None
        assert label.source_type == EDITED
    client.images.edit(image=[image], prompt="red hair", n=2)
    first, second, *others = (request for request, _, _ in engine.submitted)
    assert isinstance(first, EditRequest)
    assert first.region == "hair"
    assert isinstance(second, EditRequest)
    assert second.region == (0.0, 0.0, 1.0, 1.0)
    assert len(others) == 2


def test_a_mask_is_transparent_where_the_picture_is_drawn_anew(client: openai.OpenAI, engine: ScriptedEngine) -> None:
    mask = Image.new("RGBA", (40, 40), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 20, 40))
    buffer = io.BytesIO()
    mask.save(buffer, "PNG")
    client.images.edit(image=("face.png", photo()), mask=("mask.png", buffer.getvalue()), prompt="red hair")
    request = engine.submitted[0][0]
    assert isinstance(request, EditRequest)
    assert isinstance(request.region, Image.Image)
    inside = np.asarray(request.region) > 127
    assert inside[:, :20].all()
    assert not inside[:, 20:].any()


# Words -----------------------------------------------------------------------------------------------------------------------------------


def test_describe_in_a_stream(client: openai.OpenAI, engine: ScriptedEngine) -> None:
    stream = client.chat.completions.create(
        model="scripted", messages=about("Describe this picture."), stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "".join(WORDS)
    assert len(chunks) >= 4
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 4
    assert isinstance(engine.submitted[0][0], DescribeRequest)


def test_ask(client: openai.OpenAI, engine: ScriptedEngine) -> None:
    earlier = [{"role": "system", "content": "Be short."}, *about("what hat?", photo(seed=1)), {"role": "assistant", "content": "none"}]
    answer = client.chat.completions.create(
        model="scripted", messages=[*earlier, {"role": "user", "content": "what hair?"}], max_tokens=4, temperature=0.2
    )
    assert answer.choices[0].message.content == "".join(WORDS)
    assert answer.choices[0].finish_reason == "length"
    request = engine.submitted[0][0]
    assert isinstance(request, AskRequest)
    assert (request.question, request.max_tokens) == ("what hair?", 4)


# Refusals --------------------------------------------------------------------------------------------------------------------------------


def test_refusals_are_the_clients_own_errors(client: openai.OpenAI, engine: ScriptedEngine) -> None:
    by_url: Any = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://example.org/x.png"}}]}]
    with pytest.raises(openai.BadRequestError, match="nothing is fetched") as caught:
        client.chat.completions.create(model="scripted", messages=by_url)
    assert (caught.value.code, caught.value.param, caught.value.type) == ("IMAGE", "messages", "invalid_request_error")
    with pytest.raises(openai.BadRequestError, match="no picture"):
        client.chat.completions.create(model="scripted", messages=[{"role": "user", "content": "hello"}])
    with pytest.raises(openai.NotFoundError, match="this server has scripted"):
        client.images.generate(model="dall-e-3", prompt="a man")
    with pytest.raises(openai.BadRequestError, match="prompt is empty"):
        client.images.generate(prompt="")
    with pytest.raises(openai.BadRequestError, match="square"):
        client.images.generate(prompt="a man", size="1024x1536")
    assert engine.submitted == []
    engine.refusal = QueueFullError("full", retry_after_ms=100.0)
    with pytest.raises(openai.RateLimitError):
        client.images.generate(prompt="a man", n=4)


def test_a_busy_server_is_asked_again(client: openai.OpenAI, engine: ScriptedEngine) -> None:
    full = iter([QueueFullError("full", retry_after_ms=50.0)])
    engine.refuse = lambda _request: next(full, None)
    assert client.with_options(max_retries=2).images.generate(prompt="a man").data
    assert len(engine.submitted) == 1


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "a", "n": 0},
        {"prompt": "a", "n": "2"},
        {"prompt": "a", "n": True},
        {"prompt": "a", "size": 5},
        {"prompt": "a", "size": [1]},
        {"prompt": "a", "size": "99999999x99999999"},
        {"prompt": "a", "output_format": "gif"},
        {"prompt": "a", "output_format": ["png"]},
        {"prompt": "a", "stream": 1.5},
        {"prompt": "a", "stream": True, "n": 2},
        {"prompt": "a", "model": {}},
        {"prompt": ["a"]},
        {"prompt": "a", "options": [1]},
        {"prompt": "a", "seed": 1.5},
    ],
)
def test_fields_of_another_kind(server: ServerThread, body: dict[str, Any]) -> None:
    with client_of(server) as http:
        assert http.post("/v1/images/generations", json=body).status_code in (400, 404)


@pytest.mark.parametrize(
    "messages",
    [None, [], {}, ["a"], [{}], [{"content": 5}], [{"content": [5]}], [{"content": [{"type": "image_url", "image_url": "x"}]}],
     [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": 5}}]}], [{"content": [{"type": "text", "text": 5}]}]],
)  # fmt: skip
def test_conversations_of_another_kind(server: ServerThread, messages: Any) -> None:
    with client_of(server) as http:
        response = http.post("/v1/chat/completions", json={"messages": messages})
        assert response.status_code == 400, response.text
