"""Drafts: what they propose, what a pass decides, and that an answer has the same tokens with them in fewer passes."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from f2edge.decoding import drafts as module
from f2edge.decoding.autoregressive import answer, drafted_answer
from f2edge.decoding.drafts import CLOSE, LONGEST, Drafts, verify
from f2edge.errors import CancelledError
from f2edge.spec.layout import Ids

pytestmark = pytest.mark.runtime

END, WORDS = 0, 12


class Speaker:
    """Scripted model: its next token is a function of the last three; the state is the text that was read."""

    def __init__(self, seed: int) -> None:
        self.seed, self.passes = seed, 0

    def _logits(self, text: tuple[int, ...]) -> NDArray[np.float32]:
        rng = np.random.default_rng([self.seed, *text[-3:]])
        return rng.permutation(WORDS).astype(np.float32)

    def __call__(self, text: Ids, lengths: Ids, state: tuple[int, ...] | None) -> tuple[NDArray[np.float32], tuple[int, ...]]:
        logits, after = self.columns(text, lengths, state or ())
        return logits[:, -1], after

    def columns(self, text: Ids, lengths: Ids, state: tuple[int, ...]) -> tuple[NDArray[np.float32], tuple[int, ...]]:
        self.passes += 1
        after = (*state, *text[0].tolist())
        assert lengths.tolist() == [len(after)]
        return np.stack([self._logits(after[: len(state) + i + 1]) for i in range(text.shape[1])])[None], after

    def without_last(self, state: tuple[int, ...], count: int) -> tuple[int, ...]:
        return state[: len(state) - count]


def plain(speaker: Speaker, question: list[int], longest: int) -> list[int]:
    ids = np.array([question])
    return answer(speaker, None, ids, np.array([len(question)]), end_of_text=END, max_tokens=longest)[0]


@pytest.mark.parametrize("seed", range(12))
def test_drafts_change_no_token_and_save_passes(seed: int) -> None:
    rng, drafts = np.random.default_rng(seed), Drafts()
    spent = saved = 0
    for longest in (1, 2, 3, 17, 40, 40, 40):
        question = rng.integers(1, 4, 3).tolist()
        plainly, drafted, heard = Speaker(seed), Speaker(seed), list[int]()
        wanted = plain(plainly, question, longest)
        assert drafted_answer(drafted, drafts, question, end_of_text=END, max_tokens=longest, on_token=heard.append) == wanted == heard
        spent, saved = spent + plainly.passes, saved + plainly.passes - drafted.passes
    assert saved >= 0
    question = [1, 2, 3]
    for passes in [Speaker(seed) for _ in range(6)]:
        found = drafted_answer(passes, drafts, question, end_of_text=END, max_tokens=24, on_token=lambda _: None)
    assert passes.passes <= 1 + -(-len(found) // (LONGEST + 1)) + 1, "an answer that was given before is all drafts"


def test_what_mostly_followed_is_proposed_and_grammar_is_never_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_KEPT", 6)
    drafts = Drafts()
    drafts.keep([[90, 91, 92]])
    for _ in range(3):
        drafts.remember([1, 2, 3, 4, 5, 6, 7])
    drafts.remember([8, 2, 3, 9])
    assert drafts.propose([2, 3]) == (4, 5), "as three of four texts go on; all three tokens are less likely than a wrong one"
    assert drafts.propose([3, 4]) == (5, 6, 7)
    assert drafts.propose([5]) == drafts.propose([6, 7]) == drafts.propose([40, 41]) == ()
    drafts.remember([8, 2, 3, 9])
    drafts.remember([8, 2, 3, 9])
    assert drafts.propose([2, 3]) == (), "a guess that is wrong every second time costs more than it saves"
    for first in range(100, 108):
        drafts.remember([first, 50, 51, first])
    assert drafts.propose([3, 4]) == ()
    assert drafts.propose([90, 91]) == (92,)


def test_the_longest_words_in_common_decide() -> None:
    """Behind "a man with" and "a woman with" other things follow; two tokens alone could not tell."""
    drafts = Drafts()
    drafts.keep([[1, 10, 3, 4, 20], [1, 10, 3, 4, 20], [1, 11, 3, 4, 21], [1, 11, 3, 4, 21]])
    assert drafts.propose([1, 10, 3, 4]) == (20,)
    assert drafts.propose([1, 11, 3, 4]) == (21,)
    assert drafts.propose([1, 12, 3, 4]) == (), "seen behind neither"
    drafts.keep([[1, 13, 3, 4, 22]])
    assert drafts.propose([1, 13, 3, 4]) == (), "once is no rule"


def logits_of(*tokens: int, lead: float = 5.0) -> NDArray[np.float32]:
    rows = np.random.default_rng(0).normal(size=(len(tokens), WORDS)).astype(np.float32)
    rows[np.arange(len(tokens)), tokens] = rows.max(axis=1) + lead
    return rows


@pytest.mark.parametrize(
    ("draft", "chosen", "tokens"),
    [((), (7,), [7]), ((7, 8), (7, 8, 9), [7, 8, 9]), ((7, 8), (7, 1, 9), [7, 1]), ((7, 8), (1, 8, 9), [1])],
)
def test_a_pass_decides_up_to_the_first_wrong_guess(draft: tuple[int, ...], chosen: tuple[int, ...], tokens: list[int]) -> None:
    assert verify(draft, logits_of(*chosen)) == (tokens, len(tokens))


def test_what_is_almost_a_tie_is_decided_by_a_pass_of_its_own() -> None:
    near = logits_of(7, 8, 9)
    near[1] = logits_of(8, lead=CLOSE / 10)[0]
    assert verify((7, 8), near) == ([7], 1)
    near[0] = near[1]
    assert verify((8, 8), near) == ([], 0)
    assert verify((), near[:1]) == ([8], 1), "alone it decides"


def test_a_drafted_answer_can_be_stopped() -> None:
    with pytest.raises(CancelledError, match="after 1 tokens"):
        drafted_answer(Speaker(1), Drafts(), [1, 2], end_of_text=-1, max_tokens=9, on_token=lambda _: None, cancelled=lambda: True)
