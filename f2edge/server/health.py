"""Readiness: warm, taking work, and heard from lately.  Standard ``grpc.health.v1``, for the whole server and for the service by name.

No probe ever enters the engine: readiness is the engine's state and the age of its heartbeat, so a check costs nothing at full load and
cannot stand behind somebody's picture.  A supervisor calls the server over its own port (:mod:`.supervisor`): one that does not answer is
not ready, whatever its engine says.
"""

from __future__ import annotations

import asyncio
import logging
import time

from grpc_health.v1 import health_pb2

from f2edge.engine.requests import EngineState, EngineStats
from f2edge.server.engine_protocol import EnginePort
from f2edge.server.metrics import Metrics
from f2edge.server.rpc import SERVICE
from f2edge.server.standard import HealthState

logger = logging.getLogger(__name__)

_LOOK_S = 0.1
#: An engine may be silent for this many of its longest turns.
_TURNS = 10.0


class Readiness:
    """Keeps the health service true.

    Args:
        heartbeat_limit_s: silence after which an engine is not ready.
        hang_exit_s: silence after which it is given up; 0 for never.

    Attributes:
        state: what health checks say.
        given_up: set where the engine hangs or has ended by itself, or the server cannot be reached.
    """

    def __init__(self, heartbeat_limit_s: float, hang_exit_s: float, metrics: Metrics) -> None:
        self.state = HealthState()
        self.given_up = asyncio.Event()
        self._limit_s = heartbeat_limit_s
        self._hang_exit_s = hang_exit_s
        self._metrics = metrics
        self._ready: bool | None = None
        self._reached = True
        self._draining = False

    @property
    def ready(self) -> bool:
        """Whether calls are welcome."""
        return bool(self._ready)

    def set(self, ready: bool) -> None:
        """Say whether calls are welcome."""
        if ready is self._ready or self._draining:
            return
        self._ready = ready
        logger.info("ready" if ready else "not ready")
        self._metrics.ready.set(ready)
        status = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", SERVICE.full_name):
            self.state.set(name, status)

    def reached(self, answered: bool) -> None:
        """Record whether a call over the server's own port was answered; without an answer readiness ends at once."""
        self._reached = answered
        if not answered:
            self.set(False)

    def drain(self) -> None:
        """Not ready, for good."""
        logger.info("not ready: shutting down")
        self.set(False)
        self._draining = True

    async def watch(self, engine: EnginePort) -> None:
        """Follow an engine until cancelled."""
        while True:
            silent_s = engine.heartbeat_age_ms / 1e3
            limit_s = max(self._limit_s, _TURNS * longest_turn_s(engine.stats()))
            self.set(engine.state is EngineState.READY and silent_s < limit_s and self._reached)
            hangs = self._hang_exit_s and silent_s > max(self._hang_exit_s, limit_s) and engine.state is not EngineState.STARTING
            if (hangs or engine.state is EngineState.STOPPED) and not self.given_up.is_set():
                logger.error("the engine is given up", extra={"state": engine.state.value, "silent_s": round(silent_s, 1)})
                self.given_up.set()
            due = time.monotonic() + _LOOK_S
            await asyncio.sleep(_LOOK_S)
            self._metrics.loop_lag.set(max(0.0, time.monotonic() - due))


def longest_turn_s(stats: EngineStats) -> float:
    """Mean duration of the slowest kind of work."""
    return max((stats.turn_ms[stage] / turns / 1e3 for stage, turns in stats.turns.items() if turns), default=0.0)
