"""``f2edge generate`` and ``f2edge edit``: generated pictures."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from f2edge.cli.batch import Batch, generate_all, make_folder
from f2edge.cli.console import Output, fail
from f2edge.cli.inputs import STDIN, PromptRow, picture_source, prompt_rows, text_lines
from f2edge.cli.options import (
    BackendOption,
    BundleOption,
    CheckOption,
    GuidanceOption,
    ImageArgument,
    JsonOption,
    LawOption,
    LayoutFromOption,
    LayoutOption,
    LayoutStrengthOption,
    OrderOption,
    PromptArgument,
    QualityOption,
    QuietOption,
    SeedOption,
    ServerOption,
    SignCertOption,
    SignKeyOption,
    SizeOption,
    StepsOption,
    TemperatureOption,
    ThreadsOption,
    VerboseOption,
    WatermarkKeyOption,
    WatermarkOption,
    checked_size,
    chosen_layout,
    chosen_seed,
    chosen_signer,
    chosen_watermark,
    decoding_options,
    open_description,
    open_model,
    open_pipeline,
)
from f2edge.errors import InputError, OutputError
from f2edge.text import one_line

if TYPE_CHECKING:
    from PIL import Image

    from f2edge.decoding.parallel import StepEvent
    from f2edge.face_model import FaceModel
    from f2edge.provenance.c2pa import Signer
    from f2edge.provenance.label import Label
    from f2edge.results import EditedFace, GeneratedFace

LARGEST_COUNT = 64
STDOUT = Path("-")
OutOption = Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Output picture: .png, .jpg or .webp; - for PNG on stdout.")]


def generate(
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="PROMPT", help="Description of the face, in English; - reads many from stdin.", show_default=False),
    ] = None,
    *,
    out: OutOption = Path("face.png"),
    prompts: Annotated[
        str | None,
        typer.Option(
            "--prompts", metavar="FILE", help="Many prompts: CSV, JSON lines or one a line.  Needs --out-dir.", show_default=False
        ),
    ] = None,
    out_dir: Annotated[
        Path | None, typer.Option("--out-dir", metavar="DIR", help="Folder for the faces of many prompts.", show_default=False)
    ] = None,
    jsonl: Annotated[bool, typer.Option("--jsonl", help="Print a line of JSON for each of many faces.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Leave out prompts whose face is in --out-dir.")] = False,
    seed: SeedOption = None,
    quality: QualityOption = None,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    size: SizeOption = None,
    grid: Annotated[int, typer.Option("--grid", help="Number of faces on one contact sheet, with consecutive seeds.")] = 1,
    count: Annotated[int, typer.Option("--count", help="Number of faces in separate files (face-1.png …), with consecutive seeds.")] = 1,
    save_steps: Annotated[
        Path | None, typer.Option("--save-steps", metavar="DIR", help="Folder for previews of every step.", show_default=False)
    ] = None,
    order: OrderOption = None,
    temperature: TemperatureOption = None,
    temperature_law: LawOption = None,
    check: CheckOption = False,
    layout: LayoutOption = None,
    layout_from: LayoutFromOption = None,
    layout_strength: LayoutStrengthOption = None,
    bundle: BundleOption = "nano",
    backend: BackendOption = "auto",
    threads: ThreadsOption = None,
    server: ServerOption = None,
    watermark: WatermarkOption = True,
    watermark_key: WatermarkKeyOption = None,
    sign_cert: SignCertOption = None,
    sign_key: SignKeyOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
    _verbose: VerboseOption = False,
) -> int:
    """Generate a face from a description, or many from a file of them."""
    from f2edge.imaging.images import image_grid, resize
    from f2edge.provenance.label import label
    from f2edge.text import check_text

    options, first, side = (
        decoding_options(steps, guidance, order, temperature, temperature_law, quality),
        chosen_seed(seed),
        checked_size(size),
    )
    mark, signer = chosen_watermark(watermark, watermark_key, server), chosen_signer(sign_cert, sign_key)
    where = chosen_layout(layout, layout_from, layout_strength)
    if prompts is not None or prompt == STDIN:
        _only_one(prompt, prompts, grid=grid, count=count, save_steps=save_steps, json=json)
        batch = Batch(_folder(out_dir), options, first, side, signer, resume, {"check": check, **where})
        with text_lines(prompts or STDIN) as lines:
            model = open_model(bundle, backend, threads, server, mark)
            return _many(model, prompt_rows(lines), batch, Output(json=jsonl, quiet=quiet))
    _only_many(out_dir=out_dir, jsonl=jsonl, resume=resume)
    prompt, printer = check_text(prompt or "", "prompt"), _printer(out, json=json, quiet=quiet)
    files = _files(out, grid, count)
    folder = None if save_steps is None else _steps_folder(save_steps)
    seeds = [first + index for index in range(max(grid, count))]
    pipeline = open_model(bundle, backend, threads, server, mark)
    previews = Previews()
    start = perf_counter()
    with printer.progress("decoding") as advance:

        def on_step(event: StepEvent) -> None:
            advance(event.step, event.steps)
            if folder is not None:
                previews.add(event)

        images, prompts_of = folder is not None, [prompt] * len(seeds)
        faces = pipeline.generate(prompts_of, seeds=seeds, options=options, check=check, **where, on_step=on_step, preview_images=images)
    total_ms = 1e3 * (perf_counter() - start)
    pictures = [face.image if side is None else resize(face.image, side) for face in faces]
    sheets = [image_grid(pictures)] if len(files) == 1 else pictures
    for file, picture, own_seed in zip(files, sheets, seeds, strict=False):
        _write(picture, file, label(prompt=prompt, seed=own_seed, bundle=pipeline.bundle.name), signer)
    if folder is not None:
        previews.save(folder, pipeline.bundle.name, prompt, first)
    _report(printer, pipeline, faces, files, sheet=grid > 1, total_ms=total_ms, signer=signer)
    return 0


def edit(
    image: ImageArgument,
    prompt: PromptArgument,
    *,
    region: Annotated[str, typer.Option("--region", "-r", metavar="NAME|x,y,w,h|MASK", help="Region to redraw.", show_default=False)],
    out: OutOption = Path("edited.png"),
    seed: SeedOption = None,
    quality: QualityOption = None,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    size: SizeOption = None,
    order: OrderOption = None,
    temperature: TemperatureOption = None,
    temperature_law: LawOption = None,
    check: CheckOption = False,
    bundle: BundleOption = "nano",
    backend: BackendOption = "auto",
    threads: ThreadsOption = None,
    server: ServerOption = None,
    watermark: WatermarkOption = True,
    watermark_key: WatermarkKeyOption = None,
    sign_cert: SignCertOption = None,
    sign_key: SignKeyOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
    _verbose: VerboseOption = False,
) -> None:
    """Redraw a region of a face and keep the rest."""
    from f2edge.imaging.images import open_image, resize
    from f2edge.imaging.regions import parse_region
    from f2edge.provenance.label import label
    from f2edge.text import check_text

    prompt = check_text(prompt, "prompt")
    options, own_seed, side = (
        decoding_options(steps, guidance, order, temperature, temperature_law, quality),
        chosen_seed(seed),
        checked_size(size),
    )
    printer = _printer(out, json=json, quiet=quiet)
    _files(out, 1, 1)
    mark, signer = chosen_watermark(watermark, watermark_key, server), chosen_signer(sign_cert, sign_key)
    picture = open_image(picture_source(str(image)))
    opened = open_description(bundle, backend, threads, server)
    where = parse_region(region, opened.regions)
    pipeline = open_pipeline(opened, backend, threads, mark)
    start = perf_counter()
    with printer.progress("decoding") as advance:
        edited = pipeline.edit(
            picture, prompt, where, seed=own_seed, options=options, check=check, on_step=lambda event: advance(event.step, event.steps)
        )
    total_ms = 1e3 * (perf_counter() - start)
    result = edited.image if side is None else resize(edited.image, side)
    _write(result, out, label(prompt=prompt, seed=own_seed, bundle=opened.name, edited=True), signer)
    cells = int(edited.region.sum())
    printer.document(
        {
            "bundle": opened.name,
            "backend": pipeline.backend.name,
            "prompt": prompt,
            "seed": own_seed,
            "file": str(out),
            "region": edited.region.astype(int).tolist(),
            "tokens": edited.codes.tolist(),
            "original_tokens": edited.original_codes.tolist(),
            "total_ms": round(total_ms, 3),
            "synthetic": True,
            "marks": _marks(edited, signer),
            **_wording_of(edited),
            "check": _check_of(edited),
        }
    )
    _note_wording(printer, edited)
    _note_check(printer, edited)
    printer.note(f"{out}  seed {own_seed}, {cells} of {edited.region.size} cells redrawn, {total_ms:.0f} ms")


def _report(
    printer: Output,
    model: FaceModel,
    faces: Sequence[GeneratedFace],
    files: Sequence[Path],
    *,
    sheet: bool,
    total_ms: float,
    signer: Signer | None,
) -> None:
    """Print what became of one prompt."""
    seeds = [face.seed for face in faces]
    printer.document(
        {
            "bundle": model.bundle.name,
            "backend": model.backend.name,
            "prompt": faces[0].prompt,
            "options": _options_of(faces[0]),
            "preset": faces[0].preset,
            "files": [str(file) for file in files],
            "faces": [
                {"seed": face.seed, "tokens": face.codes.tolist(), "check": _check_of(face), "layout_agreement": face.layout_agreement}
                for face in faces
            ],
            "step_ms": [round(ms, 3) for ms in faces[0].step_ms],
            "total_ms": round(total_ms, 3),
            "synthetic": True,
            "marks": _marks(faces[0], signer),
            **_wording_of(faces[0]),
        }
    )
    _note_wording(printer, faces[0])
    for face in faces:
        _note_check(printer, face)
        if face.layout_agreement is not None:
            printer.note(f"seed {face.seed} agrees with the layout to {100 * face.layout_agreement:.0f} %")
    for file, own_seed in zip(files, seeds, strict=False):
        of = f"seeds {seeds[0]} … {seeds[-1]}" if sheet else f"seed {own_seed}"
        printer.note(f"{file}  {of}, {faces[0].options.steps} steps, {total_ms:.0f} ms")


def _wording_of(face: GeneratedFace | EditedFace) -> dict[str, Any]:
    return {"unmatched": list(face.unmatched), "corrected": dict(face.wording.corrected)}


def _check_of(face: GeneratedFace | EditedFace) -> dict[str, Any] | None:
    from dataclasses import asdict

    return None if face.check is None else asdict(face.check)


def _note_check(printer: Output, face: GeneratedFace | EditedFace) -> None:
    """Say how the model reads its own picture."""
    if face.check is None:
        return
    found, missing = face.check, ", ".join(slot.replace("_", " ") for slot in face.check.missing)
    shown = f"shows {found.named - len(found.missing)} of {found.named} attributes asked for"
    printer.note(f"seed {face.seed} {shown}, after {found.repairs} repairs{f'; missing: {missing}' if missing else ''}")


def _note_wording(printer: Output, face: GeneratedFace | EditedFace) -> None:
    """Say which words of the prompt were read as others, and which not at all."""
    for wrong, meant in face.wording.corrected.items():
        printer.note(f'read "{one_line(wrong, 40)}" as "{one_line(meant, 40)}"')
    if face.unmatched:
        printer.note(f"not understood, so not drawn: {', '.join(one_line(words, 60) for words in face.unmatched[:8])}")


def _printer(out: Path, *, json: bool, quiet: bool) -> Output:
    """Return the printer, silent where the picture itself goes to standard output."""
    if out == STDOUT and json:
        raise InputError("--out - and --json both want standard output; leave out one of the two")
    return Output(json=json, quiet=quiet or out == STDOUT)


def _write(picture: Image.Image, file: Path, label: Label, signer: Signer | None) -> None:
    """Write a labelled picture to a file, or as PNG to standard output."""
    from f2edge.provenance.saving import encode, save_image

    if file != STDOUT:
        save_image(picture, file, label, signer)
        return
    sys.stdout.buffer.write(encode(picture, "PNG", label, signer=signer))
    sys.stdout.buffer.flush()


def _only_one(prompt: str | None, prompts: str | None, **others: object) -> None:
    """Refuse what many prompts exclude."""
    if prompts is not None and prompt not in (None, STDIN):
        raise InputError("--prompts and a prompt exclude each other; give one of the two")
    wanted = [name for name, value in others.items() if value not in (None, False, 1)]
    if wanted:
        raise InputError(f"--{wanted[0].replace('_', '-')} is for one prompt; leave it out")


def _only_many(**others: object) -> None:
    """Refuse what one prompt excludes."""
    wanted = [name for name, value in others.items() if value]
    if wanted:
        raise InputError(f"--{wanted[0].replace('_', '-')} is for many prompts; give --prompts FILE, or - as the prompt")


def _folder(out_dir: Path | None) -> Path:
    if out_dir is None:
        raise InputError("many prompts need a folder for their faces; give --out-dir")
    return make_folder(out_dir)


def _many(model: FaceModel, rows: Iterable[PromptRow], batch: Batch, printer: Output) -> int:
    """Generate many faces, report each, and return the exit code: 2 if a row failed."""
    start, done, failed = perf_counter(), 0, 0
    with printer.progress("faces", always=True) as advance:
        for record in generate_all(model, rows, batch):
            done, failed = done + 1, failed + ("error" in record)
            printer.document(record)
            if "error" in record:
                fail(f"row {record['row']}: {record['error']}")
            advance(done, None)
    seconds = perf_counter() - start
    printer.note(f"{done - failed} faces in {batch.folder}, {failed} rows failed, {seconds:.1f} s")
    return 2 if failed else 0


class Previews:
    """Preview pictures of every step, kept in memory until decoding ends so that writing does not slow it down."""

    def __init__(self) -> None:
        self._steps: dict[int, list[Image.Image]] = {}

    def add(self, event: StepEvent) -> None:
        """Add a step; groups of rows that are decoded one after another are merged."""
        self._steps.setdefault(event.step, []).extend(event.images)

    def save(self, folder: Path, bundle: str, prompt: str, seed: int) -> None:
        """Write ``step-01.png`` … into ``folder``."""
        from f2edge.imaging.images import image_grid
        from f2edge.provenance.label import label
        from f2edge.provenance.saving import save_image

        folder.mkdir(exist_ok=True)
        for step, images in sorted(self._steps.items()):
            save_image(image_grid(images), folder / f"step-{step:02}.png", label(prompt=prompt, seed=seed, bundle=bundle))


def _files(out: Path, grid: int, count: int) -> list[Path]:
    """Return the checked output files: one, or ``count`` with numbers before the suffix."""
    from f2edge.provenance.saving import check_writable, image_kind

    for option, value in (("--grid", grid), ("--count", count)):
        if not 1 <= value <= LARGEST_COUNT:
            raise InputError(f"{option} {value}: must lie in 1 … {LARGEST_COUNT}")
    if out == STDOUT:
        if count > 1:
            raise InputError("--out -: standard output takes one picture; leave out --count")
        return [out]
    if grid > 1 and count > 1:
        raise InputError("--grid writes one sheet, --count separate files; give one of the two")
    image_kind(out)
    files = [out] if count == 1 else [out.with_name(f"{out.stem}-{index}{out.suffix}") for index in range(1, count + 1)]
    for file in files:
        check_writable(file)
    return files


def _steps_folder(folder: Path) -> Path:
    """Return the checked folder of the previews, which exists or can be created."""
    from f2edge.provenance.saving import check_writable

    check_writable(folder / "step-01.png" if folder.is_dir() else folder)
    if folder.is_file():
        raise OutputError(f"{folder}: is a file; give the name of a folder")
    return folder


def _marks(face: GeneratedFace | EditedFace, signer: Signer | None) -> list[str]:
    """Return the names of the marks in the files, as a server reports them."""
    return ["xmp", *face.marks, *([] if signer is None else ["c2pa"])]


def _options_of(face: GeneratedFace) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(face.options)
