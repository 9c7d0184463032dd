"""Graphs of the "tensorrt" flavour: typed and quantized, readable by TensorRT 10.3 to 11.4.

Steps from a lowered fp32 graph of :func:`export.graph.trace.trace`:

1. replace what TensorRT lacks: the sampler (:mod:`export.tensorrt.sampling`) and bitwise operators;
2. fix the sizes that one deployment fixes (:mod:`export.graph.static_shapes`): always the prompt's width, and with ``images`` all sizes of
   the decoding step, so that a step is one CUDA graph;
3. choose an implementation of the experts (:mod:`export.tensorrt.fused_moe`) and a form of attention (:mod:`export.tensorrt.attention`);
4. insert explicit Q/DQ at linear layers (:mod:`export.tensorrt.recipes`) and types everywhere (:mod:`export.tensorrt.half_precision`);
5. check the result against the target version's parser (:mod:`export.tensorrt.parser_rules`).

>>> tensorrt_graph("t2i_step", traced["t2i_step"], configuration, TensorRTOptions())  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from export.graph.lower import Inserter, LoweringError, add_constant, constant, replace
from export.graph.sampling import replace_sampler
from export.graph.static_shapes import infer, pin
from export.quantize.quantize import Calibration
from export.tensorrt import attention
from export.tensorrt.fused_moe import check_implementation, fuse_experts, shared_calibration
from export.tensorrt.half_precision import to_half
from export.tensorrt.parser_rules import check_version, refuse_unreadable, version_name
from export.tensorrt.recipes import TensorRTRecipe, quantize_tensorrt, recipes_of
from export.tensorrt.sampling import tensorrt_sampling_model
from f2edge.errors import InputError
from f2edge.spec.configuration import ModelConfiguration

FLAVOUR, CUDA = "tensorrt", "cuda"
#: Forms of attention.
ATTENTION = ("single", "fused", "operator")


@dataclass(frozen=True)
class TensorRTOptions:
    """Options of the flavour.

    Attributes:
        version: oldest TensorRT that must read the graphs, "major.minor".
        moe: implementation of the routed experts: "plain" or "plugin".
        recipes: recipe of each graph, from :func:`export.tensorrt.recipes.recipes_of`.
        attention: "single": softmax in fp32; "fused": in half precision, so that TensorRT can fuse attention into one kernel; "operator":
            ONNX's Attention; None for "operator" where the version reads it, else "fused".
        flavour: "tensorrt", or "cuda" for ONNX Runtime's CUDA provider.
        join_keys: whether ``mmu_extend`` joins the image's and the text's columns to one product, softmax and product, by copying them.
        images: fixed batch size R of the decoding step, for guided images only; None leaves R and B dynamic, for engines with one static
            profile per batch size.
    """

    version: str = "10.3"
    moe: str = "plain"
    recipes: Mapping[str, TensorRTRecipe] = field(default_factory=lambda: recipes_of("fp16"))
    images: int | None = None
    attention: str | None = None
    join_keys: bool = False
    flavour: str = FLAVOUR

    def __post_init__(self) -> None:
        check_version(self.version)
        check_implementation(self.moe)
        if self.images is not None and not 1 <= self.images <= 1024:
            raise InputError(f"a decoding step of {self.images} images: choose 1 … 1024, or none for dynamic sizes")
        if self.attention not in (None, *ATTENTION):
            raise InputError(f"unknown form of attention {self.attention!r}; choose one of: {', '.join(ATTENTION)}")
        if self.attention == "operator" and self.target < attention.VERSION:
            raise InputError(
                f"attention as an operator needs TensorRT {version_name(attention.VERSION)}; choose 'fused' for {self.version}"
            )
        if self.flavour == CUDA and (self.moe != "plain" or any(recipe.name == "nvfp4" for recipe in self.recipes.values())):
            raise InputError("flavour 'cuda' has plain experts and no nvfp4, for which ONNX Runtime has no CUDA kernels")
        for recipe in self.recipes.values():
            if self.target < recipe.since:
                raise InputError(
                    f"recipe {recipe.name!r} needs TensorRT {version_name(recipe.since)}; choose another one for {self.version}"
                )

    @property
    def target(self) -> tuple[int, int]:
        """The version as numbers."""
        major, minor = self.version.split(".")
        return int(major), int(minor)

    @property
    def form(self) -> str:
        """The form of attention: one of :data:`ATTENTION`."""
        return self.attention or ("operator" if self.target >= attention.VERSION else "fused")

    def to_json(self, graph: str) -> dict[str, Any]:
        """Return one graph's recipe for the manifest."""
        if self.flavour == CUDA:
            return {**asdict(self.recipes[graph]), "flavour": CUDA}
        row = {"flavour": FLAVOUR, "tensorrt": self.version, "moe": self.moe, "attention": self.form}
        return {**asdict(self.recipes[graph]), **row}


