"""Probabilities of a closed list of answers, from one forward pass per branching node.

Answers are token sequences in a trie.  An answer's probability is the product, over the branching nodes on its path, of the probability
of its next token among the tokens *allowed* there.  Nodes with a single successor need no pass.  All branching nodes are known before
the model runs, so the nodes of all slots form one batch.

>>> [n.path for n in branching_nodes([(5, 2), (7, 2), (7, 8, 2)])]
[(), (7,)]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from f2edge.decoding.sample import log_softmax
from f2edge.errors import InputError

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Node:
    """Branching node: the tokens before it, and the tokens allowed next (ascending)."""

    path: Tokens
    allowed: Tokens


def branching_nodes(answers: Sequence[Tokens]) -> tuple[Node, ...]:
    """Return the branching nodes of ``answers``, shortest path first.

    Each answer ends with the end of text, so that none is a prefix of another; otherwise :class:`InputError` is raised.
    """
    following: dict[Tokens, set[int]] = {}
    for tokens in answers:
        for depth, token in enumerate(tokens):
            following.setdefault(tokens[:depth], set()).add(token)
    if len(set(answers)) < len(answers) or any(tuple(a) in following for a in answers):
        raise InputError("answers: two of them have the same tokens, or one begins another without an end of text")
    nodes = (Node(path, tuple(sorted(allowed))) for path, allowed in following.items() if len(allowed) > 1)
    return tuple(sorted(nodes, key=lambda node: (len(node.path), node.path)))


def tempered(probabilities: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    """Probabilities (n,) whose logarithms are divided by ``temperature``, summing to 1 again."""
    if temperature == 1.0:
        return probabilities
    logarithms = np.log(np.maximum(probabilities, 1e-300)) / temperature
    weights = np.exp(logarithms - logarithms.max())
    result: NDArray[np.float64] = weights / weights.sum()
    return result


def answer_probabilities(answers: Sequence[Tokens], logits: Mapping[Tokens, NDArray[np.float32]]) -> NDArray[np.float64]:
    """Return the probability of each answer, float64, sum 1; ``logits[path]`` (V,) is given for every branching node's path."""
    step: dict[tuple[Tokens, int], float] = {}
    for node in branching_nodes(answers):
        for token, value in zip(node.allowed, log_softmax(logits[node.path][list(node.allowed)]), strict=True):
            step[node.path, token] = float(value)
    total = [sum(step.get((tokens[:depth], token), 0.0) for depth, token in enumerate(tokens)) for tokens in answers]
    probabilities: NDArray[np.float64] = np.exp(np.array(total))
    return probabilities
