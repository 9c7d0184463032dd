"""The OpenAPI document: well formed, complete, and true of what the server answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator

from f2edge.http.openapi import openapi_document
from f2edge.server.rpc import SERVICE
from tests.f2edge.http.test_rest import HTTP, client_of, data_uri
from tests.support.serving import GOOD, ScriptedEngine, photo, scripted, serving

ASKED: dict[str, Any] = {
    "/v1/generate": GOOD,
    "/v1/edit": {**GOOD, "image": data_uri(photo()), "name": "hair"},
    "/v1/describe": {"image": data_uri(photo())},
    "/v1/ask": {"image": data_uri(photo()), "question": "what?"},
    "/v1/analyze": {"image": data_uri(photo())},
    "/v1/model": None,
}


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with serving(scripted(ScriptedEngine()), HTTP) as thread, client_of(thread) as client:
        yield client


def validator(schema: Any) -> Draft202012Validator:
    return Draft202012Validator({**schema, "components": openapi_document()["components"]})


def operations() -> Iterator[tuple[str, str, Any]]:
    for path, verbs in openapi_document()["paths"].items():
        for verb, operation in verbs.items():
            yield path, verb, operation


def test_every_method_has_a_path() -> None:
    named = {operation.get("operationId") for _, _, operation in operations()} - {None}
    assert named == {method.name for method in SERVICE.methods}


def test_the_server_gives_the_document(http: httpx.Client) -> None:
    assert http.get("/openapi.json").json() == openapi_document()


@pytest.mark.parametrize("path", sorted(ASKED))
def test_requests_and_answers_are_as_documented(http: httpx.Client, path: str) -> None:
    asked = ASKED[path]
    ((verb, operation),) = openapi_document()["paths"][path].items()
    if asked is not None:
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        validator(schema).validate(asked)
        assert not validator(schema).is_valid({**asked, "wings": 2})
    response = http.request(verb, path, json=asked)
    validator(operation["responses"][str(response.status_code)]["content"]["application/json"]["schema"]).validate(response.json())
    refused = http.request(verb, path, content=b"[", headers={"content-type": "application/json", "x-deadline-ms": "x"})
    assert refused.status_code == 400
    validator(operation["responses"]["400"]["content"]["application/json"]["schema"]).validate(refused.json())


def test_every_path_is_served_with_its_verb_only(http: httpx.Client) -> None:
    for path, verb, operation in operations():
        address = path.replace("{model}", "scripted")
        for tried in ("get", "post", "put", "delete", "patch", "options"):
            response = http.request(tried, address, json={} if tried == "post" else None)
            assert (response.status_code == 405) is (tried != verb), (tried, path)
            assert str(response.status_code) in operation["responses"]
