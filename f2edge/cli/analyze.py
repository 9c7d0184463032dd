"""``f2edge analyze``: attributes of a face as a table, or of many as JSON lines or CSV, resumable."""

from __future__ import annotations

import csv
import io
import json as json_text
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from f2edge.cli.console import Output, bar, fail
from f2edge.cli.inputs import one_document, picture_files, picture_source
from f2edge.cli.options import (
    BackendOption,
    BundleOption,
    ImagesArgument,
    JsonLinesOption,
    JsonOption,
    QuietOption,
    SensitiveOption,
    ServerOption,
    ThreadsOption,
    VerboseOption,
    open_description,
    open_pipeline,
)
from f2edge.errors import ImageError, InputError, OutputError

if TYPE_CHECKING:
    from PIL import Image

    from f2edge.bundle.bundle import Bundle
    from f2edge.client.sync import Client
    from f2edge.face_model import FaceModel
    from f2edge.results import FaceReport
    from f2edge.spec.attributes import AttributeSchema

#: Faces read together.
FACES_AT_ONCE = 8


def analyze(
    images: ImagesArgument,
    *,
    attributes: Annotated[
        str | None,
        typer.Option("--attributes", metavar="A,B,…", help="Only these attributes.", show_default=False),
    ] = None,
    include_sensitive: SensitiveOption = False,
    bundle: BundleOption = "nano",
    backend: BackendOption = "auto",
    threads: ThreadsOption = None,
    server: ServerOption = None,
    json: JsonOption = False,
    jsonl: JsonLinesOption = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print a row for each picture: value and probability of each attribute.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="File for --jsonl or --csv (default: stdout).", show_default=False)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Append to --out and leave out the pictures that it has.")] = False,
    quiet: QuietOption = False,
    _verbose: VerboseOption = False,
) -> int:
    """List every attribute of faces with its probability."""
    from f2edge.imaging.images import open_image
    from f2edge.spec.sensitive import SensitivePolicy

    files = picture_files(images)
    printer = _printer(json, jsonl, as_csv, out, resume=resume, quiet=quiet, files=files)
    picture = open_image(picture_source(files[0])) if len(files) == 1 else None  # checked before the model is opened
    opened = open_description(bundle, backend, threads, server)
    if not opened.schema:
        raise InputError("this bundle has no attributes: its model was trained without a schema; use `f2edge ask` or `f2edge describe`")
    named = None if attributes is None else [name.strip() for name in attributes.split(",")]
    policy = SensitivePolicy.of(opened.faces, include=include_sensitive)
    analysis = Analysis(opened, opened.schema.select(policy.attributes(opened.schema, named)), backend, threads, include_sensitive)
    if jsonl or as_csv:
        with _lines(out, append=resume) as file:
            done = _done(out, as_csv=as_csv) if resume and out is not None else set()
            return analysis.rows([name for name in files if name not in done], file, printer, as_csv=as_csv, header=not done)
    code = 0
    for name in files:
        try:
            analysis.show(name, open_image(picture_source(name)) if picture is None else picture, printer, title=len(files) > 1)
        except ImageError as error:
            if picture is not None:
                raise
            fail(error)
            code = 2
    if analysis.left_out and attributes is None:
        printer.note("age, emotion and other sensitive attributes are left out (--include-sensitive)")
    return code


