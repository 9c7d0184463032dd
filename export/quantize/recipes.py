"""Quantization recipes: storage and arithmetic of the constants of each graph.

A recipe applies to all graphs, or names another recipe for some of them (``graphs``), as "mixed" does.  ``python -m bench recipes``
measures the quality and cost of a recipe, ``python -m export sensitivity`` the layers that need a higher precision.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from f2edge.errors import InputError


@dataclass(frozen=True)
class Recipe:
    """Storage and arithmetic of the constants of a graph.

    Attributes:
        name: name in the manifest.
        precision: precision of linear layers: "float32", "int8" or "int4".
        weight_limit: largest int8 weight code; 127 uses all of int8, 64 is safe without VNNI.
        tables: whether embedding tables are int8 per row.
        convolutions: storage of convolution weights: "float32", "float16" or "int8"; "computed" also multiplies in int8, with static
            scales from calibration (:mod:`export.quantize.convolutions`).
        keep_convolutions: pattern of names of convolutions that are only stored, where the others are computed.
        activations: int8: scales of linear layers' inputs: "rows", one per row, computed as it passes, or "fixed", one per layer, from
            calibration: five operators fewer for each input, but of less precision for small rows.
        smooth: SmoothQuant's alpha (arXiv 2211.10438), or None.
        keep: pattern of names of constants that stay fp32.
        smallest: linear layers and tables with fewer rows or columns stay fp32.
        block: int4: inputs that share a scale and a zero point, 32 or 128.
        method: int4: "rtn" rounds to nearest; "gptq" compensates rounding errors in later inputs and needs calibration statistics of the
            square of a layer's inputs (150 MB for 6144 inputs).
        higher: int4: pattern of names of layers that are int8 instead.
        experts: kernel of the token-level experts (:mod:`export.graph.expert_kernels`); None for the fastest one by its table.
        graphs: graph → recipe to use instead.
    """

    name: str
    precision: str = "int8"
    weight_limit: int = 64
    tables: bool = True
    convolutions: str = "int8"
    keep_convolutions: str | None = None
    activations: str = "rows"
    smooth: float | None = None
    keep: str = r"router"
    smallest: int = 32
    block: int = 32
    method: str = "rtn"
    higher: str | None = None
    experts: str | None = None
    graphs: Mapping[str, str] = field(default_factory=dict)

    def of(self, graph: str) -> Recipe:
        """Return the recipe to use for ``graph``."""
        return recipe_named(self.graphs[graph]) if graph in self.graphs else self

    @property
    def reads_statistics(self) -> bool:
        """Whether the graphs that follow this recipe itself need calibration statistics."""
        rounded = self.precision == "int4" and self.method != "rtn"
        return self.smooth is not None or self.activations == "fixed" or rounded or self.convolutions == "computed"

    @property
    def calibrated(self) -> bool:
        """Whether this recipe or one of its ``graphs`` needs calibration statistics."""
        return self.reads_statistics or any(recipe_named(other).calibrated for other in self.graphs.values())

    @property
    def label(self) -> str:
        """Precision in the manifest."""
        return "fp32" if self.precision == "float32" else self.precision

    def to_json(self) -> dict[str, Any]:
        """Return the recipe for the manifest: the main fields, and others that differ from their defaults."""
        usual = Recipe("")
        always = ("name", "precision", "weight_limit", "tables", "convolutions", "smooth", "keep", "smallest")
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: value for name, value in values.items() if name in always or value != getattr(usual, name)}


#: Graphs outside the transformer: a few megabytes of convolutions and small maps, which do not gain from four bits.
_AROUND = dict.fromkeys(("image_encode", "image_decode", "semantic", "identity", "regions"), "int8")

#: The image tokenizer with its convolutions computed in int8 too.
_COMPUTED = {"image_encode": "int8-computed", "image_decode": "int8-computed"}

#: Layers whose four-bit error is at least three times their graph's median, by ``python -m export sensitivity`` on nano: query-key-value
#: maps, maps of image features, and output heads.  In int8 they halve the error of MMU's logits.
_SENSITIVE = r"attention\.input\.|head\.weight|^split\.|semantic\."

RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("fp32", precision="float32", tables=False, convolutions="float32"),
        Recipe("int8"),
        Recipe("int8-vnni", weight_limit=127),
        Recipe("int8-smooth", smooth=0.5),
        Recipe("int8-fp16conv", convolutions="float16"),
        Recipe("int8-fixed", activations="fixed"),
        Recipe("int8-step", graphs={"t2i_step": "int8-fixed"}),
        Recipe("int8-gathered", experts="gathered"),
        Recipe("int8-computed", convolutions="computed"),
        Recipe("int8-decoder", graphs={"image_decode": "int8-computed"}),
        Recipe("int4", precision="int4", graphs=_AROUND),
        Recipe("int4-128", precision="int4", block=128, graphs=_AROUND),
        Recipe("int4-128-computed", precision="int4", block=128, graphs={**_AROUND, **_COMPUTED}),
        Recipe("int4-gptq", precision="int4", method="gptq", graphs=_AROUND),
        Recipe("int4-careful", precision="int4", method="gptq", higher=_SENSITIVE, graphs=_AROUND),
        Recipe("mixed", graphs={"mmu_extend": "int4"}),
    )
}


def recipe_named(name: str) -> Recipe:
    """Return the recipe called ``name``; raises :class:`InputError` for an unknown name."""
    if name not in RECIPES:
        raise InputError(f"unknown quantization recipe {name!r}; choose one of: {', '.join(RECIPES)}")
    return RECIPES[name]
