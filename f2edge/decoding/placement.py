"""Layout: the regions of a face where a map wants them, by the model's own eyes.

The face is drawn as its prompt says.  The parser reads where its regions lie, and a draft of it, with regions moved to their places
(:mod:`f2edge.imaging.rearranged`), becomes tokens.  Those of the cells that agree best with the map stay; the others are drawn by the
prompt, in their sight.  Then the cells that agree least are drawn again with another seed.  Of all attempts the one that agrees best is the
result; attributes of the prompt that it does not show count against it.

Attempts depend on prompt, options, seed and map alone.  N image tokens, G token cells along a side, K regions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from f2edge.decoding.noise import REQUEST_STEP, noise_key
from f2edge.decoding.repair import Attempt, Refinement, Wanted, Workshop
from f2edge.decoding.schedule import Schedule
from f2edge.imaging.rearranged import rearranged
from f2edge.imaging.region_map import Layout
from f2edge.imaging.regions import Cells
from f2edge.spec.layout import Ids

#: Attempts after that of the draft.
_ROUNDS = 1
#: Share of the cells that each of them draws again.
_AGAIN = 0.25
#: Agreement that is worth one attribute that the prompt names.
_ATTRIBUTE = 0.05


class Placement(Refinement):
    """The attempts at one layout."""

    seed_step = 0xD1B54A32D192ED03  # far from those of repairs, modulo 2^64

    def __init__(self, wanted: Wanted, schedule: Schedule, seed: int, layout: Layout) -> None:
        super().__init__(wanted, schedule, seed, 1 + _ROUNDS)
        self._layout = layout

    def better(self, attempt: Attempt, best: Attempt) -> bool:
        return _rank(attempt) > _rank(best)

    def improvable(self, _best: Attempt) -> bool:
        return self._layout.strength > 0

    def next_cells(self, best: Attempt, workshop: Workshop) -> tuple[Ids, Cells]:
        assert best.coverage is not None
        wanted = self._layout.read(workshop.coverage, best.coverage)
        if self.repairs:
            return best.codes, worst_cells(wanted.error(best.coverage), _AGAIN, self.repairs)
        draft = rearranged(workshop.pixels(best.picture), best.coverage, wanted, workshop.names)
        return workshop.encode(draft[None])[0], worst_cells(wanted.error(workshop.coverage(draft)), 1.0 - self._layout.strength)


def worst_cells(error: NDArray[np.float32], share: float, turn: int = 0) -> Cells:
    """Return the share of the cells (G, G) with the largest errors, one cell at least.

    Turns above 0 weigh the cells differently, so that not the same ones are drawn again in vain.
    """
    weights = 0.5 + noise_key(turn, REQUEST_STEP, np.arange(error.size)) / float(1 << 32) if turn else 1.0
    order = np.argsort(-(error.ravel() * weights), kind="stable")
    cells = np.zeros(error.size, dtype=np.bool_)
    cells[order[: max(1, round(share * error.size))]] = True
    return cells.reshape(error.shape)


def _rank(attempt: Attempt) -> float:
    assert attempt.placed is not None
    return attempt.placed - _ATTRIBUTE * len(attempt.missing)
