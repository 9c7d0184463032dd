"""The same model with fewer levels of experts, at the same arithmetic for each token.

>>> with_experts(NANO, "none").token_experts
TokenExperts(shared_width=512, routed=0, routed_width=0, active=0)
"""

from __future__ import annotations

from dataclasses import replace

from f2edge.errors import InputError
from f2edge.spec.configuration import ModelConfiguration, TokenExperts

#: Levels of experts by name: whether the token level and the sequence level exist.
LEVELS = {"none": (False, False), "token": (True, False), "sequence": (False, True), "both": (True, True)}


def with_experts(configuration: ModelConfiguration, levels: str) -> ModelConfiguration:
    """Return a configuration with "none", "token", "sequence" or "both" levels of experts.

    Without the token level, the FFN is as wide as the shared and the active experts together.

    Raises:
        InputError: another name, or a level that ``configuration`` lacks.
    """
    if levels not in LEVELS:
        raise InputError(f"unknown experts {levels!r}; choose one of: {', '.join(LEVELS)}")
    token, sequence = LEVELS[levels]
    shape = configuration.token_experts
    if token > (shape.routed > 0) or sequence > configuration.sequence_experts:
        raise InputError(f"configuration {configuration.name!r} lacks experts of level {levels!r}; choose another configuration")
    dense = TokenExperts(shape.shared_width + shape.active * shape.routed_width)
    return replace(configuration, token_experts=shape if token else dense, sequence_experts=sequence)
