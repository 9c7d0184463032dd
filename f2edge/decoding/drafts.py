"""Drafts: tokens guessed from earlier texts and verified in one pass, so that an answer takes fewer passes.

Its tokens are those without drafts as long as the kernels for one column and for several differ by less than :data:`CLOSE` allows for.

A pass of a large model reads all of its weights, whether for one token or for four.  Answers of one model repeat one another's wordings:
what mostly followed the last two to four tokens, in earlier texts or in the typical answers of the bundle, probably follows now.

>>> drafts = Drafts()
>>> for _ in range(2):
...     drafts.remember([1, 7, 8, 9, 4])
>>> drafts.propose([5, 7, 8])
(9, 4)

S new columns, V text vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from threading import Lock
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from f2edge.decoding.sample import greedy
from f2edge.spec.layout import Ids

State = TypeVar("State")

#: Tokens of one draft: a pass of four columns takes 1.6 times as long as one of one column, one of eight 2.7 times (int4, two cores).
LONGEST = 3
#: A draft ends where it would be right less often than this.  Simulated on descriptions by nano with such costs, no typical answers known:
#: 1.16 times faster at 0.5, 1.09 at 0.25.
LIKELY = 0.5
#: Tokens that a guess looks back on: as many as were seen :data:`_SEEN` times in their order, but two at least.
CONTEXT = (4, 3, 2)
_SEEN = 2
#: Earlier texts that are kept; half of them are forgotten when there are more.
_KEPT = 256
#: A decided token leads by this share of the logits' standard deviation; what leads by less is decided by a pass of its own column, as
#: without drafts.  Kernels for one row and for several differ by up to 0.08 in int4 (Show-o, four layers); 6 % of nano's tokens are that
#: close.
CLOSE = 0.25


class Drafts:
    """What followed any two, three and four tokens in the last texts, and how often.  Thread-safe."""

    def __init__(self) -> None:
        self._grammar: list[tuple[int, ...]] = []
        self._texts: list[tuple[int, ...]] = []
        self._next: dict[tuple[int, ...], Counter[int]] = {}
        self._lock = Lock()

    def keep(self, grammar: Iterable[Sequence[int]]) -> None:
        """Add texts that are never forgotten, such as the answers of a schema and typical ones."""
        with self._lock:
            for text in map(tuple, grammar):
                self._grammar.append(text)
                self._count(text)

    def remember(self, text: Sequence[int]) -> None:
        """Add a text: a question with its answer."""
        with self._lock:
            self._texts.append(tuple(text))
            if len(self._texts) <= _KEPT:
                self._count(self._texts[-1])
                return
            del self._texts[: _KEPT // 2]
            self._next.clear()
            for kept in (*self._grammar, *self._texts):
                self._count(kept)

    def propose(self, text: Sequence[int]) -> tuple[int, ...]:
        """Return up to :data:`LONGEST` tokens that probably follow."""
        known, chance, draft = list(text[-CONTEXT[0] :]), 1.0, list[int]()
        with self._lock:
            while len(draft) < LONGEST and (counts := self._following(known)):
                token, times = counts.most_common(1)[0]
                chance *= times / (counts.total() + 0.5)
                if chance < LIKELY:
                    break
                draft.append(token)
                known.append(token)
        return tuple(draft)

    def _following(self, text: Sequence[int]) -> Counter[int] | None:
        """Return what followed the end of a text: its longest that was seen often enough, else its last two tokens."""
        found = None
        for length in CONTEXT:
            found = self._next.get(tuple(text[-length:])) if len(text) >= length else None
            if found is not None and found.total() >= _SEEN:
                break
        return found

    def _count(self, text: tuple[int, ...]) -> None:
        for length in CONTEXT:
            for place in range(length, len(text)):
                self._next.setdefault(text[place - length : place], Counter())[text[place]] += 1


class Verified(NamedTuple):
    """What a pass decided: ``tokens`` that follow its first column, and how many of its ``columns`` were right.

    The last token has not been read yet.  Without tokens nothing was decided, and the first column is to be read alone.
    """

    tokens: list[int]
    columns: int


def verify(draft: Sequence[int], logits: NDArray[np.float32]) -> Verified:
    """Decide tokens greedily by the logits (S, V) of a pass over the last token and its draft of S - 1 tokens."""
    tokens: list[int] = []
    for place, chosen in enumerate(greedy(logits).tolist()):
        if len(draft) and _close(logits[place]):
            return Verified(tokens, place)
        tokens.append(chosen)
        if place == len(draft) or chosen != draft[place]:
            break
    return Verified(tokens, len(tokens))


class ColumnsFunction(Protocol[State]):
    """Forward pass over one text, see :class:`f2edge.inference.Extend`."""

    def columns(self, text: Ids, lengths: Ids, state: State) -> tuple[NDArray[np.float32], State]:
        """Return the logits (1, S, V) of the new columns (1, S), and the text with them."""
        ...

    def without_last(self, state: State, count: int) -> State:
        """Return the text without its last ``count`` columns."""
        ...


def drafted_pass(
    extend: ColumnsFunction[State], drafts: Drafts, text: Sequence[int], length: int, state: State, *, room: int
) -> tuple[list[int], int, State]:
    """Decide the next tokens of one text.

    Args:
        extend: forward pass.
        drafts: guesses them.
        text: its question and answer so far; the last token has not been read.
        length: columns read so far.
        state: after them.
        room: at most this many tokens, >= 1.

    Returns:
        the tokens, at least one and the last one unread; the columns read now; the state after them.
    """
    draft = drafts.propose(text)[: room - 1]
    while True:
        ids = np.array([[text[-1], *draft]], dtype=np.int64)
        logits, after = extend.columns(ids, np.array([length + ids.shape[1]], dtype=np.int64), state)
        tokens, read = verify(draft, logits[0])
        if tokens:
            return tokens, length + read, extend.without_last(after, ids.shape[1] - read)
        draft = ()


def _close(logits: NDArray[np.float32]) -> bool:
    """Return whether two tokens lead by almost the same logit."""
    second, first = np.partition(logits, -2)[-2:]
    return bool(first - second < CLOSE * logits.std())
