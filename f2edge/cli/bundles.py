"""``f2edge info``, ``verify`` and ``bundles``: installed models and their integrity."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Annotated, Any

import typer

from f2edge import __version__
from f2edge.cli.console import Output
from f2edge.cli.options import (
    BackendOption,
    BundleOption,
    JsonOption,
    QuietOption,
    ServerOption,
    ThreadsOption,
    open_bundle,
    open_description,
    open_pipeline,
    output,
)
from f2edge.errors import BackendError

if TYPE_CHECKING:
    from f2edge.bundle.bundle import Bundle
    from f2edge.client.sync import Client
    from f2edge.decoding.presets import Preset
    from f2edge.pipeline import FacePipeline

_LIBRARIES = ("numpy", "onnxruntime", "pillow", "tokenizers", "opencv-python-headless")
_PROMPT = "a face"
#: Share of tokens that an ONNX Runtime which rounds otherwise still has in common, far above chance (measured: 7 to 23 %).
_LEAST = 0.03


def info(*, bundle: BundleOption = "nano", server: ServerOption = None, json: JsonOption = False, quiet: QuietOption = False) -> None:
    """Show versions, processors and the model."""
    import onnxruntime

    from f2edge.backends.onnxruntime import usable_cores
    from f2edge.bundle.bundle import Bundle

    opened = open_description(bundle, "auto", None, server)
    machine = {
        "f2edge": __version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "cores": usable_cores(),
        "providers": onnxruntime.get_available_providers(),
        "libraries": {name: _version(name) for name in _LIBRARIES},
    }
    printer = output(json, quiet)
    model = _summary(opened) if isinstance(opened, Bundle) else _summary_of_server(opened)
    printer.document({**machine, "bundle": model})
    rows = [*_flat(machine), *(("bundle " + key, value) for key, value in _flat(model))]
    printer.table(("", "…"), rows)


def verify(
    bundle: Annotated[str, typer.Argument(metavar="BUNDLE", help="Name or folder of a model.", show_default=False)],
    *,
    backend: BackendOption = "auto",
    threads: ThreadsOption = None,
    seal: Annotated[
        bool, typer.Option("--seal", help="First add the checksum to a manifest without one; only for bundles you trust.")
    ] = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Check every checksum of a bundle, run every graph and compare with the exporting machine's tokens."""
    from f2edge.bundle.bundle import seal_bundle

    if seal:
        seal_bundle(bundle)
    opened = open_bundle(bundle, backend, threads)
    pipeline = open_pipeline(opened, backend, threads)
    checks = [
        ("manifest", f"format {opened.manifest.document['format_version']}, {len(opened.manifest.graphs)} graphs"),
        ("files", f"{len(opened.manifest.files)} files, {opened.total_bytes / 1e6:.1f} MB: sizes and SHA-256 match"),
        ("tokens", _check_tokens(pipeline)),
        ("graphs", _run_rest(pipeline)),
    ]
    printer = output(json, quiet)
    printer.document({"bundle": opened.name, "folder": str(opened.folder), "ok": True, "checks": dict(checks)})
    printer.table(("", "…"), checks)


bundles = typer.Typer(help="List the installed models, or add one.", invoke_without_command=True)


@bundles.callback()
def listing(context: typer.Context, *, json: JsonOption = False, quiet: QuietOption = False) -> None:
    """List the installed models, or add one."""
    if context.invoked_subcommand is None:
        _list(output(json, quiet))


