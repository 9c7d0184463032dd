"""Tracing of PyTorch modules to the ONNX graphs of ``f2edge.spec.graphs``, with one thin wrapper per graph.

A wrapper defines inputs, outputs and guidance; the model's arithmetic is in the modules.  Names, dtypes and axes come from the graph
signatures.

>>> models = Models(configuration, transformer, image_tokenizer, semantic, identity, parser)  # doctest: +SKIP
>>> traced = trace("t2i_prefill", models)                                                      # doctest: +SKIP
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from export.checkpoints.stored_graphs import StoredGraph, StoredTokenizer
from export.graph.lower import OPSET, Array, LoweringError, constant, lower, merge, rename_axes
from export.graph.sampling import guide, sampling_model, step_inputs
from export.model.encoders import folded
from export.model.transformer import UnifiedTransformer
from f2edge.bundle.trained_for import TrainedFor
from f2edge.errors import InputError
from f2edge.spec.configuration import FeatureShape, ModelConfiguration
from f2edge.spec.graphs import SIGNATURES, GraphSignature

#: Values of an array to compare before a full comparison.
_GLANCED = 256
#: Sizes of the dynamic axes while tracing: distinct and above 1, since the tracer treats 0 and 1 as constants.
_TRACED = {"B": 3, "R": 2, "P": 5, "S": 4, "T": 7}


@dataclass(frozen=True)
class Models:
    """The trained parts of one model, in fp32 and on the CPU; a part that is None has no graphs.

    ``trained_for`` is that of a distilled transformer.
    """

    configuration: ModelConfiguration
    transformer: UnifiedTransformer | None = None
    image_tokenizer: nn.Module | None = None
    semantic: nn.Module | None = None
    identity: nn.Module | None = None
    parser: nn.Module | None = None
    regions: tuple[str, ...] = ()
    system_ids: tuple[int, ...] = ()
    trained_for: TrainedFor | None = None

    def __post_init__(self) -> None:
        if self.transformer is not None and len(self.system_ids) != self.configuration.system_tokens:
            raise InputError(f"the system prompt has {len(self.system_ids)} tokens, the model needs {self.configuration.system_tokens}")
        for part in (self.transformer, self.image_tokenizer, self.semantic, self.identity, self.parser):
            if part is not None:
                part.eval().requires_grad_(requires_grad=False)
        if self.transformer is not None:
            self.transformer.use_fused_attention(fused=False)

    @property
    def stored(self) -> Mapping[str, StoredGraph]:
        """The graphs that are exported as they are."""
        tokenizer = self.image_tokenizer
        parts: dict[str, nn.Module | None] = {"semantic": self.semantic, "identity": self.identity, "regions": self.parser}
        if isinstance(tokenizer, StoredTokenizer):
            parts |= {"image_encode": tokenizer.encoder, "image_decode": tokenizer.decoder}
        return {name: part for name, part in parts.items() if isinstance(part, StoredGraph)}

    @property
    def graphs(self) -> tuple[str, ...]:
        """Names of the graphs of these parts, in the order of the signatures."""
        parts = {
            "t2i_prefill": self.transformer,
            "t2i_step": self.transformer,
            "mmu_prefill": self.transformer,
            "mmu_extend": self.transformer,
            "image_encode": self.image_tokenizer,
            "image_decode": self.image_tokenizer,
            "semantic": self.semantic,
            "identity": self.identity,
            "regions": self.parser,
        }
        return tuple(name for name in SIGNATURES if parts[name] is not None)


class _TransformerGraph(nn.Module):
    """Base class of graphs that call one method of the transformer."""

    def __init__(self, model: UnifiedTransformer) -> None:
        super().__init__()
        self.model = model


class _PromptPrefill(_TransformerGraph):
    def forward(self, prompt_ids: Tensor, prompt_lengths: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.prefill_prompt(prompt_ids, prompt_lengths)


class ImageStep(nn.Module):
    """The part of ``t2i_step`` before sampling: guided logits ``(R, N, V)``.

    Guidance acts on what the head reads instead of on what it writes: the head is affine and ``(1 + g) - g = 1``, so both are the same,
    and the largest multiplication of the step runs once per image instead of once per branch.
    """

    def __init__(self, model: UnifiedTransformer) -> None:
        super().__init__()
        self.stem = copy.copy(model)  # shares every weight; only the head is taken out
        self.stem._modules = {**model._modules, "image_head": nn.Identity()}  # noqa: SLF001
        self.head = nn.Linear(model.configuration.width, model.configuration.codes)
        self.head.weight = nn.Parameter(model.image_head_weight().detach(), requires_grad=False)
        self.head.bias = nn.Parameter(model.image_head.bias.detach(), requires_grad=False)

    def forward(  # noqa: PLR0917 - the graph's inputs in their order
        self,
        codes: Tensor,
        branch_row: Tensor,
        unconditional_branch: Tensor,
        prefix_key: Tensor,
        prefix_value: Tensor,
        prefix_lengths: Tensor,
        mask_ratio: Tensor,
        guidance: Tensor,
    ) -> Tensor:
        """Return guided logits (R, N, V); inputs as in :data:`f2edge.spec.graphs.T2I_STEP`."""
        states = self.stem.image_logits(codes[branch_row], prefix_key, prefix_value, prefix_lengths, mask_ratio[branch_row])  # (B, N, D)
        conditional = states[torch.arange(codes.shape[0])]  # branch r belongs to row r
        logits: Tensor = self.head(guide(conditional, states[unconditional_branch], guidance))
        return logits


class _ImagePrefill(_TransformerGraph):
    def forward(self, codes: Tensor, semantic: Tensor, identity: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.prefill_image(codes, semantic, identity)


class _PlainImagePrefill(_TransformerGraph):
    """The same for a model without encoders (Show-o)."""

    def forward(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        nothing = torch.zeros(0)
        return self.model.prefill_image(codes, nothing, nothing)


class _FeaturePrefill(_TransformerGraph):
    """The same for a model that reads pictures by features (Show-o with CLIP-ViT); the system prompt is a constant of the graph."""

    def __init__(self, model: UnifiedTransformer, system_ids: tuple[int, ...]) -> None:
        super().__init__(model)
        self.register_buffer("system_ids", torch.tensor(system_ids), persistent=False)

    def forward(self, semantic: Tensor) -> tuple[Tensor, Tensor]:
        assert isinstance(self.system_ids, Tensor)
        return self.model.prefill_features(self.system_ids, semantic)


class _TextExtend(_TransformerGraph):
    def forward(  # noqa: PLR0917 - the graph's inputs in their order
        self, text_ids: Tensor, text_lengths: Tensor, image_key: Tensor, image_value: Tensor, text_key: Tensor, text_value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        return self.model.extend_text(text_ids, text_lengths, image_key, image_value, text_key, text_value)


class _Encode(nn.Module):
    def __init__(self, tokenizer: nn.Module) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, pixels: Tensor) -> Tensor:
        codes: Tensor = self.tokenizer.encode(pixels)  # type: ignore[operator]
        return codes


class _Decode(nn.Module):
    def __init__(self, tokenizer: nn.Module) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, codes: Tensor) -> Tensor:
        pixels: Tensor = self.tokenizer.decode(codes)  # type: ignore[operator]
        return pixels


def wrapper(name: str, models: Models) -> nn.Module:
    """Return the module to trace for graph ``name``; raises :class:`LoweringError` for an unknown name."""
    match name:
        case "image_encode" | "image_decode":
            assert models.image_tokenizer is not None
            return _tokenizer_graph(name, models.image_tokenizer)
        case "semantic" | "identity" | "regions":
            part = models.parser if name == "regions" else getattr(models, name)
            assert part is not None
            return part if isinstance(part, StoredGraph) else folded(part)
    model = models.transformer
    assert model is not None
    match name:
        case "t2i_prefill":
            return _PromptPrefill(model)
        case "t2i_step":
            return ImageStep(model)
        case "mmu_prefill":
            return _image_prefill(models, model)
        case "mmu_extend":
            return _TextExtend(model)
    raise LoweringError(f"no graph {name!r}; known: {', '.join(SIGNATURES)}")


def _tokenizer_graph(name: str, tokenizer: nn.Module) -> nn.Module:
    """The module for ``image_encode`` or ``image_decode``."""
    if isinstance(tokenizer, StoredTokenizer):
        return tokenizer.encoder if name == "image_encode" else tokenizer.decoder
    return (_Encode if name == "image_encode" else _Decode)(tokenizer)


def _image_prefill(models: Models, model: UnifiedTransformer) -> nn.Module:
    """The module for ``mmu_prefill``: by features, by codes alone, or by codes with the encoders' features."""
    if models.configuration.understanding == "features":
        return _FeaturePrefill(model, models.system_ids)
    return _PlainImagePrefill(model) if models.configuration.semantic is None else _ImagePrefill(model)


