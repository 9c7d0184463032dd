"""f2edge on Ray Serve: replicas of the engine of `f2edge serve` behind Serve's gRPC proxy.

    pip install "f2edge[ray]"
    RAY_USAGE_STATS_ENABLED=0 python deploy/ray_serve.py --replicas 2 --port 9000
    f2edge generate "a young woman" --server 127.0.0.1:9000 -o face.png

A replica is one process with one engine: requests that Serve sends to the same replica are batched, and each has the same tokens as alone.
Statuses and messages are those of `f2edge serve`.  Serve's proxy does not forward everything: details of a failed call are missing; a
caller's deadline ends its call, but the engine does not plan for it; bearer tokens are ignored.  The proxy listens on every address of the
machine, in plaintext: put it behind a firewall or a mesh.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import secrets
import signal
import threading
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from google.protobuf.message import Message
from ray import serve
from ray.serve.config import ProxyLocation, gRPCOptions
from ray.serve.grpc_util import RayServegRPCContext

from f2edge.engine.requests import EngineState
from f2edge.server.engine_protocol import open_served
from f2edge.server.metrics import Metrics
from f2edge.server.pictures import PicturePool
from f2edge.server.rpc import Call
from f2edge.server.service import FaceService
from f2edge.server.settings import ServerSettings
from f2edge.server.status import refusal_of, shown
from f2edge.wire import REQUEST_ID_KEY

SERVICER = "f2edge.v1.face_pb2_grpc.add_FaceServiceServicer_to_server"
APPLICATION = "f2edge"
#: Maximum requests in a replica, the size of its engine's queue; and maximum requests that wait in a proxy.
_ONGOING, _QUEUED = 96, 64
_WARM_S = 300.0
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class _MessageStream:
    """Output stream of a handler: a queue of one message, so that the handler waits for a slow reader."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[Message] = asyncio.Queue(1)

    async def write(self, message: Message) -> None:
        await self.messages.put(message)


@serve.deployment(
    name="Face",
    max_ongoing_requests=_ONGOING,
    max_queued_requests=_QUEUED,
    graceful_shutdown_timeout_s=40.0,
    graceful_shutdown_wait_loop_s=0.2,
    health_check_period_s=2.0,
    health_check_timeout_s=10.0,
)
class FaceReplica:
    """One replica.

    Args:
        bundle: name or folder of a bundle.
        backend: backend name.
        threads: CPU threads; None for every core.
    """

    def __init__(self, bundle: str = "nano", backend: str = "auto", threads: int | None = None) -> None:
        self._settings = ServerSettings(port=0)
        served = open_served(bundle, backend, threads)
        served.engine.wait_ready(_WARM_S)  # type: ignore[attr-defined]  # the engine of open_served has it
        pool = PicturePool(self._settings.decode_threads, self._settings.waiting_bytes)
        self._service = FaceService(self._settings, pool, Metrics())
        self._service.served = served
        self._engine = served.engine

    def check_health(self) -> None:
        """Raise :class:`RuntimeError` if the replica should be replaced; called by Serve."""
        silent_s = self._engine.heartbeat_age_ms / 1e3
        if self._engine.state is not EngineState.READY or silent_s > self._settings.hang_exit_s:
            raise RuntimeError(f"the engine is {self._engine.state.value}, last seen {silent_s:.0f} s ago")

    def __del__(self) -> None:
        if hasattr(self, "_engine"):
            self._engine.close()

    async def Generate(self, message: Any, grpc_context: RayServegRPCContext) -> AsyncIterator[Message]:
        async for response in self._streamed("Generate", message, grpc_context):
            yield response

    async def Edit(self, message: Any, grpc_context: RayServegRPCContext) -> AsyncIterator[Message]:
        async for response in self._streamed("Edit", message, grpc_context):
            yield response

    async def Describe(self, message: Any, grpc_context: RayServegRPCContext) -> AsyncIterator[Message]:
        async for response in self._streamed("Describe", message, grpc_context):
            yield response

    async def Ask(self, message: Any, grpc_context: RayServegRPCContext) -> AsyncIterator[Message]:
        async for response in self._streamed("Ask", message, grpc_context):
            yield response

    async def AnalyzeStream(self, messages: AsyncIterator[Any], grpc_context: RayServegRPCContext) -> AsyncIterator[Message]:
        async for response in self._streamed("AnalyzeStream", messages, grpc_context):
            yield response

    async def Analyze(self, message: Any, grpc_context: RayServegRPCContext) -> Message:
        call = _call("Analyze", grpc_context, None)
        try:
            response: Message = await self._service.analyze(message, call)
        except Exception as error:  # noqa: BLE001  every error is a status
            raise _failed(error, call, grpc_context) from None
        return response

    async def GetModel(self, message: Any, grpc_context: RayServegRPCContext) -> Message:
        call = _call("GetModel", grpc_context, None)
        response: Message = await self._service.get_model(message, call)
        return response

    async def _streamed(self, method: str, request: Any, grpc_context: RayServegRPCContext) -> AsyncIterator[Message]:
        """Yield the messages of a handler of :class:`FaceService`, which is cancelled when the caller leaves."""
        stream = _MessageStream()
        call = _call(method, grpc_context, stream)
        handler = getattr(self._service, re.sub(r"(?<!^)(?=[A-Z])", "_", method).lower())
        work = asyncio.ensure_future(handler(request, call))
        try:
            while not work.done() or not stream.messages.empty():
                arrived = asyncio.ensure_future(stream.messages.get())
                await asyncio.wait({arrived, work}, return_when=asyncio.FIRST_COMPLETED)
                if arrived.done():
                    yield arrived.result()
                else:
                    arrived.cancel()
            if (error := work.exception()) is not None:
                raise _failed(error, call, grpc_context)
        finally:
            work.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await work


