"""Analyze every PNG image of a folder and write one CSV row for each.

$ python examples/analyze_folder.py faces --out faces.csv
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

from f2edge import FacePipeline, InputError


def main() -> None:
    """Write file name, then every attribute and its probability."""
    parser = argparse.ArgumentParser(description="Analyze every PNG image of a folder.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("faces.csv"))
    arguments = parser.parse_args()

    pipeline = FacePipeline.load("nano")
    slots = list(pipeline.bundle.schema)  # of photographed faces, sensitive ones need include_sensitive=True
    with arguments.out.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["file", *(f"{slot}{column}" for slot in slots for column in ("", "_probability"))])
        for path in sorted(arguments.folder.glob("*.png")):
            try:
                report = pipeline.analyze(path, attributes=slots)[0]
            except InputError as error:  # damaged or too large: report it and go on
                print(error, file=sys.stderr)
                continue
            cells = ((value, f"{report.probabilities[slot][value]:.4f}") for slot, value in report.best.items())
            rows.writerow([path.name, *(cell for pair in cells for cell in pair)])


if __name__ == "__main__":
    main()
