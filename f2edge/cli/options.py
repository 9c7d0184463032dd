"""Options shared by several commands, and their interpretation."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, overload

import typer

from f2edge.cli.console import Output
from f2edge.errors import InputError

if TYPE_CHECKING:
    from f2edge.bundle.bundle import Bundle
    from f2edge.client.sync import Client
    from f2edge.pipeline import FacePipeline
    from f2edge.provenance.c2pa import Signer
    from f2edge.provenance.watermark import Watermark
    from f2edge.results import GenerateOptions

LARGEST_SIDE = 4096
#: Seconds that a server may take to accept the first call.
CONNECT_S = 5.0
#: Deadline of each call in seconds.
TIMEOUT_S = 600.0
_OWN = " (default: the model's)."

BundleOption = Annotated[str, typer.Option("--bundle", "-b", metavar="NAME|DIR", help="Model: a name or a folder.")]
BackendOption = Annotated[
    str,
    typer.Option("--backend", metavar="NAME", help="auto, onnxruntime, onnxruntime-cuda or tensorrt (needs plans)."),
]
ThreadsOption = Annotated[int | None, typer.Option("--threads", help="CPU threads (default: every usable core).")]
ServerOption = Annotated[
    str | None,
    typer.Option(
        "--server",
        metavar="HOST:PORT",
        help="Use an `f2edge serve` there; grpcs://HOST:PORT for TLS (F2EDGE_TOKEN, F2EDGE_CA_FILE, F2EDGE_CERT_FILE, F2EDGE_KEY_FILE).",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")]


def _log(wanted: bool) -> bool:
    if wanted:
        import logging

        logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
        logging.getLogger("f2edge").setLevel(logging.DEBUG)
    return wanted


VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Log what is done to stderr.", callback=_log)]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print results only.")]
SeedOption = Annotated[int | None, typer.Option("--seed", help="The same seed gives the same face (default: random, printed).")]
StepsOption = Annotated[int | None, typer.Option("--steps", help=f"Decoding steps{_OWN}")]
GuidanceOption = Annotated[float | None, typer.Option("--guidance", help=f"Strength of the prompt; 0 turns guidance off{_OWN}")]
SizeOption = Annotated[int | None, typer.Option("--size", help=f"Side of each picture in pixels, scaled by Lanczos{_OWN}")]
QualityOption = Annotated[
    str | None, typer.Option("--quality", metavar="fast|balanced|best", help=f"Preset of the model; other options change it{_OWN}")
]
OrderOption = Annotated[str | None, typer.Option("--order", help=f"maskgit, halton or ancestral{_OWN}")]
TemperatureOption = Annotated[float | None, typer.Option("--temperature", help=f"Randomness of the decoding order{_OWN}")]
LawOption = Annotated[str | None, typer.Option("--temperature-law", help=f"linear, show-o or constant{_OWN}")]
CheckOption = Annotated[
    bool, typer.Option("--check", help="Read the picture and draw again what disagrees with the prompt, twice at most.")
]
LayoutOption = Annotated[
    Path | None,
    typer.Option(
        "--layout",
        metavar="MAP",
        help="Where the regions are to lie: a map painted in their colours (`f2edge regions`).",
        show_default=False,
    ),
]
LayoutFromOption = Annotated[
    Path | None, typer.Option("--layout-from", metavar="IMAGE", help="A face whose regions are wanted instead.", show_default=False)
]
LayoutStrengthOption = Annotated[
    float | None, typer.Option("--layout-strength", help="How closely the layout is followed, 0 … 1 (default: 0.5).", show_default=False)
]
WatermarkOption = Annotated[
    bool,
    typer.Option(
        "--watermark/--no-watermark",
        help="Embed an invisible watermark.  Disable it only to measure or to train: laws require it on published pictures.",
    ),
]
WatermarkKeyOption = Annotated[
    Path | None,
    typer.Option(
        "--watermark-key",
        metavar="FILE",
        help="Secret key, so that only its holder can write the mark (F2EDGE_WATERMARK_KEY_FILE) (default: a public key).",
        show_default=False,
    ),
]
SignCertOption = Annotated[
    Path | None,
    typer.Option(
        "--sign-cert", metavar="FILE", help="Sign content credentials (C2PA) with this PEM chain, leaf first.", show_default=False
    ),
]
SignKeyOption = Annotated[
    Path | None, typer.Option("--sign-key", metavar="FILE", help="Private key of --sign-cert, as unencrypted PEM.", show_default=False)
]
SensitiveOption = Annotated[
    bool,
    typer.Option(
        "--include-sensitive",
        help="Of photographed faces also answer about age, gender presentation, skin tone, build and emotion; of drawn ones always.",
    ),
]
ImageArgument = Annotated[Path, typer.Argument(metavar="IMAGE", help="A JPEG, PNG or WebP of a face; - for stdin.", show_default=False)]
ImagesArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="IMAGE…", help="JPEG, PNG or WebP files of faces, folders of them, patterns, or - for stdin.", show_default=False
    ),
]
JsonLinesOption = Annotated[bool, typer.Option("--jsonl", help="Print a line of JSON for each picture.")]
PromptArgument = Annotated[str, typer.Argument(metavar="PROMPT", help="Description of the face, in English.", show_default=False)]


def chosen_seed(seed: int | None) -> int:
    """Return the given seed, or a random one of 31 bits."""
    if seed is None:
        return int.from_bytes(os.urandom(4), "little") >> 1
    if not 0 <= seed < 2**63:
        raise InputError(f"--seed {seed}: must lie in 0 … 2^63 - 1")
    return seed


def checked_size(size: int | None) -> int | None:
    """Return the side in pixels; raises :class:`InputError` outside 16 … 4096."""
    if size is not None and not 16 <= size <= LARGEST_SIDE:
        raise InputError(f"--size {size}: must lie in 16 … {LARGEST_SIDE} pixels")
    return size


def chosen_layout(layout: Path | None, layout_from: Path | None, strength: float | None) -> dict[str, Any]:
    """Return the layout as ``generate`` takes it; its pictures are read before a model is opened."""
    from f2edge.cli.inputs import picture_source
    from f2edge.imaging.images import open_image
    from f2edge.imaging.region_map import STRENGTH, checked_strength

    given = {name: path for name, path in (("layout", layout), ("layout_from", layout_from)) if path is not None}
    if len(given) == 2:
        raise InputError("--layout and --layout-from exclude each other; give one of the two")
    if not given and strength is not None:
        raise InputError("--layout-strength needs --layout or --layout-from; give one of the two")
    pictures = {name: open_image(picture_source(str(path))) for name, path in given.items()}
    return {**pictures, "layout_strength": checked_strength(STRENGTH if strength is None else strength)} if pictures else {}


def chosen_watermark(wanted: bool, key_file: Path | None, server: str | None = None) -> Watermark | None:
    """Return the requested watermark, None for none; a server applies its own."""
    from f2edge.provenance.watermark import PUBLIC, Watermark, read_key

    if server is not None:
        if not wanted or key_file is not None:
            raise InputError("--server marks its pictures itself; give --no-watermark and --watermark-key to `f2edge serve` instead")
        return None
    if not wanted:
        if key_file is not None:
            raise InputError("--no-watermark and --watermark-key exclude each other; give one of the two")
        return None
    key_file = key_file or watermark_key_from_environment()
    return PUBLIC if key_file is None else Watermark(read_key(key_file))


def chosen_signer(chain: Path | None, key: Path | None) -> Signer | None:
    """Return the signer of content credentials, None without certificate."""
    if chain is None and key is None:
        return None
    if chain is None or key is None:
        raise InputError("signing needs both --sign-cert and --sign-key; give the other one too")
    from f2edge.provenance.c2pa import Signer

    return Signer.load(chain, key)


def watermark_key_from_environment() -> Path | None:
    """Return the path in F2EDGE_WATERMARK_KEY_FILE, if set."""
    named = os.environ.get("F2EDGE_WATERMARK_KEY_FILE")
    return Path(named) if named else None


def decoding_options(  # noqa: PLR0917 - the options of the command line
    steps: int | None,
    guidance: float | None,
    order: str | None,
    temperature: float | None,
    temperature_law: str | None,
    quality: str | None = None,
) -> GenerateOptions:
    """Return the decoding options, validated before a model is opened."""
    from f2edge.decoding.schedule import Schedule
    from f2edge.results import GenerateOptions

    options = GenerateOptions(
        steps=steps, guidance=guidance, order=order, temperature=temperature, temperature_law=temperature_law, quality=quality
    )
    options.resolve(Schedule())
    return options


def open_bundle(name: str, backend: str, threads: int | None) -> Bundle:
    """Open a bundle and verify its checksums; backend and threads are checked first because that is cheap."""
    from f2edge.backends.registry import BACKENDS
    from f2edge.bundle.bundle import Bundle

    if backend not in ("auto", *BACKENDS):
        raise InputError(f"--backend {backend!r}: unknown; choose one of: auto, {', '.join(BACKENDS)}")
    if threads is not None and not 1 <= threads <= 1024:
        raise InputError(f"--threads {threads}: must lie in 1 … 1024")
    return Bundle.load(name)


def open_description(name: str, backend: str, threads: int | None, server: str | None) -> Bundle | Client:
    """Open the bundle, or connect to the server that runs it."""
    if server is None:
        return open_bundle(name, backend, threads)
    if (name, backend, threads) != ("nano", "auto", None):
        raise InputError("--server determines the model; leave out --bundle, --backend and --threads")
    from f2edge.client.connection import Connection
    from f2edge.client.sync import Client

    client = Client(Connection.from_environment(server), timeout_s=TIMEOUT_S, connect_s=CONNECT_S)
    client.bundle  # noqa: B018  connects to the server
    return client


@overload
def open_pipeline(bundle: Bundle, backend: str, threads: int | None, watermark: Watermark | None = None) -> FacePipeline: ...
@overload
def open_pipeline(bundle: Client, backend: str, threads: int | None, watermark: Watermark | None = None) -> Client: ...
def open_pipeline(bundle: Bundle | Client, backend: str, threads: int | None, watermark: Watermark | None = None) -> FacePipeline | Client:
    """Return the model ready to run; commands that write pictures pass the ``watermark``."""
    from f2edge.bundle.bundle import Bundle
    from f2edge.pipeline import FacePipeline

    return FacePipeline.load(bundle, backend=backend, threads=threads, watermark=watermark) if isinstance(bundle, Bundle) else bundle


def open_model(
    name: str, backend: str, threads: int | None, server: str | None, watermark: Watermark | None = None
) -> FacePipeline | Client:
    """Open description and pipeline in one call."""
    return open_pipeline(open_description(name, backend, threads, server), backend, threads, watermark)


def output(json: bool, quiet: bool) -> Output:
    """Return the printer of a command."""
    return Output(json=json, quiet=quiet)
