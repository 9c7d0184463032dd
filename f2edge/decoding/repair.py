"""Generate, check, repair: the model reads its own picture, and what disagrees with the prompt is drawn again.

A :class:`Refinement` is a row of attempts at one picture, of which the best is kept; :class:`Repair` is that of a check, and
:class:`~f2edge.decoding.placement.Placement` that of a layout.

A prompt names values of slots (:class:`~f2edge.spec.lexicon.Reading`).  A finished picture is read for these slots; those regions whose
slots disagree are masked and decoded again with another seed, a few times at most.  Of all attempts the best by the model's own reading is
the result, so that it is never worse than the first.  Attempts depend on prompt, options and seed alone.

N image tokens, G token cells along a side, K regions of the parser.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil, log

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from f2edge.decoding.parallel import GridRow
from f2edge.decoding.schedule import Schedule, plan
from f2edge.errors import InputError
from f2edge.imaging.region_map import Layout
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
#: Agreement with a layout that a repair may cost.
_DISPLACED = 0.02


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
    """A picture and how the model reads it: tokens int64 (N,), the picture without marks, and the probability of each slot.

    Of a picture with a layout also the parser's shares (K, G, G), and how far they agree with it, in [0, 1].
    """

    codes: Ids
    picture: Image.Image
    agreement: Mapping[str, float] = field(default_factory=dict)
    coverage: Coverage | None = None
    placed: float | None = None

    @property
    def missing(self) -> tuple[str, ...]:
        """Slots of which the picture does not show what was asked for, the surest first."""
        return tuple(sorted((s for s, p in self.agreement.items() if p < _SEEN), key=self.agreement.__getitem__))

    @property
    def rank(self) -> tuple[int, float]:
        """Grows with the picture's agreement."""
        return -len(self.missing), sum(log(max(p, _LEAST)) for p in self.agreement.values())


@dataclass(frozen=True)
class Workshop:
    """What the next attempt at a picture is made with.

    Attributes:
        names: of the parser's K regions.
        grid: G.
        mask_code: of masked tokens.
        block: as in :class:`f2edge.spec.layout.TokenLayout`.
        pixels: returns a picture as pixels (3, Y, X).
        coverage: returns the parser's shares (K, G, G) of pixels.
        encode: returns the tokens (B, N) of pixels (B, 3, Y, X).
        token_mask: returns the tokens (N,) of cells (G, G).
    """

    names: Sequence[str]
    grid: int
    mask_code: int
    block: int
    pixels: Callable[[Image.Image], NDArray[np.float32]]
    coverage: Callable[[NDArray[np.float32]], Coverage]
    encode: Callable[[NDArray[np.float32]], Ids]
    token_mask: Callable[[Cells], NDArray[np.bool_]]


class Refinement(ABC):
    """The attempts at one picture, of which the best is kept.

    Args:
        wanted: by its prompt.
        schedule: of an attempt at the whole picture.
        seed: of the picture.
        rounds: most attempts after the first.

    Attributes:
        best: the best attempt.
        repairs: attempts after the first that were begun.
    """

    seed_step = _SEED_STEP

    def __init__(self, wanted: Wanted, schedule: Schedule, seed: int, rounds: int) -> None:
        self.wanted = wanted
        self.best: Attempt | None = None
        self.repairs = 0
        self._schedule, self._seed, self._rounds = schedule, seed, rounds
        self._drawing = False

    def add(self, attempt: Attempt) -> None:
        """Take an attempt into account."""
        self._drawing = False
        if self.best is None or self.better(attempt, self.best):
            self.best = attempt

    @abstractmethod
    def better(self, attempt: Attempt, best: Attempt) -> bool:
        """Return whether an attempt is better than the best one before it."""

    @property
    def due(self) -> bool:
        """Whether another attempt is to be made."""
        return self.best is not None and not self._drawing and self.repairs < self._rounds and self.improvable(self.best)

    @abstractmethod
    def improvable(self, best: Attempt) -> bool:
        """Return whether the best attempt leaves something to be wished."""

    @property
    def ended(self) -> bool:
        """Whether the best attempt is the result."""
        return self.best is not None and not self._drawing and not self.due

    def next_row(self, workshop: Workshop) -> GridRow:
        """Return the row of the next attempt, where one is due."""
        assert self.best is not None
        codes, cells = self.next_cells(self.best, workshop)
        tokens = workshop.token_mask(cells)
        self.repairs += 1
        self._drawing = True
        seed = (self._seed + self.repairs * self.seed_step) % (1 << 64)
        steps = max(min(_FEWEST_STEPS, self._schedule.steps), ceil(self._schedule.steps * float(tokens.mean())))
        masked = np.where(tokens, workshop.mask_code, codes)
        return GridRow.of(masked, plan(replace(self._schedule, steps=steps), tokens, seed, workshop.block), seed)

    @abstractmethod
    def next_cells(self, best: Attempt, workshop: Workshop) -> tuple[Ids, Cells]:
        """Return the tokens (N,) that the next attempt begins with, and the cells (G, G) that it draws."""


