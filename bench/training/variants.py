"""Variants of the ablation: the terms of D3Diff and the levels of experts, as configuration.

>>> [variant.name for variant in VARIANTS][:2]
['masked only', 'score only']
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from bench.training.faces import BITS
from export.model.variants import with_experts
from export.training.unified import Mixture
from f2edge.errors import InputError
from f2edge.spec.configuration import NANO, ModelConfiguration, TokenExperts

#: Small enough that one core trains a variant in minutes: a quarter of nano's width, on codes of nano's image tokenizer that are cut.
SMALL = replace(
    NANO, name="ablation", width=64, layers=3, heads=4, rotary=16, token_experts=TokenExperts(64, 4, 32, 2), resampler_width=32,
    tokenizer=replace(NANO.tokenizer, bits=BITS),
)  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """One row of the ablation.

    Attributes:
        name: in tables.
        masked, score: weights of D3Diff's terms (:class:`export.training.unified.Mixture`).
        experts: levels of :func:`export.model.variants.with_experts`.
    """

    name: str
    masked: float = 1.0
    score: float = 0.01
    experts: str = "both"

    @property
    def folder(self) -> str:
        """Return the name of the variant's folder."""
        return self.name.replace(" ", "-").replace("=", "-")

    def mixture(self) -> Mixture:
        """Return the mixture of its batches and losses."""
        return Mixture(masked=self.masked, score=self.score)

    def configuration(self, base: ModelConfiguration) -> ModelConfiguration:
        """Return its model; without routed experts the FFN is as wide as what one token computes with them."""
        return with_experts(base, self.experts)


#: The variant that differences refer to: the paper's.
BASE = "alpha=0.01"
VARIANTS = (
    Variant("masked only", score=0.0),
    Variant("score only", masked=0.0, score=1.0),
    Variant(BASE),
    Variant("alpha=0.1", score=0.1),
    Variant("alpha=1", score=1.0),
    Variant("no experts", experts="none"),
    Variant("token experts", experts="token"),
    Variant("sequence experts", experts="sequence"),
)


def chosen(text: str) -> tuple[Variant, ...]:
    """Return the variants of a comma-separated list, in the order of :data:`VARIANTS`; "all" names all, another name is refused."""
    names = [part.strip() for part in text.split(",")] if text != "all" else [variant.name for variant in VARIANTS]
    unknown = sorted(set(names) - {variant.name for variant in VARIANTS})
    if unknown:
        raise InputError(f"unknown variant {unknown[0]!r}; choose from: {', '.join(variant.name for variant in VARIANTS)}")
    return tuple(variant for variant in VARIANTS if variant.name in names)
