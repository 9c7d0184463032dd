"""Writing a bundle: trace, lower, quantise, measure, and put everything into one folder with its manifest.

The folder is built beside its destination under a name of its own and renamed when it is whole, so an interrupted export leaves no half
bundle, and an existing one is replaced in one go.

All graphs share one file of weights, in which equal constants stand once: the prompt and the step graph have the same attention and the
same experts, the two understanding graphs likewise.  Large constants begin on page boundaries, so a runtime can map them.

>>> write_bundle(Path("bundles/nano"), models=models, text_tokenizer_path=path, recipe="int8")  # doctest: +SKIP
>>> random_bundle(Path("/tmp/tiny"))                                                            # doctest: +SKIP
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from typing_extensions import Self

from export.data.text.tokenizer import read_text_tokenizer
from export.defaults import GENERATION, Manner
from export.graph.lower import constant
from export.graph.trace import Models, trace
from export.quantize.quantize import Calibration, Recipe, quantise, recipe_named
from f2edge.bundle.bundle import LEXICON, MANIFEST, TOKENIZER, write_manifest
from f2edge.bundle.manifest import FLAVOURS
from f2edge.errors import F2EdgeError, InputError, OutputError
from f2edge.spec.attributes import F2EDGE_SCHEMA, AttributeSchema
from f2edge.spec.configuration import FeatureShape, ImageTokenizerConfiguration, ModelConfiguration, TokenExperts
from f2edge.spec.layout import TokenLayout
from f2edge.spec.lexicon import Lexicon

WEIGHTS = "weights.bin"
#: Constants from this size on go to the file of weights; smaller ones stay in their graph, where a runtime's optimiser sees them.
_EXTERNAL_BYTES = 1024
_PAGE_BYTES = 4096
_PAGED_BYTES = 1 << 18
#: Inner values that keep their names, because the parity figures read them.
_PROBED = ("logits",)

Progress = Callable[[str], None]


def _silent(_message: str) -> None:
    """No progress."""


class WeightsFile:
    """Appends constants to one file, each distinct run of bytes once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb")
        self._known: dict[bytes, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._file.close()

    def place(self, value: ir.Value) -> None:
        """Write ``value``'s constant, if it is large, and let it refer to the file."""
        array = constant(value)
        if array is None or array.nbytes < _EXTERNAL_BYTES:
            return
        assert value.name is not None
        tensor = value.const_value
        assert tensor is not None
        data = np.ascontiguousarray(array)
        if data.dtype.byteorder == ">":
            data = data.astype(data.dtype.newbyteorder("<"))
        packed = tensor.dtype.bitwidth < 8  # two values a byte
        view = memoryview(tensor.tobytes()) if packed else data.reshape(-1).view(np.uint8).data
        digest = hashlib.sha256(view).digest()
        if digest not in self._known:
            boundary = _PAGE_BYTES if view.nbytes >= _PAGED_BYTES else 64
            self._file.write(b"\0" * (-self._file.tell() % boundary))
            self._known[digest] = self._file.tell()
            self._file.write(view)
        value.const_value = ir.ExternalTensor(
            self._path.name, self._known[digest], view.nbytes, tensor.dtype, shape=ir.Shape(data.shape), name=value.name,
            base_dir=self._path.parent,
        )  # fmt: skip


def _ports(values: list[ir.Value]) -> list[dict[str, Any]]:
    """Inputs or outputs of a graph as the manifest lists them."""
    rows = []
    for value in values:
        assert value.dtype is not None
        assert value.shape is not None
        shape = [axis if isinstance(axis, int) else str(axis.value) for axis in value.shape]
        rows.append({"name": value.name, "dtype": value.dtype.numpy().name, "shape": shape})
    return rows


def _shorten(model: ir.Model) -> None:
    """Leave out what every runtime infers or numbers for itself, shapes and long inner names: half of a graph's file."""
    kept = {id(value) for value in model.graph.outputs}
    # A graph that was shortened before may have constants by such names.
    taken = {value.name for value in (*model.graph.inputs, *model.graph.initializers.values(), *model.graph.outputs)}
    for number, node in enumerate(model.graph):
        node.name = None
        for place, value in enumerate(node.outputs):
            if id(value) not in kept:
                value.shape, value.type = None, None
                if value.name not in _PROBED:
                    name = f"v{number}" if place == 0 else f"v{number}_{place}"
                    value.name = f"{name}_" if name in taken else name


#: Lowered fp32 graphs by name.
Traced = Mapping[str, ir.Model]


def trace_all(models: Models, progress: Progress = _silent) -> Traced:
    """Every graph of ``models``, lowered, in fp32."""
    traced = {}
    for name in models.graphs:
        progress(f"{name}: tracing")
        traced[name] = trace(name, models)
    return traced


#: From a graph's name and its lowered fp32 form, which stays as it is: the form that is written, its precision, its recipe as JSON.
GraphForm = Callable[[str, ir.Model], tuple[ir.Model, str, dict[str, Any]]]


def recipe_form(recipe: Recipe, calibration: Calibration | None = None) -> GraphForm:
    """The form of the "onnxruntime" flavour: quantised by ``recipe``."""

    def form(name: str, traced: ir.Model) -> tuple[ir.Model, str, dict[str, Any]]:
        own = recipe.of(name)
        return quantise(traced.clone(), recipe, calibration), own.label, own.to_json()

    return form


def write_graphs(folder: Path, traced: Traced, form: GraphForm) -> dict[str, Any]:
    """Bring graphs into their form and write them into ``folder``; returns the manifest's ``graphs``."""
    rows: dict[str, Any] = {}
    with WeightsFile(folder / WEIGHTS) as weights:
        for name, original in traced.items():
            model, precision, recipe = form(name, original)
            for value in list(model.graph.initializers.values()):
                weights.place(value)
            _shorten(model)
            ir.save(model, folder / f"{name}.onnx")
            rows[name] = {
                "file": f"{name}.onnx",
                "inputs": _ports(list(model.graph.inputs)),
                "outputs": _ports(list(model.graph.outputs)),
                "precision": precision,
                "recipe": recipe,
            }
    return rows


def check_place(out: Path, needed_bytes: int = 0) -> None:
    """Make sure that a bundle can be written as ``out``, by writing an unnamed file beside it; nothing is left.

    Args:
        out: folder of the bundle.
        needed_bytes: what it takes at least.

    Raises:
        OutputError: the place cannot be written, has less room, or holds something other than a bundle, which would be lost.
    """
    if out.name in ("", ".."):
        raise OutputError(f"cannot write the bundle {str(out)!r}: a bundle is called as its folder; give one with a name, as bundles/mine")
    try:
        if out.exists() and not out.is_dir():
            raise OutputError(f"cannot write the bundle {out}: a file of that name exists; choose another folder")
        if out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).is_file():
            raise OutputError(f"cannot write the bundle {out}: the folder holds other things, and no {MANIFEST}; choose a new folder")
        parent = next(folder for folder in out.absolute().parents if folder.exists())
        with tempfile.TemporaryFile(dir=parent):
            free = shutil.disk_usage(parent).free
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"cannot write the bundle {out}: {error.strerror}; choose a folder that you may write") from error
    if free < needed_bytes:
        raise OutputError(
            f"cannot write the bundle {out}: it takes at least {needed_bytes / 2**20:.0f} MiB, the disk has {free / 2**20:.0f} MiB free; "
            "make room or choose another disk"
        )


