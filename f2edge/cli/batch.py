"""Many faces with one command: ``f2edge generate --prompts FILE --out-dir DIR``, or ``-`` for prompts from standard input.

Rows are decoded in groups, as :meth:`FacePipeline.generate` batches them, while the files of the group before are written.  A row that
fails is reported and the others go on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from f2edge.cli.inputs import PromptRow
from f2edge.errors import F2EdgeError, InputError, OutputError
from f2edge.text import check_text

if TYPE_CHECKING:
    from f2edge.face_model import FaceModel
    from f2edge.provenance.c2pa import Signer
    from f2edge.results import GeneratedFace, GenerateOptions

#: Rows decoded together.
ROWS_AT_ONCE = 16
_LONGEST_NAME = 200


@dataclass(frozen=True)
class Batch:
    """How the faces of many prompts are written.

    Attributes:
        folder: existing folder of the pictures.
        options: of every row that does not say otherwise.
        seed: of the first row; each row without a seed has this one and its number more.
        side: of the pictures in pixels; None for the model's.
        signer: of content credentials.
        resume: leave out rows whose picture exists.
        more: further arguments of ``generate``: ``check``, ``layout`` …
    """

    folder: Path
    options: GenerateOptions
    seed: int
    side: int | None = None
    signer: Signer | None = None
    resume: bool = False
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Planned:
    row: PromptRow
    file: Path
    seed: int
    options: GenerateOptions


def generate_all(model: FaceModel, rows: Iterable[PromptRow], batch: Batch) -> Iterator[dict[str, Any]]:
    """Generate and write the faces of rows; yield a record of each, in order: ``file``, ``prompt``, ``seed``, or its ``error``."""
    taken: set[str] = set()
    source = iter(rows)
    with ThreadPoolExecutor(1, thread_name_prefix="f2edge-files") as writer:
        waiting: list[Future[dict[str, Any]]] = []
        while group := list(islice(source, ROWS_AT_ONCE)):
            before, waiting = waiting, _group(model, [_planned(row, batch, taken) for row in group], batch, writer)
            yield from (future.result() for future in before)
        yield from (future.result() for future in waiting)


def make_folder(folder: Path) -> Path:
    """Return the folder of the pictures, made if it does not exist.

    Raises:
        OutputError: it cannot be made or written.
    """
    from f2edge.provenance.saving import check_writable

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise OutputError(
            f"{str(folder)[:200]}: cannot be made ({getattr(error, 'strerror', None) or error}); choose another folder"
        ) from error
    check_writable(folder / "face.png")
    return folder


def _planned(row: PromptRow, batch: Batch, taken: set[str]) -> _Planned | dict[str, Any]:
    """Return what is to be drawn, or the record of a row that is refused or done."""
    from f2edge.decoding.schedule import Schedule

    try:
        if row.problem:
            raise InputError(f"row {row.number} {row.problem}")
        prompt = check_text(row.prompt, "prompt")
        seed = batch.seed + row.number - 1 if row.seed is None else row.seed
        if not 0 <= seed < 1 << 64:
            raise InputError(f"seed {seed} lies outside 0 … 2^64 - 1")
        options = replace(batch.options, **row.options)
        options.resolve(Schedule())
        file = _file(row, batch.folder, taken)
    except F2EdgeError as error:
        return {"row": row.number, "error": str(error)}
    if batch.resume and file.is_file():
        return {"row": row.number, "file": str(file), "skipped": True}
    return _Planned(replace(row, prompt=prompt), file, seed, options)


def _file(row: PromptRow, folder: Path, taken: set[str]) -> Path:
    from f2edge.provenance.saving import KINDS

    name = row.name or f"face-{row.number:04}"
    if Path(name).suffix.lower() not in KINDS:
        name += ".png"
    if name != Path(name).name or "\\" in name or name.startswith(".") or not name.isprintable() or len(name.encode()) > _LONGEST_NAME:
        raise InputError(f"name {name[:60]!r}: must be a plain file name")
    if name.casefold() in taken:
        raise InputError(f"name {name[:60]!r}: an earlier row has it")
    taken.add(name.casefold())
    return folder / name


def _group(
    model: FaceModel, planned: list[_Planned | dict[str, Any]], batch: Batch, writer: ThreadPoolExecutor
) -> list[Future[dict[str, Any]]]:
    """Decode a group's rows, those with the same options together, and hand their files to the writer."""
    together: dict[GenerateOptions, list[_Planned]] = {}
    for plan in planned:
        if isinstance(plan, _Planned):
            together.setdefault(plan.options, []).append(plan)
    faces: dict[int, GeneratedFace | F2EdgeError] = {}
    for options, plans in together.items():
        faces.update(_drawn(model, plans, options, batch.more))

    def record(plan: _Planned | dict[str, Any]) -> dict[str, Any]:
        return _written(plan, faces[plan.row.number], batch) if isinstance(plan, _Planned) else plan

    return [writer.submit(record, plan) for plan in planned]


def _drawn(
    model: FaceModel, plans: list[_Planned], options: GenerateOptions, more: Mapping[str, Any]
) -> Mapping[int, GeneratedFace | F2EdgeError]:
    prompts, seeds = [plan.row.prompt for plan in plans], [plan.seed for plan in plans]
    with suppress(InputError):  # one of them; each is tried alone then
        return dict(zip((p.row.number for p in plans), model.generate(prompts, seeds=seeds, options=options, **more), strict=True))
    found: dict[int, GeneratedFace | F2EdgeError] = {}
    for plan in plans:
        try:
            (found[plan.row.number],) = model.generate(plan.row.prompt, seeds=plan.seed, options=options, **more)
        except InputError as error:
            found[plan.row.number] = error
    return found


def _written(plan: _Planned, face: GeneratedFace | F2EdgeError, batch: Batch) -> dict[str, Any]:
    from f2edge.imaging.images import resize
    from f2edge.provenance.saving import save_image

    if isinstance(face, F2EdgeError):
        return {"row": plan.row.number, "error": str(face)}
    try:
        save_image(face.image if batch.side is None else resize(face.image, batch.side), plan.file, face.label, batch.signer)
    except OutputError as error:
        return {"row": plan.row.number, "error": str(error)}
    return {
        "row": plan.row.number,
        "file": str(plan.file),
        "prompt": face.prompt,
        "seed": face.seed,
        "options": asdict(face.options),
        "unmatched": list(face.unmatched),
        "corrected": dict(face.wording.corrected),
        **({} if face.check is None else {"check": asdict(face.check)}),
        **({} if face.layout_agreement is None else {"layout_agreement": face.layout_agreement}),
        "marks": ["xmp", *face.marks, *([] if batch.signer is None else ["c2pa"])],
    }
