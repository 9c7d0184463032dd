"""Start a server in a process of its own, then generate and ask through the client.

$ python examples/client_and_server.py "an old man with curly gray hair" --out face.png
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from f2edge.client import Client


def main() -> None:
    """Print each decoding step as it happens, then an answer."""
    parser = argparse.ArgumentParser(description="Generate and ask through a server.")
    parser.add_argument("prompt")
    parser.add_argument("--out", type=Path, default=Path("face.png"))
    arguments = parser.parse_args()

    command = [sys.executable, "-m", "f2edge", "serve", "--port", "0", "--quiet"]  # port 0: any free port
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().split()[-1]  # "f2edge serves on ADDRESS"
            with Client(address, connect_s=60) as client:  # the model is still loading
                face = client.generate(arguments.prompt, seeds=7, on_step=lambda step: print(f"step {step.step}/{step.steps}"))[0]
                face.save(arguments.out)
                print(client.ask(face.image, "what color is the hair?").text)
        finally:
            server.terminate()  # the server finishes accepted calls, then exits


if __name__ == "__main__":
    main()
