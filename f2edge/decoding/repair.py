"""Generate, check, repair: the model reads its own picture, and what disagrees with the prompt is drawn again.

A prompt names values of slots (:class:`~f2edge.spec.lexicon.Reading`).  A finished picture is read for these slots; those regions whose
slots disagree are masked and decoded again with another seed, a few times at most.  Of all attempts the best by the model's own reading is
the result, so that it is never worse than the first.  Attempts depend on prompt, options and seed alone.

N image tokens, G token cells along a side, K regions of the parser.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, log

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from f2edge.decoding.parallel import GridRow
from f2edge.decoding.schedule import Schedule, plan
from f2edge.errors import InputError
from f2edge.imaging.regions import PRESENT, Cells, Coverage, select_cells
from f2edge.results import Check, FaceReport
from f2edge.spec.attributes import AttributeSchema
from f2edge.spec.layout import Ids
from f2edge.spec.lexicon import Reading
from f2edge.spec.slot_regions import SLOT_REGIONS

#: Repairs of ``check=True``, and the most that may be asked for.
ROUNDS, MOST_ROUNDS = 2, 8
#: Distance of the seeds of repairs, modulo 2^64: far from those that callers count up.
_SEED_STEP = 0x9E3779B97F4A7C15
#: Fewest steps of a repair; otherwise they shrink with the share of the tokens that are masked.
_FEWEST_STEPS = 4
_SEEN, _LEAST = 0.5, 1e-6


@dataclass(frozen=True)
class Wanted:
    """What a prompt asks of a picture.

    Attributes:
        claims: slot → value.
        excluded: slot → values that it rules out.
        silent: slots that are looked at but never named in a result (:mod:`f2edge.spec.sensitive`).
        allowed: bool (G, G), the cells that may be drawn again; None for all.
    """

    claims: Mapping[str, str]
    excluded: Mapping[str, frozenset[str]]
    silent: frozenset[str] = frozenset()
    allowed: Cells | None = None

    @classmethod
    def of(cls, reading: Reading, schema: AttributeSchema, *, silent: Iterable[str] = (), allowed: Cells | None = None) -> Wanted:
        """Return what a reading asks for, of the slots and values that the schema has."""
        claims = {slot: value for slot, value in reading.claims.items() if slot in schema and value in schema[slot].values}
        excluded = {slot: values for slot, values in reading.excluded.items() if slot in schema}
        return cls(claims, excluded, frozenset(silent), allowed)

    @property
    def slots(self) -> tuple[str, ...]:
        return (*self.claims, *self.excluded)

    def without(self, slots: Iterable[str]) -> Wanted:
        """Return the same without some slots."""
        gone = set(slots)
        claims = {slot: value for slot, value in self.claims.items() if slot not in gone}
        return replace(self, claims=claims, excluded={s: v for s, v in self.excluded.items() if s not in gone})

    def agreement(self, report: FaceReport) -> dict[str, float]:
        """Return the probability of each slot that the picture shows what is asked for."""
        found = {}
        for slot in self.slots:
            values = report.probabilities[slot]
            share = values[self.claims[slot]] if slot in self.claims else 1.0 - sum(values.get(v, 0.0) for v in self.excluded[slot])
            found[slot] = share * (1.0 - report.hidden.get(slot, 0.0))
        return found


@dataclass(frozen=True)
class Attempt:
    """A picture and how the model reads it: tokens int64 (N,), the picture without marks, and the probability of each slot."""

    codes: Ids
    picture: Image.Image
    agreement: Mapping[str, float]

    @property
    def missing(self) -> tuple[str, ...]:
        """Slots of which the picture does not show what was asked for, the surest first."""
        return tuple(sorted((s for s, p in self.agreement.items() if p < _SEEN), key=self.agreement.__getitem__))

    @property
    def rank(self) -> tuple[int, float]:
        """Grows with the picture's agreement."""
        return -len(self.missing), sum(log(max(p, _LEAST)) for p in self.agreement.values())


class Repair:
    """The attempts at one picture.

    Args:
        wanted: by its prompt.
        schedule: of a repair of the whole picture.
        seed: of the picture.
        rounds: most repairs.
    """

    def __init__(self, wanted: Wanted, schedule: Schedule, seed: int, rounds: int) -> None:
        self.wanted = wanted
        self.best: Attempt | None = None
        self.repairs = 0
        self._schedule, self._seed, self._rounds = schedule, seed, rounds

    def add(self, attempt: Attempt) -> None:
        """Take an attempt into account."""
        if self.best is None or attempt.rank > self.best.rank:
            self.best = attempt

    def allow(self, cells: Cells) -> None:
        """Let repairs change these cells (G, G) only; before the first."""
        self.wanted = replace(self.wanted, allowed=cells)

    @property
    def due(self) -> bool:
        """Whether another attempt is to be made."""
        return self.best is not None and bool(self.best.missing) and self.repairs < self._rounds

    def next_row(self, tokens: NDArray[np.bool_], mask_code: int) -> GridRow:
        """Return the row of the next attempt, which masks ``tokens`` bool (N,) of the best one."""
        assert self.best is not None
        self.repairs += 1
        seed = (self._seed + self.repairs * _SEED_STEP) % (1 << 64)
        steps = max(min(_FEWEST_STEPS, self._schedule.steps), ceil(self._schedule.steps * float(tokens.mean())))
        return GridRow.of(np.where(tokens, mask_code, self.best.codes), plan(replace(self._schedule, steps=steps), tokens, seed), seed)

    @property
    def check(self) -> Check:
        """What came of it: the share of what the prompt names that the best picture shows, and what it does not."""
        named = [] if self.best is None else [slot for slot in self.best.agreement if slot not in self.wanted.silent]
        missing = () if self.best is None else tuple(slot for slot in self.best.missing if slot in named)
        return Check(1.0 - len(missing) / len(named) if named else 1.0, missing, len(named), self.repairs)


def repair_cells(
    missing: Sequence[str], names: Sequence[str], grid: int, coverage: Callable[[], Coverage], allowed: Cells | None = None
) -> Cells:
    """Return the cells (G, G) to draw again for some slots.

    Args:
        missing: slots.
        names: of the parser's K regions; without any the whole picture is drawn again.
        grid: G.
        coverage: returns the parser's shares (K, G, G) of the picture.
        allowed: bool (G, G), the cells that may change; all of them where none of the slots' own may.
    """
    everything = np.ones((grid, grid), dtype=np.bool_)
    cells = np.zeros_like(everything)
    shares = coverage() if names else None
    for slot in missing:
        regions = [name for name in SLOT_REGIONS.get(slot, ()) if name in names]
        shown = [shares[names.index(name)] for name in regions] if shares is not None else []
        own = [select_cells(share) for share in shown if share.max() >= PRESENT]
        cells |= np.logical_or.reduce(own) if own else everything
    if allowed is None:
        return cells
    return cells & allowed if (cells & allowed).any() else allowed


def checked_rounds(check: bool | int) -> int:
    """Return the most repairs that ``check`` asks for, 0 for no check; raises :class:`InputError` outside 0 … ``MOST_ROUNDS``."""
    rounds = ROUNDS if check is True else int(check)
    if not 0 <= rounds <= MOST_ROUNDS:
        raise InputError(f"check must be true, false or a number of repairs in 0 … {MOST_ROUNDS}, got {check}")
    return rounds
