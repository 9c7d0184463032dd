"""Prompts and seeds as callers give them, several or one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from f2edge.errors import InputError


def paired(prompts: str | Sequence[str], seeds: int | Sequence[int]) -> Iterator[tuple[str, int]]:
    """Pairs of prompt and seed; a single one of either goes with all of the other.  :class:`InputError` where the numbers do not fit."""
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    numbers = [seeds] if isinstance(seeds, int) else list(seeds)
    count = max(len(texts), len(numbers))
    if not texts or not numbers or {len(texts), len(numbers)} - {1, count}:
        raise InputError(f"{len(texts)} prompts and {len(numbers)} seeds do not pair; give one of either, or as many seeds as prompts")
    return zip(texts * (count // len(texts)), numbers * (count // len(numbers)), strict=True)
