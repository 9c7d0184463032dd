"""Command line ``python -m export``: training and export, on a workstation with PyTorch.

    python -m export render --split train --count 60000 --out shards/train --workers 2
    python -m export text-tokenizer --out tokenizer.json
    python -m export train encoders  --data shards/train --out runs/encoders
    python -m export train tokenizer --data shards/train --out runs/tokenizer
    python -m export cache --data shards/train --tokenizer runs/tokenizer --encoders runs/encoders --out tokens/train
    python -m export train unified   --tokens tokens/train --text tokenizer.json --out runs/unified
    python -m export train student   --tokens tokens/train --text tokenizer.json --teacher runs/unified --out runs/student
    python -m export onnx --unified runs/unified --tokenizer runs/tokenizer --encoders runs/encoders --text tokenizer.json --out bundle
    python -m export import-showo --showo show-o --magvit magvitv2 --out runs/show-o
    python -m export onnx --configuration show-o --unified runs/show-o --tokenizer runs/show-o --text phi/tokenizer.json --out bundle
    python -m export random-bundle --configuration 1.8b --out bundle                 # random weights
    python -m export sensitivity --bundle runs/fp32/nano --recipe int4               # layers that need a higher precision

The same command resumes a run.  Exit codes: 0 for success, 2 for invalid input, 1 for other errors.  Every command imports its dependencies
when it runs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from export.training.commands import Configuration, to_stderr, train_app
from f2edge.cli.command import end_as_interrupted, run_command
from f2edge.errors import InputError
from f2edge.spec.configuration import SHIPPED

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train the face model and export it as bundles (needs PyTorch).",
)
app.add_typer(train_app, name="train")

Tokenizer = Annotated[Path, typer.Option(help="Run folder or weights file of the image tokenizer.")]
Encoders = Annotated[Path, typer.Option(help="Run folder of the encoders.")]
Text = Annotated[Path, typer.Option(help="tokenizer.json made by `text-tokenizer`.")]
Prompts = Annotated[int, typer.Option(min=1, help="Prompts for calibration and parity; each is decoded at least twice.")]
Faces = Annotated[int, typer.Option(min=1, help="Faces for calibration and parity.")]
Layers = Annotated[int | None, typer.Option(help="Use a shortened model with this many layers, for tests.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda …")]

Bundle = Annotated[Path, typer.Option(help="Folder of the bundle, which gives it its name; an existing bundle is replaced.")]
Seed = Annotated[int, typer.Option(help="Seed of the weights.")]

_RECIPE = "Precision: fp32, int8, mixed, int4, int4-gptq … (docs/recipes.md)"


@app.command()
def render(
    *,
    out: Annotated[Path, typer.Option(help="Folder of the shards; existing shards are kept.")],
    count: Annotated[int, typer.Option(help="Number of faces.")] = 4096,
    split: Annotated[str, typer.Option(help="train or heldout.")] = "train",
    first_seed: Annotated[int, typer.Option(help="Seed of the first face.")] = 0,
    size: Annotated[int, typer.Option(help="Pixels along one side.")] = SHIPPED.tokenizer.image_size,
    grid: Annotated[int, typer.Option(help="Cells along one side of the stored region masks.")] = SHIPPED.tokenizer.grid,
    workers: Annotated[int, typer.Option(help="Processes.")] = 1,
    shard_size: Annotated[int, typer.Option(help="Faces per shard.")] = 4096,
) -> None:
    """Render faces with ground truth: slots, regions and landmarks of every picture."""
    from tqdm import tqdm

    from export.data.shards import write_shards

    with tqdm(total=count, unit="faces", disable=None, file=sys.stderr) as bar:

        def report(done: int, _total: int) -> None:
            bar.update(done - bar.n)

        write_shards(
            out,
            split=split,
            count=count,
            first_seed=first_seed,
            size=size,
            grid=grid,
            workers=workers,
            shard_size=shard_size,
            progress=report,
        )


@app.command("text-tokenizer")
def text_tokenizer(
    *,
    out: Annotated[Path, typer.Option(help="Output file, tokenizer.json.")],
    vocabulary: Annotated[int, typer.Option(help="Size of the text vocabulary.")] = 1024,
) -> None:
    """Train the text tokenizer on the captions and questions of the grammar."""
    from export.data.text.tokenizer import train_text_tokenizer

    train_text_tokenizer(out, vocabulary=vocabulary)
    typer.echo(out)


@app.command()
def cache(
    *,
    data: Annotated[Path, typer.Option(help="Shards of `render`, a folder of pictures, or a .json, .jsonl, .csv, .parquet or .tar file.")],
    out: Annotated[Path, typer.Option(help="Folder of the cache; the same command completes one that was interrupted.")],
    tokenizer: Annotated[str, typer.Option(help="Image tokenizer: run folder, weights file or bundle.")] = "nano",
    encoders: Annotated[str | None, typer.Option(help="Encoders: run folder or bundle.  [default: that of --tokenizer nano]")] = None,
    clip: Annotated[str | None, typer.Option(help="Folder of CLIP ViT-L/14, as semantic encoder.")] = None,
    antelope: Annotated[str | None, typer.Option(help="AntelopeV2's glintr100.onnx, as identity encoder.")] = None,
    configuration: Configuration = SHIPPED.name,
    text: Annotated[Path | None, typer.Option(help="tokenizer.json to keep with the cache.  [default: that of the bundle]")] = None,
    columns: Annotated[str, typer.Option(help="Roles of columns, as in image=photo,captions=title, if they are not recognized.")] = "",
    schema: Annotated[Path | None, typer.Option(help="JSON file of slots that are columns of the data, for `analyze`.")] = None,
    detector: Annotated[str, typer.Option(help="Face detector: haar or yunet:FILE@sha256=HEX.")] = "haar",
    aligned: Annotated[bool, typer.Option("--aligned", help="The pictures are faces already: take their centred squares.")] = False,
    features: Annotated[str, typer.Option(help="Semantic features: fp16, int8, or later (computed while training).")] = "fp16",
    most_skipped: Annotated[int, typer.Option(help="Number of rows that may be unusable.")] = 100,
    largest_megapixels: Annotated[float, typer.Option(help="Largest picture; larger ones are skipped.")] = 40.0,
    validation: Annotated[int | None, typer.Option(help="Pictures held out for validation.  [default: 5 %, at most 512]")] = None,
    limit: Annotated[int | None, typer.Option(help="Number of pictures to encode, from the first; all by default.")] = None,
    workers: Annotated[int, typer.Option(help="Processes; 0 for one on each core.")] = 1,
    shard_size: Annotated[int, typer.Option(help="Pictures per shard.")] = 512,
    batch: Annotated[int, typer.Option(help="Pictures per batch.")] = 64,
    fp32: Annotated[bool, typer.Option("--fp32", help="No autocast to bfloat16.")] = False,
    device: Device = "auto",
) -> None:
    """Encode faces to tokens, features and texts, once, for training the unified model."""
    from tqdm import tqdm

    from export.checkpoints.parts import PartNames
    from export.data.cache_plan import CacheRequest, is_rendered, processes_of, text_of
    from export.data.caching import write_cache
    from export.data.external.faces import ALIGNED
    from export.training.loop import resolve_device
    from f2edge.spec.configuration import configuration_named

    own = encoders is None and not (clip and antelope) and tokenizer == "nano"
    parts = PartNames(tokenizer, tokenizer if own else encoders, clip, antelope)
    rendered = is_rendered(data)
    request = CacheRequest(
        data, out, parts, configuration_named(configuration), ALIGNED if aligned or rendered else detector, columns, schema,
        None if rendered else text_of(parts, text), features, most_skipped, largest_megapixels, validation, limit, shard_size,
        processes_of(workers), 1 if processes_of(workers) > 1 else 0, batch, bf16=not fp32, device=str(resolve_device(device)),
    )  # fmt: skip
    with tqdm(unit="faces", disable=None, file=sys.stderr) as bar:
        write_cache(request, report=to_stderr, progress=lambda done: bar.update(done - bar.n) and None)
    typer.echo(out)


@app.command()
def upcycle(
    *,
    dense: Annotated[Path, typer.Option(help="Run folder or weights file of a dense transformer, such as an imported Show-o.")],
    configuration: Annotated[str, typer.Option(help="Configuration with routed experts: 1.8b-exact (the same outputs) or 1.8b.")],
    tokens: Annotated[Path, typer.Option(help="Folder made by `cache`, on whose faces units are measured.")],
    text: Text,
    out: Annotated[Path, typer.Option(help="Folder for unified.safetensors.")],
    batch: Annotated[int, typer.Option(help="Rows per batch; four batches are measured.")] = 20,
    validation_rows: Annotated[int, typer.Option(help="Faces that are not measured.")] = 512,
) -> None:
    """Turn a dense transformer into one with experts, and print the losses of both."""
    from export.training.upcycled import write_upcycled
    from f2edge.spec.configuration import configuration_named

    typer.echo(
        write_upcycled(
            dense,
            configuration_named(configuration),
            out,
            tokens=tokens,
            text=text,
            batch=batch,
            validation_rows=validation_rows,
            report=to_stderr,
        )
    )


@app.command()
def nano(
    *,
    out: Annotated[Path, typer.Option(help="Folder of all stages; an interrupted run is resumed.")],
    plan: Annotated[str, typer.Option(help="two-cores, gpu or smoke.")] = "two-cores",
    minutes: Annotated[float | None, typer.Option(help="Total training time of all stages in minutes.")] = None,
    until: Annotated[str | None, typer.Option(help="Last stage to run.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the remaining commands only.")] = False,
) -> None:
    """Render data, train every part of nano and export it; the same command resumes."""
    from export.nano_run import plan_named, run_nano

    run_nano(out, plan_named(plan, minutes), until=until, dry_run=dry_run, report=typer.echo)


@app.command()
def pack(
    *,
    weights: Annotated[list[Path], typer.Option(help="A weights file; may be given several times.")],
    out: Annotated[Path, typer.Option(help="Folder of the files.")],
    largest_mb: Annotated[float, typer.Option(help="No file above so many MiB.")] = 15.0,
) -> None:
    """Halve weights to fp16 and cut them into files of limited size; `unpack` joins them."""
    from export.training.packing import pack

    for path in pack(weights, out, int(largest_mb * 2**20)):
        typer.echo(path)


@app.command()
def unpack(
    *,
    packed: Annotated[Path, typer.Option(help="Folder that `pack` wrote.")],
    out: Annotated[Path, typer.Option(help="Folder of the joined files.")],
) -> None:
    """Join what `pack` cut, as fp32."""
    from export.training.packing import unpack

    for path in unpack(packed, out):
        typer.echo(path)


@app.command()
def onnx(
    *,
    unified: Annotated[Path, typer.Option(help="Run folder or weights file of the transformer.")],
    tokens: Annotated[
        Path | None, typer.Option(help="Folder made by `cache` from your own data, instead of --tokenizer, --encoders and --text.")
    ] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="Run folder or weights file of the image tokenizer.")] = None,
    encoders: Annotated[Path | None, typer.Option(help="Run folder of the encoders, for configurations that have them.")] = None,
    text: Annotated[Path | None, typer.Option(help="tokenizer.json made by `text-tokenizer`.")] = None,
    out: Bundle,
    recipe: Annotated[str, typer.Option(help=_RECIPE + "; tensorrt flavour: fp16, fp8, nvfp4, int8,mmu_extend=int4-gptq …")] = "int8",
    configuration: Annotated[
        str | None, typer.Option(help="nano-2, nano, show-o or 1.8b.  [default: what the weights say, else nano-2]")
    ] = None,
    quality: Annotated[Path | None, typer.Option(help="JSON of `python -m bench quality`, copied into the manifest.")] = None,
    description: Annotated[str, typer.Option(help="One sentence for the manifest.")] = "",
    photographed: Annotated[
        bool, typer.Option("--photographed", help="Trained on photographs: sensitive traits are answered only where asked for.")
    ] = False,
    reading: Annotated[int, typer.Option(help="Renders to fit probabilities on; 0 for none.")] = 512,
    largest_mb: Annotated[float | None, typer.Option(help="Maximum size of the bundle in MiB.")] = None,
    prompts: Prompts = 50,
    faces: Faces = 4,
    flavour: Annotated[
        str, typer.Option(help="Runtime that reads the graphs: onnxruntime, tensorrt, or cuda (ONNX Runtime on a GPU).")
    ] = "onnxruntime",
    tensorrt: Annotated[
        str | None, typer.Option(help="tensorrt flavour: oldest version that must read the graphs.  [default: 10.3]")
    ] = None,
    moe: Annotated[
        str | None, typer.Option(help="tensorrt flavour: experts as operators (plain) or as one node (plugin).  [default: plain]")
    ] = None,
    images: Annotated[int | None, typer.Option(help="tensorrt flavour: fixed batch size of the decoding step (guided images).")] = None,
    attention: Annotated[
        str | None, typer.Option(help="tensorrt flavour: single, fused or operator.  [default: operator from 10.15 on, else fused]")
    ] = None,
) -> None:
    """Export a trained model as a bundle and measure its parity with PyTorch."""
    from export.export_request import ExportRequest
    from export.onnx_export import export_models, load_models
    from export.quantize.recipes import recipe_named
    from export.tensorrt.graphs import TensorRTOptions
    from export.tensorrt.recipes import recipes_of
    from export.tensorrt_export import export_tensorrt
    from f2edge.bundle.manifest import FLAVOURS

    if flavour not in FLAVOURS:
        raise InputError(f"unknown flavour {flavour!r}; choose one of: {', '.join(FLAVOURS)}")
    if flavour != "onnxruntime":
        options = TensorRTOptions(tensorrt or "10.3", moe or "plain", recipes_of(recipe), images, attention, flavour=flavour)
    else:
        only_tensorrt = {"tensorrt": tensorrt, "moe": moe, "images": images, "attention": attention}
        given = [f"--{name}" for name, value in only_tensorrt.items() if value is not None]
        if given:
            raise InputError(f"{', '.join(given)}: for --flavour tensorrt only; add that, or omit the option")
        recipe_named(recipe)
    if tokens is not None:
        from export.own_export import export_own

        if flavour == "tensorrt" or tokenizer or encoders:
            raise InputError(
                "--tokens: the parts are those of the cache, in flavour onnxruntime; omit --tokenizer, --encoders and --flavour"
            )
        request = ExportRequest(out, text or tokens / "tokenizer.json", quality, description, prompts, faces, largest_mb)
        typer.echo(export_own(unified, tokens, request, recipe, to_stderr))
        return
    if tokenizer is None or text is None:
        raise InputError("give --tokenizer and --text, or --tokens for a model trained on your own data")
    request = ExportRequest(out, text, quality, description, prompts, faces, largest_mb, reading, photographed)
    models = load_models(unified, tokenizer, encoders, configuration)
    if flavour != "onnxruntime":
        typer.echo(export_tensorrt(models, request, options, progress=to_stderr))
    else:
        typer.echo(export_models(models, request, recipe, to_stderr))


@app.command()
def update(
    *,
    bundle: Bundle,
    words: Annotated[
        bool, typer.Option("--words", help="Also today's lexicon: more words are understood, and the same prompts draw other faces.")
    ] = False,
) -> None:
    """Give an exported bundle what new exports have; weights and results stay as they are."""
    from export.bundle_writer import update_bundle
    from export.data.text.mentions import LEXICON

    typer.echo(f"{bundle}: changed {', '.join(update_bundle(bundle, LEXICON if words else None)) or 'nothing'}")


@app.command("import-showo")
def import_showo(
    *,
    showo: Annotated[Path, typer.Option(help="Folder of showlab/show-o (or -512x512, -w-clip-vit): config.json and weights.")],
    magvit: Annotated[Path, typer.Option(help="Folder of showlab/magvitv2.")],
    out: Annotated[Path, typer.Option(help="Output folder: unified.safetensors and tokenizer.safetensors.")],
    size: Annotated[int | None, typer.Option(help="Pixels along one side, 256 or 512, if config.json does not say.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the folders and print their content; write nothing.")] = False,
    layers: Layers = None,
) -> None:
    """Convert published Show-o and MAGVIT-v2 weights to checkpoints of this project."""
    from export.checkpoints.import_showo import import_show_o
    from export.checkpoints.random_weights import shortened

    import_show_o(showo, magvit, out, size=size, dry_run=dry_run, base=shortened("show-o", layers), progress=typer.echo)


@app.command("random-showo")
def random_showo(
    *,
    out: Annotated[Path, typer.Option(help="Output folder, which gets show-o/ and magvitv2/.")],
    layers: Layers = None,
    seed: Seed = 0,
) -> None:
    """Write random weights in the published layouts of Show-o and MAGVIT-v2, to test an import at full size."""
    from export.checkpoints.random_weights import shortened, write_published

    for folder in write_published(out, shortened("show-o", layers), seed):
        typer.echo(folder)


@app.command("random-bundle")
def random_bundle(
    *,
    out: Bundle,
    configuration: Annotated[str, typer.Option(help="nano, show-o or 1.8b.")] = "1.8b",
    recipe: Annotated[str, typer.Option(help=_RECIPE)] = "int8",
    text: Annotated[Path | None, typer.Option(help="tokenizer.json; the embedded model's by default.")] = None,
    layers: Layers = None,
    seed: Seed = 0,
    prompts: Prompts = 2,
    faces: Faces = 1,
) -> None:
    """Export a model with random weights, to test an export at full size; its output is meaningless."""
    from export.checkpoints.random_weights import random_models_of, shortened
    from export.export_request import ExportRequest
    from export.onnx_export import export_models
    from export.quantize.recipes import recipe_named
    from f2edge.bundle.bundle import TOKENIZER, embedded_folder

    chosen, model = recipe_named(recipe), shortened(configuration, layers)
    description = f"Random weights of seed {seed}; for tests."
    request = ExportRequest(out, text or embedded_folder() / "nano" / TOKENIZER, None, description, prompts, faces)
    typer.echo(export_models(random_models_of(model, seed), request, chosen.name, to_stderr, untrained=True))


@app.command("sensitivity")
def sensitivity(
    *,
    bundle: Annotated[Path, typer.Option(help="Folder of a bundle exported with --recipe fp32.")],
    recipe: Annotated[str, typer.Option(help="Recipe to test.")] = "int4",
    prompts: Prompts = 2,
    times: Annotated[float, typer.Option(help="Report layers whose error is above this multiple of their graph's median.")] = 3.0,
    out: Annotated[Path | None, typer.Option(help="JSON file of the report; stdout by default.")] = None,
) -> None:
    """Quantize each layer alone by a recipe and report the layers with the largest errors on real inputs."""
    from export.quantize.sensitivity import run_sensitivity

    run_sensitivity(bundle, recipe, prompts=prompts, times=times, out=out)


def run(arguments: Sequence[str]) -> int:
    """Run one command; see :func:`f2edge.cli.command.run_command`."""
    return run_command(app, "python -m export", arguments)


def main() -> None:
    end_as_interrupted()
    sys.exit(run(sys.argv[1:]))
