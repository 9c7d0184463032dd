"""An engine (a bundle on a backend with a number of threads) in a worker process that makes calls on request.

with closing(EngineProcess(EngineOptions("nano", "onnxruntime", 2))) as engine:
    engine.milliseconds(ModelCall("analyze", batch=4), number=0)
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

from bench.hardware.memory import memory_or_none
from bench.latency.calls import CallTimer, ModelCall
from bench.latency.worker import Handler, Message, Worker, serve
from f2edge.pipeline import FacePipeline


@dataclass(frozen=True)
class EngineOptions:
    """Name or folder of a bundle, a backend, CPU threads (None: every usable core)."""

    bundle: str
    backend: str = "auto"
    threads: int | None = None


class EngineProcess(Worker):
    """An engine as the bench sees it; errors as in :class:`~bench.latency.worker.Worker`.

    Attributes:
        backend: name of the chosen backend, never "auto".
        ready_ms: from loading to the first face.
    """

    def __init__(self, options: EngineOptions) -> None:
        self.options = options
        super().__init__("bench.latency.engine", asdict(options), f"{options.bundle} on {options.backend}")
        self.backend, self.ready_ms = str(self.ready["backend"]), float(self.ready["ready_ms"])

    def milliseconds(self, call: ModelCall, number: int) -> float:
        """Return the duration of one call; see :meth:`bench.latency.calls.CallTimer.milliseconds`."""
        return float(self.ask({"call": asdict(call), "number": number})["ms"])

    def call_for(self, call: ModelCall, seconds: float) -> int:
        """Repeat a call, at least once, until ``seconds`` have passed; return the number of calls."""
        return int(self.ask({"call": asdict(call), "seconds": seconds})["calls"])

    def memory(self) -> dict[str, int] | None:
        """Return the bytes of :func:`bench.hardware.memory.process_memory`, or None where the system has none."""
        memory: dict[str, int] | None = self.ask({"memory": True})["memory"]
        return memory


def start(**options: Any) -> tuple[Message, Handler]:
    """Load the engine in the worker process."""
    begun = time.perf_counter()
    chosen = EngineOptions(**options)
    pipeline = FacePipeline.load(chosen.bundle, backend=chosen.backend, threads=chosen.threads)
    timer = CallTimer(pipeline)

    def handle(message: Message) -> Message:
        if "memory" in message:
            return {"memory": memory_or_none()}
        call = ModelCall(**message["call"])
        if "seconds" not in message:
            return {"ms": timer.milliseconds(call, message["number"])}
        calls, until = 0, time.monotonic() + message["seconds"]
        while not calls or time.monotonic() < until:
            timer.milliseconds(call, calls)
            calls += 1
        return {"calls": calls}

    return {"backend": pipeline.backend.name, "ready_ms": 1e3 * (time.perf_counter() - begun)}, handle


if __name__ == "__main__":
    serve(start)
