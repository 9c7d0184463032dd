"""Metrics of the quality bench as functions of arrays.

Axes: n pictures, K slots of a schema.  ``truth`` and ``answers`` hold value indices; -1 means hidden, not mentioned or not answered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from f2edge.spec.attributes import AttributeSchema

Table = NDArray[np.integer[Any]]


def mention_table(mentions: Sequence[Mapping[str, str]], schema: AttributeSchema) -> NDArray[np.int64]:
    """Return the mentioned value index of every slot in n texts, ``(n, K)``; -1 where not mentioned."""
    table = np.full((len(mentions), len(schema)), -1, dtype=np.int64)
    for row, said in enumerate(mentions):
        for k, slot in enumerate(schema.values()):
            if slot.name in said:
                table[row, k] = slot.index(said[slot.name])
    return table


@dataclass(frozen=True)
class SlotShares:
    """Accuracy per occurring slot and over all (picture, slot) pairs.

    Attributes:
        by_slot: slot → share of correct answers; without slots that do not occur.
        count: slot → number of occurrences.
        overall: share over all pairs (a frequent slot counts more).
    """

    by_slot: dict[str, float]
    count: dict[str, int]
    overall: float


def slot_shares(answers: Table, truth: Table, schema: AttributeSchema) -> SlotShares:
    """Return the share of correct answers where ``truth`` is given; both ``(n, K)``."""
    given = truth >= 0
    right = (answers == truth) & given
    counts = given.sum(axis=0)
    by_slot = {name: float(right[:, k].sum() / counts[k]) for k, name in enumerate(schema) if counts[k]}
    return SlotShares(by_slot, {n: int(counts[k]) for k, n in enumerate(schema) if counts[k]}, float(right.sum() / max(given.sum(), 1)))


def majority_answers(truth: Table) -> NDArray[np.int64]:
    """Return each slot's most frequent value as the answer to every picture; ``(n, K)`` → ``(n, K)``."""
    best = [np.bincount(column[column >= 0], minlength=1).argmax() for column in truth.T]
    return np.broadcast_to(np.array(best, dtype=np.int64), truth.shape)


def balanced_accuracy(answers: NDArray[Any], truth: NDArray[Any]) -> float:
    """Return the mean recall over the values that occur in ``truth``; ``(n,)`` each, NaN where all are hidden."""
    given = truth >= 0
    values = np.unique(truth[given])
    if not len(values):
        return float("nan")
    return float(np.mean([(answers[given & (truth == value)] == value).mean() for value in values]))


def balanced_accuracies(answers: Table, truth: Table, schema: AttributeSchema) -> dict[str, float]:
    """Return :func:`balanced_accuracy` of each slot that is visible in some picture."""
    table = {name: balanced_accuracy(answers[:, k], truth[:, k]) for k, name in enumerate(schema)}
    return {name: value for name, value in table.items() if not np.isnan(value)}


def description_scores(said: Table, truth: Table) -> tuple[float, float]:
    """Return precision and recall of descriptions; ``(n, K)`` each.

    Precision: share of correct attributes among the mentioned ones; a mention of a hidden slot is wrong.  Recall: share of mentioned
    attributes among the *remarkable* visible ones (not the first value of their slot, which is the ordinary one).
    """
    spoken, remarkable = said >= 0, truth > 0
    right = spoken & (said == truth)
    return float(right.sum() / max(spoken.sum(), 1)), float((right & remarkable).sum() / max(remarkable.sum(), 1))


def exact_match(answers: Sequence[str], expected: Sequence[str], kinds: Sequence[str]) -> dict[str, float]:
    """Return the share of answers equal to the expected one up to case, blanks and a final full stop; by kind and "all"."""

    def plain(text: str) -> str:
        return " ".join(text.lower().split()).rstrip(".")

    right = np.array([plain(a) == plain(b) for a, b in zip(answers, expected, strict=True)], dtype=float)
    table = {kind: float(right[[k == kind for k in kinds]].mean()) for kind in sorted(set(kinds))}
    return {**table, "all": float(right.mean()) if len(right) else float("nan")}
