"""Signals where event loops take none, and a stop while a model loads."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys

import pytest

from f2edge.cli.serve import watch_signals

pytestmark = pytest.mark.runtime


class Deaf:
    """A loop that takes no signals, as that of Windows."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.call_soon_threadsafe = loop.call_soon_threadsafe

    def add_signal_handler(self, *_arguments: object) -> None:
        raise RuntimeError


def test_signals_arrive_without_the_loops_help() -> None:
    async def main() -> bool:
        stop = asyncio.Event()
        watch_signals(Deaf(asyncio.get_running_loop()), stop.set)  # type: ignore[arg-type]
        os.kill(os.getpid(), signal.SIGTERM)
        return await asyncio.wait_for(stop.wait(), 20)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        assert asyncio.run(main())
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_an_end_while_a_model_loads_skips_the_shutdown_that_would_abort() -> None:
    program = (
        "import atexit, threading, time\nfrom f2edge.cli.main import _leave\n"
        "atexit.register(print, 'shut down')\n"
        "threading.Thread(target=time.sleep, args=(60,), name='f2edge-loading', daemon=True).start()\n_leave(3)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "")
