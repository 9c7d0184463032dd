"""The picture pool: how many requests may wait, and what a refused one is told."""

from __future__ import annotations

import asyncio
from threading import Event

import grpc
import pytest

from f2edge.server.pictures import PicturePool
from f2edge.server.status import RefusedError

pytestmark = pytest.mark.runtime

#: Every waiting request counts 64 KiB besides its own bytes.
OVERHEAD = 64 << 10


@pytest.mark.parametrize(("size", "fitting"), [(0, 16), (1, 15), (OVERHEAD, 8), (15 * OVERHEAD, 1), (16 * OVERHEAD, 0)])
def test_small_requests_are_bounded_in_number_too(size: int, fitting: int) -> None:
    """1 MiB holds sixteen empty requests; the next is refused, and the room is free again once they were opened."""
    release = Event()

    async def main() -> None:
        pool = PicturePool(1, 16 * OVERHEAD)
        try:
            waiting = [asyncio.create_task(pool.open(size, release.wait)) for _ in range(fitting)]
            beyond = asyncio.create_task(pool.open(size, lambda: True))
            await asyncio.sleep(0)
            assert beyond.done(), "the request waits"
            assert not any(task.done() for task in waiting)
            with pytest.raises(RefusedError) as refused:
                beyond.result()
            assert refused.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            release.set()
            assert await asyncio.gather(*waiting) == [True] * fitting
            if fitting:
                assert await pool.open(size, lambda: "opened") == "opened"
        finally:
            release.set()
            pool.close()

    asyncio.run(main())
