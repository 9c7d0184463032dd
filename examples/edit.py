"""Edit one region of a face: generate a face, then decode its hair again from another prompt.

$ python examples/edit.py "a young woman with long red hair" "a young woman with long blue hair" --region hair
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from f2edge import FacePipeline


def main() -> None:
    """Write the face before and after, side by side."""
    parser = argparse.ArgumentParser(description="Edit one region of a face.")
    parser.add_argument("before", help="prompt of the first face")
    parser.add_argument("after", help="prompt of the edited face")
    parser.add_argument("--region", default="hair", help="name, see pipeline.bundle.regions")
    parser.add_argument("--out", type=Path, default=Path("edit.png"))
    arguments = parser.parse_args()

    pipeline = FacePipeline.load("nano")
    face = pipeline.generate(arguments.before, seeds=3)[0]
    edited = pipeline.edit(face.image, arguments.after, arguments.region, seed=3)
    changed = int((edited.codes != edited.original_codes).sum())
    print(f"{changed} of {edited.codes.size} tokens changed, all inside {arguments.region!r}")

    sheet = Image.new("RGB", (2 * face.image.width, face.image.height))
    sheet.paste(face.image, (0, 0))
    sheet.paste(edited.image, (face.image.width, 0))
    sheet.save(arguments.out)


if __name__ == "__main__":
    main()
