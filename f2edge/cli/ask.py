"""``f2edge describe`` and ``ask``: text about faces."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from f2edge.cli.console import Output, fail, print_piece
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
    open_model,
)
from f2edge.errors import ImageError

if TYPE_CHECKING:
    from PIL import Image

    from f2edge.face_model import FaceModel
    from f2edge.results import Answer


def describe(
    images: ImagesArgument,
    *,
    include_sensitive: SensitiveOption = False,
    bundle: BundleOption = "nano",
    backend: BackendOption = "auto",
    threads: ThreadsOption = None,
    server: ServerOption = None,
    json: JsonOption = False,
    jsonl: JsonLinesOption = False,
    quiet: QuietOption = False,
    _verbose: VerboseOption = False,
) -> int:
    """Describe faces in words."""
    asked = Pictures.of(images, json=json, jsonl=jsonl, quiet=quiet)
    printer = asked.printer

    def answer(model: FaceModel, picture: Image.Image) -> Answer:
        on_token = print_piece if printer.streams and asked.first is not None else None
        return model.describe(picture, on_token=on_token, include_sensitive=include_sensitive)

    return asked.answers(open_model(bundle, backend, threads, server), answer, None)


def ask(
    images: ImagesArgument,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="About each face, in English.", show_default=False)],
    *,
    include_sensitive: SensitiveOption = False,
    bundle: BundleOption = "nano",
    backend: BackendOption = "auto",
    threads: ThreadsOption = None,
    server: ServerOption = None,
    json: JsonOption = False,
    jsonl: JsonLinesOption = False,
    quiet: QuietOption = False,
    _verbose: VerboseOption = False,
) -> int:
    """Answer a question about faces."""
    from f2edge.text import check_text

    check_text(question, "question")
    asked = Pictures.of(images, json=json, jsonl=jsonl, quiet=quiet)
    printer = asked.printer

    def answer(model: FaceModel, picture: Image.Image) -> Answer:
        on_token = print_piece if printer.streams and asked.first is not None else None
        return model.ask(picture, question, on_token=on_token, include_sensitive=include_sensitive)

    return asked.answers(open_model(bundle, backend, threads, server), answer, question)


@dataclass(frozen=True)
class Pictures:
    """Pictures to talk about; ``first`` is the only one, opened before the model is."""

    files: Sequence[str]
    first: Image.Image | None
    printer: Output

    @classmethod
    def of(cls, images: Sequence[str], *, json: bool, jsonl: bool, quiet: bool) -> Pictures:
        """Return the pictures that a command line names."""
        from f2edge.imaging.images import open_image

        files = picture_files(images)
        one_document(files, json=json)
        first = open_image(picture_source(files[0])) if len(files) == 1 else None
        return cls(files, first, Output(json=json or jsonl, quiet=quiet))

    def answers(self, model: FaceModel, answer: Callable[[FaceModel, Image.Image], Answer], question: str | None) -> int:
        """Print the answer about each; one that cannot be read is reported, and the others go on.  Return the exit code."""
        from f2edge.imaging.images import open_image

        code, printer = 0, self.printer
        for file in self.files:
            try:
                picture = open_image(picture_source(file)) if self.first is None else self.first
            except ImageError as error:
                fail(error)
                printer.document({"image": file, "error": str(error)})
                code = 2
                continue
            said = answer(model, picture)
            printer.document(_document(model, file, said, question))
            if self.first is None:
                printer.line(f"{file}: {said.text}")
            else:
                printer.line("" if printer.streams else said.text)
        return code


def _document(model: FaceModel, file: str, answer: Answer, question: str | None) -> dict[str, Any]:
    return {
        "bundle": model.bundle.name,
        "backend": model.backend.name,
        "image": file,
        **({} if question is None else {"question": question}),
        "answer": answer.text,
        "include_sensitive": answer.include_sensitive,
        "tokens": len(answer.tokens),
        "first_token_ms": round(answer.first_token_ms, 3),
        "tokens_per_second": round(answer.tokens_per_second, 3),
    }
