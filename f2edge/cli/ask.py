"""``f2edge describe``, ``ask`` and ``analyze``: text and attributes of a face."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated

import typer

from f2edge.cli.console import Output, bar, print_piece
from f2edge.cli.options import (
    BackendOption,
    BundleOption,
    ImageArgument,
    JsonOption,
    QuietOption,
    ServerOption,
    ThreadsOption,
    open_description,
    open_model,
    open_pipeline,
    output,
)
from f2edge.errors import InputError

if TYPE_CHECKING:
    from f2edge.face_model import FaceModel
    from f2edge.results import Answer, FaceReport
    from f2edge.spec.attributes import AttributeSchema


def describe(
    image: ImageArgument,
    *,
    bundle: BundleOption = "nano",
    backend: BackendOption = "auto",
    threads: ThreadsOption = None,
    server: ServerOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Describe a face in words."""
    from f2edge.imaging.images import load_image

    picture = load_image(image)
    printer = output(json, quiet)
    pipeline = open_model(bundle, backend, threads, server)
    answer = pipeline.describe(picture, on_token=print_piece if printer.streams else None)
    _report_answer(printer, pipeline, image, answer, None)


def ask(
    image: ImageArgument,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="About the face, in English.", show_default=False)],
    *,
    bundle: BundleOption = "nano",
    backend: BackendOption = "auto",
    threads: ThreadsOption = None,
    server: ServerOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Answer a question about a face."""
    from f2edge.imaging.images import load_image
    from f2edge.text import check_text

    check_text(question, "question")
    picture = load_image(image)
    printer = output(json, quiet)
    pipeline = open_model(bundle, backend, threads, server)
    answer = pipeline.ask(picture, question, on_token=print_piece if printer.streams else None)
    _report_answer(printer, pipeline, image, answer, question)


def analyze(
    image: ImageArgument,
    *,
    attributes: Annotated[
        str | None,
        typer.Option("--attributes", metavar="A,B,…", help="Only these attributes, sensitive ones included.", show_default=False),
    ] = None,
    include_sensitive: Annotated[
        bool, typer.Option("--include-sensitive", help="Also estimate age, gender presentation, skin tone, build and emotion.")
    ] = False,
    bundle: BundleOption = "nano",
    backend: BackendOption = "auto",
    threads: ThreadsOption = None,
    server: ServerOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """List every attribute of a face with its probability."""
    from f2edge.imaging.images import load_image

    picture = load_image(image)
    opened = open_description(bundle, backend, threads, server)
    if not opened.schema:
        raise InputError("this bundle has no attributes: its model was trained without a schema; use `f2edge ask` or `f2edge describe`")
    if attributes is None:
        names = [slot.name for slot in opened.schema.values() if include_sensitive or not slot.sensitive]
    else:
        names = [name.strip() for name in attributes.split(",")]
    schema = opened.schema.select(names)
    printer = output(json, quiet)
    pipeline = open_pipeline(opened, backend, threads)
    start = perf_counter()
    (report,) = pipeline.analyze(picture, attributes=names)
    total_ms = 1e3 * (perf_counter() - start)
    best = report.best
    printer.document(
        {
            "bundle": opened.name,
            "backend": pipeline.backend.name,
            "image": str(image),
            "attributes": {
                name: {
                    "value": best[name],
                    "probability": round(report.probabilities[name][best[name]], 6),
                    "probabilities": {value: round(p, 6) for value, p in report.probabilities[name].items()},
                    **({"hidden": round(report.hidden[name], 6)} if name in report.hidden else {}),
                }
                for name in schema
            },
            **({} if report.unfamiliar is None else {"unfamiliar": round(report.unfamiliar, 6)}),
            "total_ms": round(total_ms, 3),
        }
    )
    _report_table(printer, schema, report)
    if report.unfamiliar is not None and report.unfamiliar > 0.5:
        printer.note(f"this is no face of the kind that the model knows ({100 * report.unfamiliar:.0f} % sure): do not rely on the answers")
    if len(names) < len(opened.schema) and attributes is None:
        printer.note(f"{total_ms:.0f} ms; age, emotion and other sensitive attributes are left out (--include-sensitive)")
    else:
        printer.note(f"{total_ms:.0f} ms")


def _report_answer(printer: Output, pipeline: FaceModel, image: Path, answer: Answer, question: str | None) -> None:
    printer.document(
        {
            "bundle": pipeline.bundle.name,
            "backend": pipeline.backend.name,
            "image": str(image),
            **({} if question is None else {"question": question}),
            "answer": answer.text,
            "tokens": len(answer.tokens),
            "first_token_ms": round(answer.first_token_ms, 3),
            "tokens_per_second": round(answer.tokens_per_second, 3),
        }
    )
    printer.line("" if printer.streams else answer.text)


def _report_table(printer: Output, schema: AttributeSchema, report: FaceReport) -> None:
    best, rows, group = report.best, [], None
    for slot in schema.values():
        value, probability = best[slot.name].replace("_", " "), report.probabilities[slot.name][best[slot.name]]
        if report.hidden.get(slot.name, 0.0) > 0.5:
            value, probability = "cannot tell", report.hidden[slot.name]
        heading, group = ("" if slot.group == group else slot.group), slot.group
        rows.append((heading, slot.name.replace("_", " "), value, f"{100 * probability:.0f} %", bar(probability)))
    printer.table(("", "attribute", "value", ">probability", ""), rows)
