"""gRPC's asyncio batches, run to their end whatever becomes of who waits for them.

A batch of operations (read a message, send a status) holds memory of gRPC's core, which grpc.aio frees when the batch has ended.  Where
the task that waits for it is cancelled, as it is when the caller hangs up, nobody frees it: 80 bytes for every such call, the message if
one arrives meanwhile, and a heap in pieces.  Seen in grpcio 1.85 (``execute_batch`` in ``callback_common.pyx.pxi``).
"""

from __future__ import annotations

import asyncio
from typing import Any

from grpc._cython import cygrpc

_execute = cygrpc.execute_batch


async def _execute_to_the_end(call: Any, operations: tuple[Any, ...], loop: asyncio.AbstractEventLoop) -> None:
    batch = loop.create_task(_execute(call, operations, loop))
    batch.add_done_callback(_hear)
    await asyncio.shield(batch)


def _hear(batch: asyncio.Task[None]) -> None:
    """Retrieve a failure that nobody waits for any more."""
    if not batch.cancelled():
        batch.exception()


def install() -> None:
    """Let every grpc.aio call of this process run its batches so; a second time changes nothing."""
    cygrpc.execute_batch = _execute_to_the_end
