"""Recipes: how the constants of each graph are stored and computed, as one table.

A recipe holds for all graphs, or names another recipe for some of them (``graphs``): that is what "mixed" is.  What a recipe costs and what
it loses is measured by ``python -m bench recipes``; which layers must stay higher by ``python -m export sensitivity``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from f2edge.errors import InputError


@dataclass(frozen=True)
class Recipe:
    """How the constants of a graph are stored and computed.

    Attributes:
        name: as it stands in the manifest.
        precision: "float32", "int8" or "int4": of the linear layers.
        weight_limit: largest int8 weight code; 127 is all of int8, 64 is safe without VNNI.
        tables: whether embedding tables are int8 per row.
        convolutions: how convolution weights are stored: "float32", "float16" or "int8".
        smooth: SmoothQuant's alpha (arXiv 2211.10438) for linear layers with calibration figures, or None.
        keep: constants whose name matches stay fp32.
        smallest: linear layers and tables with fewer rows or columns than this stay fp32: nothing to win.
        block: int4: inputs that share a scale and a zero point, 32 or 128.
        method: int4: "rtn" rounds to nearest; "gptq" lets later inputs make up for earlier errors and needs calibration figures, of the
            square of a layer's inputs: 150 MB for one of 6144.
        higher: int4: layers whose name matches are int8 instead.
        experts: form of the token-level experts (:mod:`export.graph.expert_kernels`); None takes the one that the table there recommends.
        graphs: graph → recipe that it follows instead.
    """

    name: str
    precision: str = "int8"
    weight_limit: int = 64
    tables: bool = True
    convolutions: str = "int8"
    smooth: float | None = None
    keep: str = r"router"
    smallest: int = 32
    block: int = 32
    method: str = "rtn"
    higher: str | None = None
    experts: str | None = None
    graphs: Mapping[str, str] = field(default_factory=dict)

    def of(self, graph: str) -> Recipe:
        """The recipe that ``graph`` follows."""
        return recipe_named(self.graphs[graph]) if graph in self.graphs else self

    @property
    def calibrated(self) -> bool:
        """Whether it needs calibration figures, itself or for one of its graphs."""
        own = self.smooth is not None or (self.precision == "int4" and self.method != "rtn")
        return own or any(recipe_named(other).calibrated for other in self.graphs.values())

    @property
    def label(self) -> str:
        """Precision as it stands in the manifest."""
        return "fp32" if self.precision == "float32" else self.precision

    def to_json(self) -> dict[str, Any]:
        """For the manifest: what differs from the usual, and what every graph's recipe is known by."""
        usual = Recipe("")
        always = ("name", "precision", "weight_limit", "tables", "convolutions", "smooth", "keep", "smallest")
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: value for name, value in values.items() if name in always or value != getattr(usual, name)}


#: Graphs outside the transformer: a few megabytes of convolutions and small maps, where four bits win nothing.
_AROUND = dict.fromkeys(("image_encode", "image_decode", "semantic", "identity", "regions"), "int8")

#: Layers that lose three times their graph's median in four bits and more, by ``python -m export sensitivity`` on nano: what makes queries,
#: keys and values, what reads the features of a picture, and what writes codes and words.  In int8 they halve the error of MMU's logits.
_SENSITIVE = r"attention\.input\.|head\.weight|^split\.|semantic\."

RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("fp32", precision="float32", tables=False, convolutions="float32"),
        Recipe("int8"),
        Recipe("int8-vnni", weight_limit=127),
        Recipe("int8-smooth", smooth=0.5),
        Recipe("int8-fp16conv", convolutions="float16"),
        Recipe("int8-gathered", experts="gathered"),
        Recipe("int4", precision="int4", graphs=_AROUND),
        Recipe("int4-128", precision="int4", block=128, graphs=_AROUND),
        Recipe("int4-gptq", precision="int4", method="gptq", graphs=_AROUND),
        Recipe("int4-careful", precision="int4", method="gptq", higher=_SENSITIVE, graphs=_AROUND),
        Recipe("mixed", graphs={"mmu_extend": "int4"}),
    )
}


def recipe_named(name: str) -> Recipe:
    """The recipe called ``name``; an unknown name raises :class:`InputError` with the known ones."""
    if name not in RECIPES:
        raise InputError(f"unknown quantisation recipe {name!r}; choose one of: {', '.join(RECIPES)}")
    return RECIPES[name]
