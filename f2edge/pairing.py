"""Pairing of prompts with seeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from f2edge.errors import InputError


def paired(prompts: str | Sequence[str], seeds: int | Sequence[int]) -> Iterator[tuple[str, int]]:
    """Yield (prompt, seed) pairs; a single prompt or seed is repeated for all of the other.

    Raises:
        InputError: several of both in different numbers, or none of one.
    """
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    numbers = [seeds] if isinstance(seeds, int) else list(seeds)
    count = max(len(texts), len(numbers))
    if not texts or not numbers or {len(texts), len(numbers)} - {1, count}:
        raise InputError(f"{len(texts)} prompts and {len(numbers)} seeds do not pair; give one of either, or as many seeds as prompts")
    return zip(texts * (count // len(texts)), numbers * (count // len(numbers)), strict=True)