def _call(method: str, grpc_context: RayServegRPCContext, stream: _MessageStream | None) -> Call:
    metadata: Mapping[str, Any] = dict(grpc_context.invocation_metadata())
    given, now = str(metadata.get(REQUEST_ID_KEY, "")), time.monotonic()
    request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
    grpc_context.set_trailing_metadata([(REQUEST_ID_KEY, request_id)])
    return Call(
        method=method,
        request_id=request_id,
        trace_id="",
        holder="",
        peer=grpc_context.peer(),
        started=now,
        ends=float("inf"),
        deadline=None,
        context=stream,
    )


def _failed(error: BaseException, call: Call, grpc_context: RayServegRPCContext) -> Exception:
    """The status of an error, set on the call; what is to be raised says nothing of the inside."""
    refusal = refusal_of(error, call.fields)
    grpc_context.set_code(refusal.code)
    grpc_context.set_details(shown(str(refusal)))
    return RuntimeError(f"{call.method} {call.request_id}: {refusal.code.name}")


def build(options: Mapping[str, Any]) -> serve.Application:
    """Return the application, for ``serve run deploy.ray_serve:build bundle=nano replicas=2 threads=1``."""
    threads = options.get("threads")
    count = None if threads is None else int(threads)
    deployment = FaceReplica.options(num_replicas=int(options.get("replicas", 2)), ray_actor_options={"num_cpus": count or 1})
    return deployment.bind(str(options.get("bundle", "nano")), str(options.get("backend", "auto")), count)


def start(options: Mapping[str, Any], port: int) -> None:
    """Start Serve with its gRPC proxy on ``port`` and the application; return when every replica is ready."""
    serve.start(
        proxy_location=ProxyLocation.HeadOnly,
        http_options={"host": "127.0.0.1", "port": 0},
        grpc_options=gRPCOptions(port=port, grpc_servicer_functions=[SERVICER]),
    )
    serve.run(build(options), name=APPLICATION, route_prefix="/f2edge")


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    import ray

    parser = argparse.ArgumentParser(description="f2edge on Ray Serve.")
    parser.add_argument("--bundle", default="nano", help="name or folder of a bundle")
    parser.add_argument("--backend", default="auto", help="auto or onnxruntime")
    parser.add_argument("--threads", type=int, help="CPU threads of a replica")
    parser.add_argument("--replicas", type=int, default=2, help="number of replicas")
    parser.add_argument("--port", type=int, default=9000, help="port of the gRPC proxy")
    arguments = vars(parser.parse_args())
    port = arguments.pop("port")
    ray.init(include_dashboard=False)
    start({name: value for name, value in arguments.items() if value is not None}, port)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())  # after Ray has set its own
    print(f"f2edge serves on 127.0.0.1:{port}", flush=True)
    ended.wait()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