def axes_of(signature: GraphSignature, models: Models) -> dict[str, tuple[int | str, ...]]:
    """Return the axes of every input and output of a graph: sizes fixed by the model, or names of dynamic axes."""
    c = models.configuration
    fixed = {"3": 3, "L": c.layers, "H": c.heads, "W": c.head_width, "N": c.image_tokens, "V": c.text_vocabulary}
    fixed |= {
        "C": c.understanding_columns,
        "Y": c.tokenizer.image_size,
        "X": c.tokenizer.image_size,
        "G": c.tokenizer.grid,
        "K": len(models.regions),
    }
    fixed["C"] = c.understanding_columns
    result: dict[str, tuple[int | str, ...]] = {}
    for tensor in (*signature.inputs, *signature.outputs):
        which = tensor.name if signature.name == "mmu_prefill" else signature.name
        shape = {"semantic": c.semantic, "identity": c.identity}.get(which)
        sizes = dict(fixed)
        if isinstance(shape, FeatureShape):
            side = shape.image_size or c.tokenizer.image_size
            sizes |= {"M": shape.vectors, "F": shape.width, "Y": side, "X": side}
        result[tensor.name] = tuple(sizes.get(axis, axis) for axis in tensor.axes)
    if signature.name == "mmu_extend":
        for name in ("image_key", "image_value"):  # one row may serve all questions
            result[name] = (result[name][0], "I", *result[name][2:])
        for name in ("next_text_key", "next_text_value"):
            result[name] = (*result[name][:3], "T + S", *result[name][4:])
    return result


