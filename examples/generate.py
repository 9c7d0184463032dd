"""Generate faces with different seeds and save them with their labels.

$ python examples/generate.py "a young woman with long red hair" --count 4 --out faces
"""

from __future__ import annotations

import argparse
from pathlib import Path

from f2edge import FacePipeline
from f2edge.provenance.label import label
from f2edge.provenance.saving import save_image


def main() -> None:
    """Write ``<seed>.png`` for seeds 0, 1, 2 …"""
    parser = argparse.ArgumentParser(description="Generate faces with different seeds.")
    parser.add_argument("prompt")
    parser.add_argument("--count", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("faces"))
    arguments = parser.parse_args()

    pipeline = FacePipeline.load("nano")
    arguments.out.mkdir(parents=True, exist_ok=True)
    for face in pipeline.generate([arguments.prompt] * arguments.count, seeds=range(arguments.count)):
        origin = label(prompt=face.prompt, seed=face.seed, bundle=pipeline.bundle.name)
        print(save_image(face.image, arguments.out / f"{face.seed}.png", origin))


if __name__ == "__main__":
    main()