class Analysis:
    """One model and the attributes wanted of each face."""

    def __init__(
        self, opened: Bundle | Client, schema: AttributeSchema, backend: str, threads: int | None, include_sensitive: bool
    ) -> None:
        self._name, self._schema, self._include = opened.name, schema, include_sensitive
        self.left_out = len(schema) < len(opened.schema)
        self._model: FaceModel = open_pipeline(opened, backend, threads)

    def show(self, name: str, picture: Image.Image, printer: Output, *, title: bool) -> None:
        """Print a table of one picture's attributes, or its document."""
        start = perf_counter()
        (report,) = self._reports([picture])
        total_ms = 1e3 * (perf_counter() - start)
        printer.document(
            {"bundle": self._name, "backend": self._model.backend.name, **self._document(name, report), "total_ms": round(total_ms, 3)}
        )
        if title:
            printer.line(name)
        self._table(printer, report)
        if report.unfamiliar is not None and report.unfamiliar > 0.5:
            percent = f"{100 * report.unfamiliar:.0f} % sure"
            printer.note(f"this is no face of the kind that the model knows ({percent}): do not rely on the answers")
        printer.note(f"{total_ms:.0f} ms")

    def rows(self, names: Sequence[str], file: TextIO, printer: Output, *, as_csv: bool, header: bool) -> int:
        """Write a line for each picture as soon as its group is done; return the exit code: 2 if a picture could not be read."""
        failed = done = 0
        if as_csv and header:
            columns = (f"{slot}{end}" for slot in self._schema for end in ("", "_probability"))
            file.write(_csv_line(["image", *columns, "unfamiliar", "include_sensitive", "error"]))
        with printer.progress("pictures", always=True) as advance:
            for first in range(0, len(names), FACES_AT_ONCE):
                for name, found in self._group(names[first : first + FACES_AT_ONCE]):
                    failed += isinstance(found, ImageError)
                    file.write(self._csv(name, found) if as_csv else self._json(name, found))
                    if isinstance(found, ImageError):
                        fail(found)
                file.flush()
                done = min(first + FACES_AT_ONCE, len(names))
                advance(done, len(names))
        return 2 if failed else 0

    def _group(self, names: Sequence[str]) -> Iterator[tuple[str, FaceReport | ImageError]]:
        from f2edge.imaging.images import open_image

        pictures: list[Image.Image | ImageError] = []
        for name in names:
            try:
                pictures.append(open_image(picture_source(name)))
            except ImageError as error:
                pictures.append(error)
        good = [picture for picture in pictures if not isinstance(picture, ImageError)]
        reports = iter(self._reports(good) if good else ())
        for name, picture in zip(names, pictures, strict=True):
            yield name, picture if isinstance(picture, ImageError) else next(reports)

    def _reports(self, pictures: Sequence[Image.Image]) -> list[FaceReport]:
        return self._model.analyze(list(pictures), attributes=list(self._schema), include_sensitive=self._include)

    def _document(self, name: str, report: FaceReport) -> dict[str, Any]:
        best = report.best
        return {
            "image": name,
            "attributes": {
                slot: {
                    "value": best[slot],
                    "probability": round(report.probabilities[slot][best[slot]], 6),
                    "probabilities": {value: round(p, 6) for value, p in report.probabilities[slot].items()},
                    **({"hidden": round(report.hidden[slot], 6)} if slot in report.hidden else {}),
                }
                for slot in self._schema
            },
            **({} if report.unfamiliar is None else {"unfamiliar": round(report.unfamiliar, 6)}),
            "include_sensitive": report.include_sensitive,
        }

    def _json(self, name: str, found: FaceReport | ImageError) -> str:
        row = {"image": name, "error": str(found)} if isinstance(found, ImageError) else self._document(name, found)
        return json_text.dumps(row, allow_nan=False) + "\n"

    def _csv(self, name: str, found: FaceReport | ImageError) -> str:
        if isinstance(found, ImageError):
            return _csv_line([name, *[""] * (2 * len(self._schema) + 2), str(found)])
        best = found.best
        cells = (cell for slot in self._schema for cell in (best[slot], f"{found.probabilities[slot][best[slot]]:.4f}"))
        unfamiliar = "" if found.unfamiliar is None else f"{found.unfamiliar:.4f}"
        return _csv_line([name, *cells, unfamiliar, str(found.include_sensitive).lower(), ""])

    def _table(self, printer: Output, report: FaceReport) -> None:
        best, rows, group = report.best, [], None
        for slot in self._schema.values():
            value, probability = best[slot.name].replace("_", " "), report.probabilities[slot.name][best[slot.name]]
            if report.hidden.get(slot.name, 0.0) > 0.5:
                value, probability = "cannot tell", report.hidden[slot.name]
            heading, group = ("" if slot.group == group else slot.group), slot.group
            rows.append((heading, slot.name.replace("_", " "), value, f"{100 * probability:.0f} %", bar(probability)))
        printer.table(("", "attribute", "value", ">probability", ""), rows)


def _printer(json: bool, jsonl: bool, as_csv: bool, out: Path | None, *, resume: bool, quiet: bool, files: Sequence[str]) -> Output:
    """Return the printer of a run, after checking that its options fit together."""
    if json + jsonl + as_csv > 1:
        raise InputError("--json, --jsonl and --csv exclude each other; give one of them")
    one_document(files, json=json)
    if out is not None and not (jsonl or as_csv):
        raise InputError("--out is for --jsonl and --csv; give one of them")
    if resume and out is None:
        raise InputError("--resume needs --out: the file that has the earlier results")
    return Output(json=json or jsonl or as_csv, quiet=quiet)


@contextmanager
def _lines(out: Path | None, *, append: bool) -> Iterator[TextIO]:
    if out is None:
        yield sys.stdout
        return
    try:
        file = out.open("a" if append else "w", encoding="utf-8", newline="")
    except (OSError, ValueError) as error:
        raise OutputError(
            f"{str(out)[:200]}: cannot be written ({getattr(error, 'strerror', None) or error}); choose another file"
        ) from error
    with file:
        yield file


def _done(out: Path, *, as_csv: bool) -> set[str]:
    """Return the pictures that a file of earlier results has; an unfinished last line, of a run that was ended, is cut off."""
    data = out.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        out.write_bytes(whole)
    try:
        text = whole.decode()
        if as_csv:
            return {row["image"] for row in csv.DictReader(io.StringIO(text, newline=""), strict=True)}
        return {str(json_text.loads(line)["image"]) for line in text.split("\n")[:-1]}
    except (csv.Error, ValueError, LookupError, TypeError, RecursionError) as error:
        raise InputError(f"{out}: has lines that `analyze` did not write; give another --out") from error


def _csv_line(cells: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()
