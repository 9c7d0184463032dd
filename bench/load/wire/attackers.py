"""Every attacker at once against one server, from a process of its own: ``python -m bench.load.wire.attackers HOST:PORT --seconds 60``.

One thread sends mutated conversations, one holds on to connections, calls and windows in every way there is, one sends hostile pictures.
The process is nice, so that on the same cores it costs the server's other callers no more than its connections do.  It ends with a line
of JSON: how many of each.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import grpc

from bench.load.wire.held import ATTACKS
from bench.load.wire.mutations import Conversations, say
from bench.load.wire.pictures import bombs, damaged
from f2edge.v1 import face_pb2 as pb

_NICE = 10
_HOLD_S, _PAUSE_S = 3.0, 0.5
_PICTURE_PAUSE_S, _CALL_S = 0.05, 20.0
_BOMB_EVERY = 20
_LISTEN_EVERY, _LISTEN_S = 50, 0.05


class Attackers:
    """Attacks until told to stop.

    Args:
        address: "host:port" of a plaintext server.
        seed: of what is sent.
        rate: conversations a second at most.
    """

    def __init__(self, address: str, seed: int = 1, rate: float = 200.0) -> None:
        self.counts: Counter[str] = Counter()
        self.unreachable = 0
        self._address = address
        self._seed = seed
        self._rate = rate
        self._end = threading.Event()

    def run(self, seconds: float) -> None:
        """Attack for ``seconds``."""
        works: tuple[Callable[[], None], ...] = (self._converse, self._hold, self._send_pictures)
        threads = [threading.Thread(target=work, daemon=True) for work in works]
        for thread in threads:
            thread.start()
        self._end.wait(seconds)
        self.stop()
        for thread in threads:
            thread.join(_CALL_S + _HOLD_S)

    def stop(self) -> None:
        """End the attack early."""
        self._end.set()

    def _converse(self) -> None:
        started = time.monotonic()
        for number, data in enumerate(Conversations(self._seed)):
            if self._end.wait(max(0.0, started + number / self._rate - time.monotonic())):
                return
            try:
                say(self._address, data, listen_s=_LISTEN_S if number % _LISTEN_EVERY == 0 else 0.0)
                self.counts["conversations"] += 1
            except OSError:
                self.unreachable += 1

    def _hold(self) -> None:
        rng = random.Random(self._seed)  # noqa: S311
        names = list(ATTACKS)
        while not self._end.is_set():
            rng.shuffle(names)
            for name in names:
                with contextlib.ExitStack() as stack:
                    ATTACKS[name](self._address, stack)
                    self.counts[name] += 1
                    if self._end.wait(_HOLD_S):
                        return
                if self._end.wait(_PAUSE_S):
                    return

    def _send_pictures(self) -> None:
        small, large = damaged(self._seed), list[bytes]()
        with grpc.insecure_channel(self._address) as channel:
            analyze = channel.unary_unary("/f2edge.v1.FaceService/Analyze")
            while not self._end.wait(_PICTURE_PAUSE_S):
                number = self.counts["pictures"]
                picture = next(small)
                if number % _BOMB_EVERY == _BOMB_EVERY - 1:
                    large = large or list(bombs().values())  # seconds to make
                    picture = large[number // _BOMB_EVERY % len(large)]
                with contextlib.suppress(grpc.RpcError):
                    analyze(pb.AnalyzeRequest(image=picture, attributes=["age"]).SerializeToString(), timeout=_CALL_S)
                self.counts["pictures"] += 1


@contextlib.contextmanager
def attacking(address: str, seconds: float, *, seed: int = 1, rate: float = 200.0) -> Iterator[Callable[[], dict[str, int]]]:
    """Run the attackers in a process of their own for the length of a block; the callable waits for them and gives their counts."""
    command = [sys.executable, "-m", "bench.load.wire.attackers", address]
    options = ["--seconds", f"{seconds:g}", "--seed", str(seed), "--rate", f"{rate:g}"]
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True)  # noqa: S603

    def counts() -> dict[str, int]:
        out, _ = process.communicate(timeout=seconds + 2 * (_CALL_S + _HOLD_S))
        lines = out.splitlines()
        return dict(json.loads(lines[-1])) if lines else {}

    try:
        yield counts
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(30)
        if process.stdout is not None:
            process.stdout.close()


def main() -> None:
    """Attack from the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.load.wire.attackers", description="Attack a server of your own on loopback.")
    parser.add_argument("address", metavar="HOST:PORT")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=200.0, help="conversations a second")
    given = parser.parse_args()
    os.nice(_NICE)
    attackers = Attackers(given.address, given.seed, given.rate)
    attackers.run(given.seconds)
    print(json.dumps({**attackers.counts, "unreachable": attackers.unreachable}))


if __name__ == "__main__":
    main()