def _example(dtype: str, axes: tuple[int | str, ...]) -> Tensor:
    """Return an example tensor; ids are 0 or 1, which are valid everywhere."""
    sizes = [1 if axis == "I" else _TRACED[axis] if isinstance(axis, str) else axis for axis in axes]
    generator = torch.Generator().manual_seed(0)
    if dtype == "int64":
        return torch.randint(0, 2, sizes, generator=generator)
    return torch.rand(sizes, generator=generator)


def _shift_right(bits: Any, count: Any) -> Any:
    """Translate ``bits >> count`` for image codes, which the tracer does not support; exact in fp32 below 2^24."""
    from onnxscript import opset20

    op: Any = opset20  # its annotations are of values, a translation handles symbols

    scale = op.Pow(op.Constant(value_float=0.5), op.Cast(count, to=ir.DataType.FLOAT))
    return op.Cast(op.Floor(op.Mul(op.Cast(bits, to=ir.DataType.FLOAT), scale)), to=ir.DataType.INT64)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the tracer's progress prints and deprecation warnings."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.onnx._internal.exporter._registration", "onnxscript")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _export(module: nn.Module, examples: dict[str, Tensor], axes: Mapping[str, tuple[int | str, ...]], outputs: list[str]) -> ir.Model:
    dims = {axis: torch.export.Dim(axis) for name in examples for axis in axes[name] if isinstance(axis, str) and axis != "I"}
    dynamic = {name: {i: dims[axis] for i, axis in enumerate(axes[name]) if axis in dims} for name in examples}
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module,
            tuple(examples.values()),
            input_names=list(examples),
            output_names=outputs,
            dynamic_shapes=tuple(dynamic.values()),
            opset_version=OPSET,
            dynamo=True,
            custom_translation_table={torch.ops.aten.__rshift__.Tensor: _shift_right},
            verbose=False,
        )
    assert program is not None
    model: ir.Model = program.model
    return model


