"""``f2edge regions``: the regions of a face as a map, to be painted on and given to ``f2edge generate --layout``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from f2edge.cli.inputs import picture_source
from f2edge.cli.options import (
    BackendOption,
    BundleOption,
    ImageArgument,
    JsonOption,
    QuietOption,
    SizeOption,
    ThreadsOption,
    VerboseOption,
    checked_size,
    open_bundle,
    open_pipeline,
    output,
)
from f2edge.errors import OutputError

_SIDE = 512


def regions(
    image: ImageArgument,
    *,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The map, a .png: other kinds change its colours.")] = Path(
        "map.png"
    ),
    size: SizeOption = None,
    bundle: BundleOption = "nano",
    backend: BackendOption = "auto",
    threads: ThreadsOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
    _verbose: VerboseOption = False,
) -> None:
    """Write where the regions of a face lie, as a map that `generate --layout` takes."""
    from f2edge.imaging.images import open_image
    from f2edge.imaging.map_pictures import colours_of, hex_of
    from f2edge.provenance.saving import check_writable, save_image

    side = checked_size(size) or _SIDE
    if out.suffix.lower() != ".png":
        raise OutputError(f"{out}: a map is a .png, other kinds would change its colours; choose such a name")
    check_writable(out)
    picture = open_image(picture_source(str(image)))
    opened = open_bundle(bundle, backend, threads)
    save_image(open_pipeline(opened, backend, threads).region_map(picture, side), out)
    colours = {name: hex_of(colour) for name, colour in colours_of(opened.regions).items()}
    printer = output(json, quiet)
    printer.document({"bundle": opened.name, "file": str(out), "colours": colours})
    for name, colour in colours.items():
        printer.line(f"{colour}  {name}")
    printer.note(f"{out}  white is free")
