"""The client against servers that mean it ill: every call ends with one of this package's errors, in time, and nothing reaches stderr."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from bench.load.wire.hostile import SERVERS, hostile
from f2edge.client.aio import AsyncClient
from f2edge.client.sync import Client
from f2edge.errors import F2EdgeError

_PATIENCE_S = 1.0


@pytest.mark.parametrize("server", SERVERS)
def test_every_call_ends_with_an_error_of_ours(server: str) -> None:
    """Broken details were a DecodeError, an answer that never came an AttributeError."""
    with hostile(SERVERS[server]) as address, Client(address, timeout_s=_PATIENCE_S, connect_s=_PATIENCE_S) as client:  # noqa: SIM117
        with pytest.raises(F2EdgeError):
            _ = client.bundle


@pytest.mark.parametrize("server", SERVERS)
def test_every_call_of_the_asynchronous_client_does_so_too(server: str) -> None:
    async def ask(address: str) -> None:
        async with AsyncClient(address, timeout_s=_PATIENCE_S, connect_s=_PATIENCE_S) as client:
            with pytest.raises(F2EdgeError):
                await client.model()

    with hostile(SERVERS[server]) as address:
        asyncio.run(asyncio.wait_for(ask(address), 20))


def test_what_a_peer_sends_does_not_reach_stderr() -> None:
    """gRPC's own library wrote the text of a GOAWAY there as it came."""
    program = (
        "import sys\nfrom f2edge.client.sync import Client\nfrom f2edge.errors import F2EdgeError\n"
        "try:\n    Client(sys.argv[1], connect_s=1.0).bundle\nexcept F2EdgeError:\n    print('refused')"
    )
    with hostile(SERVERS["says goodbye with escape sequences"]) as address:
        command = [sys.executable, "-c", program, address]
        done = subprocess.run(command, capture_output=True, check=False, timeout=60, cwd=Path(__file__).parents[3])
    assert done.stdout == b"refused\n"
    assert done.stderr == b""