def _check_dynamic(model: ir.Model, axes: Mapping[str, tuple[int | str, ...]]) -> None:
    """Raise :class:`LoweringError` if the tracer silently froze an axis to the example's size, for instance at ``len(tensor)``."""
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.name is None or value.name not in axes or value.shape is None:
            continue
        frozen = [
            str(axis) for axis, size in zip(axes[value.name], value.shape, strict=True) if axis in _TRACED and size == _TRACED[str(axis)]
        ]
        if frozen:
            raise LoweringError(
                f"tensor {value.name!r}: axis {', '.join(frozen)} was frozen while tracing; the module must not turn sizes into numbers"
            )


def _glance(array: Array) -> tuple[tuple[int, ...], bytes]:
    """Return shape and some values, spread over the array, as a cheap key; hashing whole models takes minutes."""
    picked = np.linspace(0, array.size - 1, min(array.size, _GLANCED), dtype=np.int64)
    return array.shape, np.asarray(array[np.unravel_index(picked, array.shape)]).tobytes()


def restore_names(model: ir.Model, module: nn.Module) -> None:
    """Restore parameter names of constants that the tracer transposed (``….T``) or folded."""
    known: dict[str, Array] = {name: p.detach().numpy() for name, p in module.named_parameters(remove_duplicate=False)}
    alike: dict[tuple[tuple[int, ...], bytes], list[tuple[str, Array]]] = {}
    for name, array in known.items():
        alike.setdefault(_glance(array), []).insert(0, (name, array))  # of equal parameters the last gives its name
        if array.ndim == 2:
            alike.setdefault(_glance(array.T), []).append((f"{name}.T", array.T))
    graph = model.graph
    for value in list(graph.initializers.values()):
        held = constant(value)
        if value.name in known or held is None or held.size < 2:
            continue
        wanted = next((name for name, array in alike.get(_glance(held), []) if np.array_equal(array, held)), None)
        if wanted is not None and wanted not in graph.initializers:
            value.name = wanted


def _stored(module: StoredGraph, signature: GraphSignature, axes: dict[str, tuple[int | str, ...]]) -> ir.Model:
    """Return a stored graph with the names of its signature, behind what computes its input."""
    model, (given,), (made,) = module.model(OPSET), signature.inputs, signature.outputs
    if module.before is not None:
        examples = {given.name: _example(given.dtype, axes[given.name])}
        before = lower(_export(module.before, examples, axes, ["before"]))
        model = merge(before, model, {"input": "before"}, signature.name)
    model.graph.inputs[0].name, model.graph.outputs[0].name = given.name, made.name
    model.graph.name = signature.name
    rename_axes(model, axes)
    return model


def trace(name: str, models: Models) -> ir.Model:
    """Trace and lower one graph of ``f2edge.spec.graphs`` in fp32; its constants are views of the model's memory.

    Raises:
        LoweringError: the traced module has unsupported operators.
    """
    signature, module = SIGNATURES[name], wrapper(name, models)
    axes = axes_of(signature, models)
    if isinstance(module, StoredGraph):
        return _stored(module, signature, axes)
    inputs = {t.name: t.dtype for t in signature.inputs if t.name not in models.configuration.absent_inputs(name)}
    outputs = [t.name for t in signature.outputs]
    if name == "t2i_step":
        inputs, outputs = {key: inputs[key] for key in step_inputs()}, ["logits"]
    examples = {key: _example(dtype, axes[key]) for key, dtype in inputs.items()}
    model = _export(module, examples, axes, outputs)
    _check_dynamic(model, axes)
    restore_names(model, module)
    model = lower(model)
    if name == "t2i_step":
        drawn = models.configuration
        sampler = sampling_model(drawn.image_tokens, drawn.codes, drawn.draw)
        model = merge(model, sampler, {"logits": "logits"}, name)
        given = {value.name: value for value in model.graph.inputs}
        model.graph.inputs[:] = [given[t.name] for t in signature.inputs]
    model.graph.name = name
    model.producer_name, model.producer_version = "f2edge", None
    rename_axes(model, axes)
    return model