@bundles.command()
def add(
    source: Annotated[
        str,
        typer.Argument(metavar="FOLDER|URL|hf:OWNER/NAME|NAME", help="Where the bundle is; NAME needs F2EDGE_BUNDLES.", show_default=False),
    ],
    *,
    name: Annotated[str | None, typer.Option("--name", help="Install it under this name (default: its own).", show_default=False)] = None,
    sha256: Annotated[
        str | None,
        typer.Option("--sha256", metavar="HEX", help="SHA-256 of its manifest.json, from somebody you trust.", show_default=False),
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace an installed bundle of that name.")] = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Install a bundle: every file is checked, and nothing is left of one that fails."""
    from f2edge.bundle.sources import install

    printer = output(json, quiet)
    with printer.progress("bytes") as advance:
        added = install(source, name=name, sha256=sha256, replace=replace, progress=advance)
    printer.document({"name": added.folder.name, "folder": str(added.folder), "bytes": added.total_bytes, "faces": added.faces})
    printer.note(f"{added.folder.name}  {added.total_bytes / 1e6:.1f} MB in {added.folder}")


def _list(printer: Output) -> None:
    from f2edge.bundle.bundle import Bundle, list_bundles, user_folder
    from f2edge.errors import BundleError

    rows: list[dict[str, Any]] = []
    for found in list_bundles():
        row: dict[str, Any] = {"name": found.name, "origin": found.origin, "folder": str(found.folder)}
        try:
            opened = Bundle.load(found.folder, verify=False)
            row |= {"bytes": opened.total_bytes, "description": str(opened.manifest.document.get("description", ""))}
        except BundleError as error:
            row |= {"error": str(error)}
        rows.append(row)
    printer.document({"bundles": rows, "user_folder": str(user_folder())})
    printer.table(
        ("name", "origin", ">size", "description…"),
        [
            (
                row["name"],
                row["origin"],
                f"{row['bytes'] / 1e6:.1f} MB" if "bytes" in row else "",
                row.get("description") or row.get("error", ""),
            )
            for row in rows
        ],
    )
    printer.note(f"`f2edge bundles add` puts more in {user_folder()}")


def _check_tokens(pipeline: FacePipeline) -> str:
    """Generate with the bundle's defaults and compare with the exporting machine's tokens if the manifest has them."""
    smoke = pipeline.bundle.manifest.smoke
    if smoke is None:
        (face,) = pipeline.generate(_PROMPT, seeds=0)
        return f"{len(face.codes)} generated; the manifest has none to compare with"
    (face,) = pipeline.generate(smoke.prompt, seeds=smoke.seed)
    same = sum(int(a == b) for a, b in zip(face.codes, smoke.codes, strict=True))
    if same < smoke.agreement * len(smoke.codes):
        if same >= _LEAST * len(smoke.codes) and _rounds_otherwise(pipeline):
            return (
                f"{same} of {len(smoke.codes)} agree with the exporting machine: this ONNX Runtime is older than 1.30 and draws other faces"
            )
        raise BackendError(
            f"bundle {pipeline.bundle.name!r}: {same} of {len(smoke.codes)} tokens agree with the exporting machine, "
            f"{smoke.agreement:.0%} must; this backend computes different results; try another one or another version"
        )
    return f"{same} of {len(smoke.codes)} agree with the exporting machine"


def _rounds_otherwise(pipeline: FacePipeline) -> bool:
    """Return whether ONNX Runtime's int8 products round as before 1.30: other tokens, and faces that are as good (docs/install.md)."""
    import onnxruntime

    return pipeline.backend.name == "onnxruntime" and tuple(map(int, onnxruntime.__version__.split(".")[:2])) < (1, 30)


def _run_rest(pipeline: FacePipeline) -> str:
    """Run the graphs that generating does not use, on a gray picture."""
    from PIL import Image

    from f2edge.imaging.images import to_pixels

    side = pipeline.bundle.configuration.tokenizer.image_size
    picture = Image.new("RGB", (side, side), (127, 127, 127))
    if pipeline.bundle.has("mmu_extend"):
        pipeline.analyze(picture)
    if pipeline.bundle.has("regions"):
        pipeline.backend.run("regions", {"pixels": to_pixels(picture, side)[None]})
    return f"all run on {pipeline.backend.name}"


def _summary(bundle: Bundle) -> dict[str, Any]:
    model, document = bundle.configuration, bundle.manifest.document
    return {
        "name": bundle.name,
        "folder": str(bundle.folder),
        "description": str(document.get("description", "")),
        "licence": str(document.get("licence", "")),
        "bytes": bundle.total_bytes,
        "picture": f"{model.tokenizer.image_size} x {model.tokenizer.image_size} pixels, {model.image_tokens} tokens, {model.codes} codes",
        "transformer": f"{model.layers} layers of width {model.width}, {model.token_experts.routed} routed experts",
        "graphs": {name: graph.precision for name, graph in bundle.manifest.graphs.items()},
        "regions": list(bundle.regions),
        "attributes": len(bundle.schema),
        "presets": {name: _preset(preset) for name, preset in bundle.presets.items()},
        **({"trained_for": bundle.manifest.trained_for.described} if bundle.manifest.trained_for else {}),
    }


def _preset(preset: Preset) -> str:
    """Return a preset in words: its steps and guidance, and what was measured of it."""
    schedule = preset.schedule
    measured = [f"{name} {value:g}" for name, value in preset.measured.items()] or ["not measured"]
    return f"({schedule.steps} steps, guidance {schedule.guidance:g}, {schedule.order}; {', '.join(measured)})"


def _summary_of_server(client: Client) -> dict[str, Any]:
    facts = client.bundle
    return {
        "name": facts.name,
        "server": client.connection.target,
        "f2edge": facts.f2edge_version,
        "backend": facts.backend,
        "description": facts.description,
        "licence": facts.licence,
        "picture": f"{facts.image_side} x {facts.image_side} pixels, {facts.tokens} tokens, {facts.codes} codes",
        "regions": list(facts.regions),
        "attributes": len(facts.schema),
    }


def _flat(table: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for key, value in table.items():
        if isinstance(value, dict):
            rows.append((key, ", ".join(f"{name} {entry}" for name, entry in value.items())))
        else:
            rows.append((key, ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return rows


def _version(distribution: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(distribution)
    except PackageNotFoundError:  # a Jetson has its system's OpenCV, which pip does not list
        return "not installed by pip"