@contextmanager
def replaced_folder(out: Path) -> Iterator[Path]:
    """A fresh folder that takes the place of ``out`` when the block ends well, and vanishes when it does not.

    Raises:
        OutputError: as :func:`check_place`, or the disk is full.
    """
    check_place(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as error:
        raise OutputError(f"cannot write the bundle {out}: {error.strerror}; choose a folder that you may write") from error
    try:
        building.chmod(0o755)
        yield building
        _exchange(out, building)
    except OSError as error:
        if isinstance(error, F2EdgeError):
            raise
        reason = error.strerror or str(error)
        raise OutputError(f"cannot write the bundle {out}: {reason}; free some space or choose another folder") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _exchange(out: Path, building: Path) -> None:
    """Put ``building`` in the place of ``out``; if that fails between the two renames, ``out`` is what it was."""
    old = building.with_name(f"{building.name}-old")
    if out.exists():
        out.rename(old)
    try:
        building.rename(out)
    except BaseException:
        if old.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def layout_of(
    configuration: ModelConfiguration,
    text_tokenizer_path: Path,
    question_template: str = Manner.question_template,
    long_prompts: str = Manner.long_prompts,
) -> TokenLayout:
    """The token layout of a model with this text tokenizer, whose start and end of text are found by their usual names."""
    tokenizer = read_text_tokenizer(text_tokenizer_path)
    end = tokenizer.token_to_id("<|endoftext|>")
    if end is None:
        raise InputError(f"text tokenizer {text_tokenizer_path}: has no token <|endoftext|>; train it with `python -m export train`")
    largest = max(tokenizer.get_vocab().values())
    if largest >= configuration.text_vocabulary:
        raise InputError(
            f"text tokenizer {text_tokenizer_path}: has ids up to {largest}, model {configuration.name!r} has "
            f"{configuration.text_vocabulary} of text; give the tokenizer that the model was trained with"
        )
    start = tokenizer.token_to_id("<|startoftext|>")
    return TokenLayout.of(configuration, end if start is None else start, end, question_template, long_prompts)


@dataclass(frozen=True)
class Card:
    """What a manifest says about a model beside its graphs; see ``f2edge.bundle.manifest``."""

    description: str = ""
    licence: str = "Apache-2.0"
    generation: Mapping[str, Any] = field(default_factory=lambda: dict(GENERATION))
    editing: Mapping[str, Any] = field(default_factory=dict)
    alignment: Mapping[str, Any] | None = None
    question_template: str = Manner.question_template
    describe_question: str = Manner.describe_question
    pictures: str = Manner.pictures
    long_prompts: str = Manner.long_prompts
    quality: Mapping[str, Any] | None = None
    smoke_prompt: str = "a young woman with long blonde hair"
    lexicon: Lexicon | None = None


def write_bundle(
    out: Path,
    *,
    models: Models,
    text_tokenizer_path: Path,
    recipe: str = "int8",
    schema: AttributeSchema = F2EDGE_SCHEMA,
    card: Card | None = None,
    traced: Traced | None = None,
    calibration: Calibration | None = None,
    form: GraphForm | None = None,
    flavour: str = FLAVOURS[0],
    largest_bytes: int | None = None,
    measure: Callable[[Path, dict[str, Any]], Mapping[str, Any]] | None = None,
    progress: Progress = _silent,
) -> Path:
    """Export ``models`` as the bundle ``out``.

    Args:
        out: the bundle's folder; an existing one is replaced when the new one is whole.
        models: the trained parts; absent parts give no graphs.
        text_tokenizer_path: a ``tokenizer.json``.
        recipe: a name of :data:`export.quantize.quantize.RECIPES`.
        schema: attributes that ``analyze`` asks for.
        card: what else the manifest says.
        traced: the graphs of ``models`` where :func:`trace_all` was already called, for instance for another recipe.
        calibration: for recipes that need it.
        form: what is written for each graph, where that is not ``recipe``'s.
        flavour: of :data:`f2edge.bundle.manifest.FLAVOURS`.
        largest_bytes: refuse a bundle above this size.
        measure: called with the folder and its manifest before the bundle gets its place; what it returns (parity, experts, smoke) joins
            the manifest, and what it raises fails the export.
        progress: told in a few words what happens.

    Raises:
        OutputError: the place cannot be written.
        InputError: the parts do not fit together, or the bundle is larger than ``largest_bytes``.
    """
    card = card or Card()
    chosen = recipe_named(recipe)
    layout = layout_of(models.configuration, text_tokenizer_path, card.question_template, card.long_prompts)
    with replaced_folder(out) as folder:
        shutil.copyfile(text_tokenizer_path, folder / TOKENIZER)
        if card.lexicon is not None:
            (folder / LEXICON).write_text(json.dumps(card.lexicon.to_json()), encoding="utf-8")
        graphs = write_graphs(folder, traced or trace_all(models, progress), form or recipe_form(chosen, calibration))
        document: dict[str, Any] = {
            "name": out.name,
            "flavour": flavour,
            "model": models.configuration.to_json(),
            "layout": layout.to_json(),
            "attributes": schema.to_json(),
            "regions": list(models.regions),
            "generation": dict(card.generation),
            "editing": dict(card.editing),
            "graphs": graphs,
            "pictures": card.pictures,
            "describe_question": card.describe_question,
            "description": card.description,
            "licence": card.licence,
            "quality": dict(card.quality or {}),
        }
        if card.alignment is not None:
            document["alignment"] = dict(card.alignment)
        write_manifest(folder, document)
        if measure is not None:
            progress("measuring parity")
            document |= measure(folder, document)
        manifest = write_manifest(folder, document)
        size = sum(entry.size for entry in manifest.files.values())
        if largest_bytes is not None and size > largest_bytes:
            raise InputError(f"bundle {out.name!r}: {size / 2**20:.1f} MiB, allowed are {largest_bytes / 2**20:.1f}; use a smaller recipe")
        progress(f"{out}: {size / 2**20:.1f} MiB")
    return out


#: A model of every organ that trains, traces and runs in seconds.
TINY = ModelConfiguration(
    name="tiny",
    text_vocabulary=1024,
    prompt_tokens=96,
    image_offset=99,
    width=64,
    layers=2,
    heads=4,
    rotary=8,
    token_experts=TokenExperts(shared_width=64, routed=4, routed_width=32, active=2),
    tokenizer=ImageTokenizerConfiguration(image_size=128, bits=10, channels=(8, 16, 16, 32, 32), blocks=1, codes_per_cell=2),
    resampler_width=32,
    semantic=FeatureShape(vectors=64, width=32),
    identity=FeatureShape(vectors=1, width=32),
    image_input="bits",
)


def random_models(configuration: ModelConfiguration = TINY, seed: int = 0, regions: tuple[str, ...] = ("hair", "eyes", "mouth")) -> Models:
    """Models with seeded random weights, scaled up so that routing and sampling are far from uniform."""
    from export.model.encoders import IdentityEncoder, RegionParser, SemanticEncoder
    from export.model.magvit2 import build_tokenizer
    from export.model.transformer import UnifiedTransformer

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        transformer = UnifiedTransformer(configuration)
        with torch.no_grad():
            for name, parameter in transformer.named_parameters():
                if parameter.ndim >= 2:
                    parameter.mul_(3.0)
                elif name.endswith("bias"):
                    parameter.normal_(std=0.1)
            transformer.image_head.table.normal_(std=0.2)
        return Models(
            configuration,
            transformer,
            build_tokenizer(configuration.tokenizer),
            SemanticEncoder(configuration.semantic) if configuration.semantic else None,
            IdentityEncoder(configuration.identity) if configuration.identity else None,
            RegionParser(len(regions), configuration.tokenizer.grid),
            regions,
        )


def random_bundle(
    out: Path,
    configuration: ModelConfiguration = TINY,
    recipe: str = "fp32",
    seed: int = 0,
    *,
    text_tokenizer_path: Path | None = None,
    traced: Traced | None = None,
) -> Path:
    """A bundle of :func:`random_models` with a real text tokenizer (trained here where none is given): for tests and rehearsals."""
    from export.data.text.tokenizer import train_text_tokenizer

    card = Card(description="Random weights; for tests.", generation={**GENERATION, "steps": 4})
    models = random_models(configuration, seed)
    with tempfile.TemporaryDirectory() as scratch:
        if text_tokenizer_path is None:
            text_tokenizer_path = Path(scratch) / TOKENIZER
            train_text_tokenizer(text_tokenizer_path, vocabulary=configuration.text_vocabulary)
        return write_bundle(out, models=models, text_tokenizer_path=text_tokenizer_path, recipe=recipe, card=card, traced=traced)
