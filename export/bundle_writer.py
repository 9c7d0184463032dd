"""Bundle writer: traces, quantizes and measures the graphs, and writes one folder with a manifest.

The folder is built under a temporary name and renamed when it is complete, so an interrupted export leaves no partial bundle.

All graphs share one weights file that stores equal constants once: the two generation graphs share attention and experts, and so do the two
understanding graphs.  Large constants begin on page boundaries, so a runtime can map them.

>>> write_bundle(Path("bundles/nano"), models=models, text_tokenizer_path=path, recipe="int8")  # doctest: +SKIP
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from typing_extensions import Self

from export.data.text.tokenizer import read_text_tokenizer
from export.defaults import GENERATION, ModelDefaults
from export.destination import replaced_folder
from export.graph.compact import compact
from export.graph.independent_rows import independent_rows
from export.graph.lower import constant
from export.graph.masked_rows import draw_masked, draws_masked
from export.graph.runtime_forms import runtime_forms
from export.graph.trace import Models, trace
from export.quantize.quantize import Calibration, Recipe, quantize, recipe_named
from f2edge.backends.ports import INDEPENDENT_ROWS
from f2edge.bundle.bundle import LEXICON, TOKENIZER, Bundle, write_manifest
from f2edge.bundle.manifest import FLAVOURS
from f2edge.errors import BundleError, InputError
from f2edge.pipeline import FacePipeline
from f2edge.spec.attributes import F2EDGE_SCHEMA, AttributeSchema
from f2edge.spec.configuration import ModelConfiguration
from f2edge.spec.layout import TokenLayout
from f2edge.spec.lexicon import Lexicon

WEIGHTS = "weights.bin"
#: Minimum size of a constant in the weights file; smaller ones stay in their graph, where a runtime's optimizer sees them.
_EXTERNAL_BYTES = 1024
_PAGE_BYTES = 4096
_PAGED_BYTES = 1 << 18
#: Internal values that keep their names, because parity is measured on them.
_PROBED = ("logits",)

Progress = Callable[[str], None]


def _silent(_message: str) -> None:
    """Ignore progress messages."""


class WeightsFile:
    """Weights file to which constants are appended, equal ones once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb")
        self._known: dict[bytes, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._file.close()

    def place(self, value: ir.Value) -> None:
        """Move ``value``'s constant to the file if it is large."""
        array = constant(value)
        if array is None or array.nbytes < _EXTERNAL_BYTES:
            return
        assert value.name is not None
        tensor = value.const_value
        assert tensor is not None
        data = np.ascontiguousarray(array)
        if data.dtype.byteorder == ">":
            data = data.astype(data.dtype.newbyteorder("<"))
        packed = tensor.dtype.bitwidth < 8  # two values per byte
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
    """Return inputs or outputs of a graph for the manifest."""
    rows = []
    for value in values:
        assert value.dtype is not None
        assert value.shape is not None
        shape = [axis if isinstance(axis, int) else str(axis.value) for axis in value.shape]
        rows.append({"name": value.name, "dtype": value.dtype.numpy().name, "shape": shape})
    return rows


def shorten(model: ir.Model) -> None:
    """Remove internal shapes and long internal names, which runtimes do not need: half of a graph's file."""
    kept = {id(value) for value in model.graph.outputs}
    # constants of a graph that was shortened before may have these names
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
    """Trace and lower every graph of ``models``, in fp32."""
    traced = {}
    for name in models.graphs:
        progress(f"{name}: tracing")
        traced[name] = trace(name, models)
    return traced


#: Takes a graph's name and its lowered fp32 graph, which is not modified; returns the graph to write, its precision, its recipe as JSON.
GraphTransform = Callable[[str, ir.Model], tuple[ir.Model, str, dict[str, Any]]]


def recipe_transform(recipe: Recipe, calibration: Calibration | None = None) -> GraphTransform:
    """Return the transform of the "onnxruntime" flavour: quantization by ``recipe``."""

    def transform(name: str, traced: ir.Model) -> tuple[ir.Model, str, dict[str, Any]]:
        own = recipe.of(name)
        model = traced.clone()
        if own.precision == "float32":  # an fp32 bundle has standard graphs, for other runtimes and as the source of other recipes
            return independent_rows(quantize(model, recipe, calibration)), own.label, own.to_json()
        formed = runtime_forms(model, masked=own.precision == "int8")  # int8 products do not depend on the number of rows
        return independent_rows(compact(quantize(formed, recipe, calibration))), own.label, own.to_json()

    return transform


def keeping_stored(models: Models, transform: GraphTransform) -> GraphTransform:
    """Return a transform that leaves the graphs that ``models`` brings as files as they are."""
    stored = models.stored

    def kept(name: str, traced: ir.Model) -> tuple[ir.Model, str, dict[str, Any]]:
        return (traced.clone(), stored[name].precision, stored[name].recipe) if name in stored else transform(name, traced)

    return kept


def write_graphs(folder: Path, traced: Traced, transform: GraphTransform) -> dict[str, Any]:
    """Transform graphs and write them into ``folder``; return the manifest's ``graphs``."""
    rows: dict[str, Any] = {}
    with WeightsFile(folder / WEIGHTS) as weights:
        for name, original in traced.items():
            model, precision, recipe = transform(name, original)
            for value in list(model.graph.initializers.values()):
                weights.place(value)
            shorten(model)
            ir.save(model, folder / f"{name}.onnx")
            rows[name] = {
                "file": f"{name}.onnx",
                "inputs": _ports(list(model.graph.inputs)),
                "outputs": _ports(list(model.graph.outputs)),
                "precision": precision,
                "recipe": recipe,
            }
    return rows


def update_bundle(folder: Path, lexicon: Lexicon | None = None) -> list[str]:
    """Give an exported bundle what new ones have, in place, and seal it; return what changed.

    Weights and results stay as they are, but for prompts that a new ``lexicon`` reads in another way.

    Raises:
        BundleError: there is no sound bundle, or a lexicon is given for one without, or for one of another runtime.
        OutputError: the folder cannot be written.
    """
    bundle = Bundle.load(folder)
    known = bundle.lexicon()
    if bundle.manifest.flavour != FLAVOURS[0] and lexicon is not None:
        raise BundleError(f"bundle {bundle.name!r} is for {bundle.manifest.flavour}; renew the words of the weights' ONNX bundle instead")
    if bundle.manifest.flavour != FLAVOURS[0]:
        return []
    if lexicon is not None and known is None:
        raise BundleError(f"bundle {bundle.name!r} was not trained on this project's words, so their lexicon would misread its prompts")
    changed = ["t2i_step"] if _update_step(bundle) else []
    if lexicon is not None and known is not None and known.to_json() != lexicon.to_json():
        (folder / LEXICON).write_text(json.dumps(lexicon.to_json()), encoding="utf-8")
        changed.append(LEXICON)
    if changed:
        write_manifest(folder, bundle.manifest.document)
    if LEXICON in changed and (smoke := bundle.manifest.smoke) is not None:  # which is drawn by a prompt
        drawn = FacePipeline.load(folder, watermark=None).generate(smoke.prompt, seeds=smoke.seed)[0].codes
        write_manifest(folder, {**bundle.manifest.document, "smoke": {**bundle.manifest.document["smoke"], "codes": drawn.tolist()}})
    return changed


def _update_step(bundle: Bundle) -> bool:
    """Let a bundle's step draw masked positions alone, with rows that do not depend on others; return whether it did not yet."""
    path, graph = bundle.path("t2i_step"), bundle.manifest.graphs["t2i_step"]
    model = ir.load(path)
    model.graph.name = "t2i_step"
    maskable = graph.precision == "int8" and not draws_masked(model)
    if not maskable and INDEPENDENT_ROWS in model.metadata_props:
        return False
    if maskable:
        model = draw_masked(model)
        shorten(model)
    written = path.with_name(f".{path.name}")
    ir.save(independent_rows(model), written)
    written.replace(path)
    return True


def layout_of(
    configuration: ModelConfiguration,
    text_tokenizer_path: Path,
    question_template: str = ModelDefaults.question_template,
    long_prompts: str = ModelDefaults.long_prompts,
) -> TokenLayout:
    """Return the token layout of a model with this text tokenizer, which must have the token ``<|endoftext|>``."""
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
class ModelCard:
    """Fields of a manifest beside its graphs; see ``f2edge.bundle.manifest``."""

    description: str = ""
    licence: str = "Apache-2.0"
    generation: Mapping[str, Any] = field(default_factory=lambda: dict(GENERATION))
    editing: Mapping[str, Any] = field(default_factory=dict)
    alignment: Mapping[str, Any] | None = None
    question_template: str = ModelDefaults.question_template
    describe_question: str = ModelDefaults.describe_question
    pictures: str = ModelDefaults.pictures
    long_prompts: str = ModelDefaults.long_prompts
    quality: Mapping[str, Any] | None = None
    smoke_prompt: str = "a young woman with long blonde hair"
    lexicon: Lexicon | None = None
    faces: str = ModelDefaults.faces
    typical_answers: tuple[str, ...] = ()


def write_bundle(
    out: Path,
    *,
    models: Models,
    text_tokenizer_path: Path,
    recipe: str = "int8",
    schema: AttributeSchema = F2EDGE_SCHEMA,
    card: ModelCard | None = None,
    traced: Traced | None = None,
    calibration: Calibration | None = None,
    transform: GraphTransform | None = None,
    flavour: str = FLAVOURS[0],
    largest_bytes: int | None = None,
    measure: Callable[[Path, dict[str, Any]], Mapping[str, Any]] | None = None,
    progress: Progress = _silent,
) -> Path:
    """Export ``models`` as the bundle ``out``.

    Args:
        out: the bundle's folder; an existing bundle is replaced when the new one is complete.
        models: the trained parts; absent parts give no graphs.
        text_tokenizer_path: a ``tokenizer.json``.
        recipe: a name of :data:`export.quantize.quantize.RECIPES`.
        schema: attributes that ``analyze`` asks for.
        card: other fields of the manifest.
        traced: result of :func:`trace_all`, if it was called already, for instance for another recipe.
        calibration: activation statistics, for recipes that need them.
        transform: transform of each graph, instead of ``recipe``'s.
        flavour: one of :data:`f2edge.bundle.manifest.FLAVOURS`.
        largest_bytes: maximum size of the bundle.
        measure: called with the folder and its manifest before the bundle is moved to ``out``; its result (parity, experts, smoke) is added
            to the manifest, and an exception fails the export.
        progress: called with short messages.

    Raises:
        OutputError: the folder cannot be written.
        InputError: the parts do not fit together, or the bundle is larger than ``largest_bytes``.
    """
    card = card or ModelCard()
    chosen = recipe_named(recipe)
    layout = layout_of(models.configuration, text_tokenizer_path, card.question_template, card.long_prompts)
    with replaced_folder(out) as folder:
        shutil.copyfile(text_tokenizer_path, folder / TOKENIZER)
        if card.lexicon is not None:
            (folder / LEXICON).write_text(json.dumps(card.lexicon.to_json()), encoding="utf-8")
        graphs = write_graphs(
            folder, traced or trace_all(models, progress), keeping_stored(models, transform or recipe_transform(chosen, calibration))
        )
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
            "faces": card.faces,
            "pictures": card.pictures,
            "describe_question": card.describe_question,
            "description": card.description,
            "licence": card.licence,
            "quality": dict(card.quality or {}),
        }
        if models.trained_for is not None:
            document["trained_for"] = models.trained_for.to_json()
        if card.typical_answers:
            document["typical_answers"] = list(card.typical_answers)
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