def prompt_columns(configuration: ModelConfiguration) -> int:
    """Return P of the longest prompt: its text and ``<|t2i|> <sot> <eot>``."""
    return configuration.prompt_tokens + 3


def _sizes(name: str, configuration: ModelConfiguration, images: int | None) -> dict[str, int]:
    sizes = {"P": prompt_columns(configuration)} if name.startswith("t2i") else {}
    return sizes | ({"R": images, "B": 2 * images} if name == "t2i_step" and images is not None else {})


def _replace_bitwise(graph: ir.Graph) -> None:
    """Replace ``BitwiseAnd(x, 1)`` of non-negative integers by ``x - 2 · (x / 2)``."""
    for node in list(graph):
        if node.op_type != "BitwiseAnd":
            continue
        mask = constant(node.inputs[1])
        if mask is None or not (mask == 1).all():
            raise LoweringError(
                f"graph {graph.name!r}: BitwiseAnd {node.name!r} with another mask than 1; TensorRT has no bitwise operators"
            )
        insert = Inserter(graph, node, node.name or "BitwiseAnd")
        two = add_constant(graph, "two", (mask * 2).astype(mask.dtype))
        half = insert("Div", node.inputs[0], two)
        replace(node, insert("Sub", node.inputs[0], insert("Mul", half, two)))


def _complete_norms(graph: ir.Graph) -> None:
    """Add a bias of zeros to every LayerNormalization without one, since importers have different defaults."""
    for node in graph:
        if node.op_type == "LayerNormalization" and len(node.inputs) < 3:
            scale = constant(node.inputs[1])
            if scale is None:
                raise LoweringError(f"graph {graph.name!r}: the scale of {node.name!r} is computed")
            node.resize_inputs(3)
            node.replace_input_with(2, add_constant(graph, f"zeros{scale.size}", np.zeros_like(scale)))


def _name_logits(graph: ir.Graph) -> None:
    """Name the fp32 Cast of the head's half-precision result "logits", the value that parity is measured on."""
    values = {value.name: value for node in graph for value in node.outputs}
    half, single = values.get("logits"), values.get("logits/single/Cast_1")
    if half is not None and single is not None:
        half.name, single.name = "logits.half", "logits"


def tensorrt_graph(
    name: str, traced: ir.Model, configuration: ModelConfiguration, options: TensorRTOptions, calibration: Calibration | None = None
) -> ir.Model:
    """Return one graph in this flavour; ``traced`` is not modified.

    Raises:
        UnreadableGraphError: the target version's parser cannot read the result.
        LoweringError: the traced graph has an unknown structure.
        InputError: a calibrated recipe lacks calibration statistics.
    """
    model = traced.clone()
    if name == "t2i_step":
        model = replace_sampler(model, tensorrt_sampling_model(configuration.image_tokens, configuration.codes, configuration.draw))
    _replace_bitwise(model.graph)
    _complete_norms(model.graph)
    sizes = _sizes(name, configuration, options.images)
    if sizes:
        pin(model, sizes)
    infer(model)
    if options.moe == "plugin":
        fuse_experts(model)
        calibration = shared_calibration(calibration or {}, configuration.token_experts)
    if options.join_keys:
        attention.join_keys(model)
    quantize_tensorrt(model, options.recipes[name], calibration)
    inferred = options.recipes[name].name != "nvfp4"  # ONNX's inference knows no FP4 in this opset; its types and shapes are set
    if inferred:
        infer(model)
    to_half(model, fused_attention=options.form != "single")
    if options.form == "operator":
        attention.use_operator(model)
    _name_logits(model.graph)
    if inferred:
        infer(model)
    refuse_unreadable(model, options.version, static=name == "t2i_step" and options.images is not None)
    return model
