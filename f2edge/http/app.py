"""The ASGI application: which path is what, who may ask, and the way of a request from its body to its answer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from f2edge.http import page
from f2edge.http.bodies import Body, parse
from f2edge.http.calls import Caller, Work
from f2edge.http.chat import chat_work
from f2edge.http.exchange import Exchange, Receive, Scope, Send
from f2edge.http.frames import FrameContext
from f2edge.http.images import edit_work, generation_work
from f2edge.http.openapi import FRAMES, openapi_document
from f2edge.http.rest import PATHS, native_work
from f2edge.server.metrics import Metrics
from f2edge.server.pictures import PicturePool
from f2edge.server.rpc import Calls
from f2edge.server.security import authorization, no_token
from f2edge.server.service import FaceService
from f2edge.server.settings import ServerSettings
from f2edge.server.status import RefusedError, refusal_of
from f2edge.server.tokens import Tokens
from f2edge.transport import is_loopback
from f2edge.v1 import face_pb2 as pb
from f2edge.wire import ModelFacts

logger = logging.getLogger(__name__)

_OTHER_BYTES = 64 << 10
#: Bodies up to here are parsed in the event loop.
_SMALL = 64 << 10
_MODELS = "/v1/models"
Translate = Callable[[Body, Exchange], Work]


@dataclass(frozen=True)
class Endpoint:
    """What a path is.

    Attributes:
        verb: of HTTP.
        method: of the contract, under which refused requests are counted.
        translate: gives the calls.
        needs_facts: ``translate`` wants the model's facts first.
    """

    verb: str
    method: str
    translate: Callable[..., Work]
    needs_facts: bool = False


@dataclass(frozen=True)
class Shared:
    """What HTTP shares with gRPC in one server."""

    settings: ServerSettings
    calls: Calls
    service: FaceService
    pool: PicturePool
    metrics: Metrics
    tokens: Tokens | None
    ready: Callable[[], bool]


class App:
    """Answers requests."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._caller = Caller(shared.calls, shared.service)
        self._most = shared.settings.message_bytes * 4 // 3 + _OTHER_BYTES
        verbs = {"GetModel": "GET"}
        self._endpoints = {p: Endpoint(verbs.get(method, "POST"), method, partial(native_work, method)) for p, method in PATHS.items()}
        self._endpoints |= {
            "/v1/images/generations": Endpoint("POST", "Generate", generation_work, needs_facts=True),
            "/v1/images/edits": Endpoint("POST", "Edit", partial(edit_work, shared.settings.images), needs_facts=True),
            "/v1/chat/completions": Endpoint("POST", "Ask", chat_work, needs_facts=True),
            _MODELS: Endpoint("GET", "GetModel", lambda _body, exchange: _models(exchange, "")),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        exchange = Exchange(scope, receive, send)
        try:
            await self._answer(exchange)
        except asyncio.CancelledError:
            return  # the client has left, or does not read: the connection is closed
        except Exception as error:
            refusal = refusal_of(error)
            if refusal.code == grpc.StatusCode.INTERNAL and not isinstance(error, RefusedError):
                logger.exception("a request failed", extra={"request_id": exchange.request_id})
            if not exchange.gone:
                await exchange.fail(refusal)

    async def _answer(self, exchange: Exchange) -> None:
        self._check_host(exchange)
        if exchange.path == "/healthz":
            self._check_verb(exchange, "GET")
            ready = self._shared.ready()
            await exchange.document({"status": "SERVING" if ready else "NOT_SERVING"}, 200 if ready else 503)
            return
        if exchange.path in page.FILES:
            self._check_verb(exchange, "GET")
            await exchange.whole(200, *page.read_page(exchange.path), page.HEADERS)
            return
        self._check_token(exchange)
        if exchange.path == "/openapi.json":
            self._check_verb(exchange, "GET")
            await exchange.document(openapi_document())
            return
        if exchange.path == "/metrics":
            self._check_verb(exchange, "GET")
            self._check_metrics()
            text = await asyncio.to_thread(generate_latest, self._shared.metrics.registry)
            await exchange.whole(200, CONTENT_TYPE_PLAIN_0_0_4, text)
            return
        if exchange.path == FRAMES:
            self._check_verb(exchange, "POST")
            await self._caller.stream(exchange, "AnalyzeStream", FrameContext(exchange, self._most))
            return
        endpoint = self._endpoint(exchange.path)
        self._check_verb(exchange, endpoint.verb)
        try:
            work = await self._work(exchange, endpoint)
        except Exception as error:  # noqa: BLE001  what is wrong is told by the call's own machinery
            await self._caller.refuse(exchange, endpoint.method, error)
            return
        async with exchange.watched():
            await self._caller.run(exchange, work)

    async def _work(self, exchange: Exchange, endpoint: Endpoint) -> Work:
        exchange.time_remaining()  # a header that is wrong is refused before the body is read
        body, size = Body(), 0
        if endpoint.verb == "POST":
            data = await self._shared.calls.uploads.hold(exchange.peer, partial(exchange.body, self._most))
            size, given = len(data), partial(parse, exchange.headers.get("content-type", ""), data)
            body = given() if size <= _SMALL else await self._shared.pool.open(size, given)
        translate = endpoint.translate
        if endpoint.needs_facts:
            translate = partial(translate, await self._facts())
        if size > _SMALL or body.files:
            work = await self._shared.pool.open(size, partial(translate, body, exchange))
        else:
            work = translate(body, exchange)
        most = self._shared.settings.message_bytes
        if any(message.ByteSize() > most for message in work.messages):
            message = f"the request is larger than {most} bytes; send a smaller picture"
            raise RefusedError(grpc.StatusCode.RESOURCE_EXHAUSTED, message, "SIZE")
        return work

    async def _facts(self) -> ModelFacts:
        return await self._shared.service.facts()

    def _endpoint(self, path: str) -> Endpoint:
        endpoint = self._endpoints.get(path)
        if endpoint is None and path.startswith(f"{_MODELS}/"):
            name = path.removeprefix(f"{_MODELS}/")
            endpoint = Endpoint("GET", "GetModel", lambda _body, exchange: _models(exchange, name))
        if endpoint is None:
            raise RefusedError(grpc.StatusCode.NOT_FOUND, "no such path; /openapi.json lists those that there are", "PATH")
        return endpoint

    def _check_verb(self, exchange: Exchange, verb: str) -> None:
        if exchange.verb != verb:
            raise RefusedError(grpc.StatusCode.UNIMPLEMENTED, f"this path takes {verb} only", "METHOD")

    def _check_host(self, exchange: Exchange) -> None:
        """Refuse what a page of somebody else makes a browser send: other origins, and names that only lead to this machine."""
        host, origin = exchange.headers.get("host", ""), exchange.headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            raise RefusedError(grpc.StatusCode.PERMISSION_DENIED, "requests from pages of other origins are refused", "ORIGIN")
        if self._shared.settings.http_is_local and self._shared.tokens is None and host and not _is_local(host):
            message = "this server is for its own machine: call it by 127.0.0.1 or localhost"
            raise RefusedError(grpc.StatusCode.PERMISSION_DENIED, message, "HOST")

    def _check_metrics(self) -> None:
        """Refuse metrics to everyone who can connect, unless that is wanted."""
        settings = self._shared.settings
        if not (settings.http_is_local or self._shared.tokens is not None or settings.metrics_insecure):
            message = "metrics need --token-file, or --metrics-insecure, beyond loopback"
            raise RefusedError(grpc.StatusCode.PERMISSION_DENIED, message, "METRICS")

    def _check_token(self, exchange: Exchange) -> None:
        tokens = self._shared.tokens
        if tokens is not None and tokens.holder(authorization(exchange.metadata)) is None:
            self._shared.metrics.denied.inc()
            logger.info("turned away", extra={"peer": exchange.peer})
            raise no_token()


class _ModelsReply:
    """The model as OpenAI's clients list it."""

    def __init__(self, exchange: Exchange, name: str) -> None:
        self._exchange, self._name = exchange, name
        self._model = pb.GetModelResponse()

    async def on_message(self, _index: int, message: Any) -> None:
        self._model = message

    async def finish(self) -> None:
        model = {"id": self._model.name, "object": "model", "created": int(time.time()), "owned_by": "f2edge"}
        if self._name not in ("", self._model.name):
            message = f"there is no such model here; this server has {self._model.name}"
            raise RefusedError(grpc.StatusCode.NOT_FOUND, message, "MODEL_NAME")
        await self._exchange.document(model if self._name else {"object": "list", "data": [model]})


def _models(exchange: Exchange, name: str) -> Work:
    return Work("GetModel", [pb.GetModelRequest()], _ModelsReply(exchange, name))


def _is_local(host: str) -> bool:
    """Return whether the value of a Host header names this machine itself."""
    name = host[: host.index("]") + 1] if host.startswith("[") and "]" in host else host.partition(":")[0]
    return is_loopback(name.lower())
