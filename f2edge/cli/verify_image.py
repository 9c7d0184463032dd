"""``f2edge verify-image``: marks of origin of picture files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from f2edge.cli.options import JsonOption, QuietOption, WatermarkKeyOption, output, watermark_key_from_environment
from f2edge.errors import ImageError
from f2edge.text import one_line

if TYPE_CHECKING:
    from f2edge.provenance.inspection import Marks
    from f2edge.provenance.watermark import Watermark

MARKED, UNMARKED, UNREADABLE = 0, 1, 2
_LONGEST_TEXT, _LONGEST_CELL = 60, 200


def verify_image(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="JPEG, PNG or WebP files.", show_default=False)],
    *,
    watermark_key: WatermarkKeyOption = None,
    trust: Annotated[
        Path | None,
        typer.Option("--trust", metavar="FILE", help="PEM certificates of trusted signers of content credentials.", show_default=False),
    ] = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Show the marks of origin of pictures: label, watermark, content credentials.

    Exit codes: 0 if every file has a mark, 1 if a file has none, 2 if a file cannot be read.  A missing mark does not prove that a
    picture is real: marks can be lost.
    """
    from f2edge.provenance.c2pa import read_anchors
    from f2edge.provenance.inspection import find_marks

    keys, anchors = _keys(watermark_key), read_anchors(trust) if trust else b""
    rows: list[dict[str, Any]] = []
    for file in files:
        try:
            rows.append({"file": str(file), **_table_of(find_marks(file, keys, anchors))})
        except ImageError as error:
            rows.append({"file": str(file), "error": str(error)})
    printer = output(json, quiet)
    printer.document({"files": rows})
    printer.table(("file…", "label…", "watermark…", "content credentials…"), [_cells(row) for row in rows])
    if any("error" in row for row in rows):
        return UNREADABLE
    return MARKED if all(row["marks"] for row in rows) else UNMARKED


def _keys(key_file: Path | None) -> dict[str, Watermark]:
    """Return the watermarks to look for: the public one and that of the secret key, if given."""
    from f2edge.provenance.watermark import PUBLIC, Watermark, read_key

    key_file = key_file or watermark_key_from_environment()
    return {"public": PUBLIC} if key_file is None else {"own": Watermark(read_key(key_file)), "public": PUBLIC}


def _table_of(marks: Marks) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "marks": list(marks.names),
        "synthetic": marks.synthetic,
        "label": None if marks.label is None else asdict(marks.label),
        "watermark": {
            key: {
                **asdict(detection),
                "score": round(detection.score, 2),
                "threshold": round(detection.threshold, 2),
                "found": detection.found,
            }
            for key, detection in marks.watermarks.items()
        },
        "credentials": None if marks.credentials is None else asdict(marks.credentials),
        "credentials_read": marks.credentials_read,
    }


def _cells(row: dict[str, Any]) -> tuple[str, str, str, str]:
    if "error" in row:
        return one_line(row["file"], _LONGEST_TEXT), one_line(row["error"], _LONGEST_CELL), "", ""
    return one_line(row["file"], _LONGEST_CELL), _label_cell(row["label"]), _watermark_cell(row["watermark"]), _credentials_cell(row)


def _label_cell(label: dict[str, Any] | None) -> str:
    if label is None:
        return "none"
    parts = [label["source_type"].rsplit("/", 1)[-1], label["software"], label["bundle"] or ""]
    parts += [f"seed {label['seed']}" if label["seed"] is not None else "", f'"{label["prompt"]}"' if label["prompt"] else ""]
    return ", ".join(one_line(part, _LONGEST_TEXT) for part in parts if part)


def _watermark_cell(found: dict[str, dict[str, Any]]) -> str:
    """Return the cell of the watermark found, or of the one with the highest score."""
    key, best = max(found.items(), key=lambda item: (item[1]["found"], item[1]["score"] - item[1]["threshold"]))
    columns, rows = best["grid"]
    sheet = f" on a sheet of {columns} x {rows}" if best["found"] and columns * rows > 1 else ""
    mirror = ", mirrored" if best["found"] and best["mirrored"] else ""
    return f"{f'found ({key} key)' if best['found'] else 'none'}{sheet}{mirror}: {best['score']:.1f}, threshold {best['threshold']:.1f}"


def _credentials_cell(row: dict[str, Any]) -> str:
    found = row["credentials"]
    if found is None:
        return "none" if row["credentials_read"] else "not read: pip install 'f2edge[c2pa]'"
    problems = f" ({', '.join(found['problems'])})" if found["problems"] else ""
    return one_line(f"{found['state']}{problems}: {found['signer']}", _LONGEST_CELL)