class Repair(Refinement):
    """The attempts of a check."""

    def better(self, attempt: Attempt, best: Attempt) -> bool:
        displaced = attempt.placed is not None and best.placed is not None and attempt.placed < best.placed - _DISPLACED
        return attempt.rank > best.rank and not displaced

    def improvable(self, best: Attempt) -> bool:
        return bool(best.missing)

    def next_cells(self, best: Attempt, workshop: Workshop) -> tuple[Ids, Cells]:
        def coverage() -> Coverage:
            return workshop.coverage(workshop.pixels(best.picture)) if best.coverage is None else best.coverage

        return best.codes, repair_cells(best.missing, workshop.names, workshop.grid, coverage, self.wanted.allowed)

    def allow(self, cells: Cells) -> None:
        """Let repairs change these cells (G, G) only; before the first."""
        self.wanted = replace(self.wanted, allowed=cells)

    @property
    def check(self) -> Check:
        """What came of it: the share of what the prompt names that the best picture shows, and what it does not."""
        named = [] if self.best is None else [slot for slot in self.best.agreement if slot not in self.wanted.silent]
        missing = () if self.best is None else tuple(slot for slot in self.best.missing if slot in named)
        return Check(1.0 - len(missing) / len(named) if named else 1.0, missing, len(named), self.repairs)


class Refinements:
    """The refinements of one picture, one after another: its layout, then its check.

    Args:
        wanted: by its prompt.
        layout: where regions are to lie; None where that is not said.
        placement, repair: those that are wanted.
    """

    def __init__(
        self, wanted: Wanted, layout: Layout | None = None, placement: Refinement | None = None, repair: Repair | None = None
    ) -> None:
        self.wanted, self.layout = wanted, layout
        self._placement, self._repair = placement, repair

    @property
    def current(self) -> Refinement | None:
        """The refinement in progress; None once all have ended."""
        return next((part for part in (self._placement, self._repair) if part is not None and not part.ended), None)

    @property
    def placing(self) -> bool:
        """Whether the layout is in progress."""
        return self._placement is not None and not self._placement.ended

    def add(self, attempt: Attempt) -> None:
        """Take an attempt into account; the best one of a refinement that ends by it is the first of the next."""
        while (part := self.current) is not None:
            part.add(attempt)
            if not part.ended or part.best is None:
                return
            attempt = part.best

    def allow(self, cells: Cells) -> None:
        """Let attempts change these cells (G, G) only; before the first."""
        if self._repair is not None:
            self._repair.allow(cells)

    @property
    def best(self) -> Attempt | None:
        """The best attempt so far."""
        found = [part.best for part in (self._repair, self._placement) if part is not None and part.best is not None]
        return found[0] if found else None

    @property
    def check(self) -> Check | None:
        """What came of the check; None where there was none."""
        return None if self._repair is None or self._repair.best is None else self._repair.check


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
