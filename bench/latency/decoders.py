"""Decoders that the benches compare: objects that give the decoding loops of :mod:`f2edge.decoding` their functions.

:class:`GraphDecoder` wraps any backend; :mod:`bench.latency.reference` has PyTorch's.  This module does not import PyTorch, so that an
engine's memory can be measured without it.

Axes: B questions, N image tokens, M and F an encoder's vectors and their width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from f2edge.backends.base import Backend
from f2edge.decoding.autoregressive import ExtendFunction
from f2edge.decoding.parallel import StepFunction
from f2edge.inference import Inference, TextState
from f2edge.spec.layout import Ids, TokenLayout

#: Encoder features of one image by name, float32 (1, M, F); empty for a model without encoders.
Features = Mapping[str, NDArray[np.float32]]


class TokenDecoder(Protocol):
    """Functions of one implementation for the decoding loops."""

    def step(self, prompts: Sequence[Sequence[int]]) -> StepFunction:
        """Return the step function for :func:`f2edge.decoding.parallel.decode`; ``prompts`` in text tokens."""
        ...

    def prefill(self, codes: Ids, features: Features) -> tuple[ExtendFunction[Any], Any]:
        """Return the function for :func:`f2edge.decoding.autoregressive.answer` and its first state; ``codes`` (1, N) of the image."""
        ...


class GraphDecoder:
    """TokenDecoder of any backend that runs the graphs of ``f2edge.spec.graphs``."""

    def __init__(self, backend: Backend, layout: TokenLayout) -> None:
        self._inference = Inference(backend, layout)

    def step(self, prompts: Sequence[Sequence[int]]) -> StepFunction:
        """See :class:`TokenDecoder`; prefills the prompts."""
        return self._inference.step([self._inference.prompt_prefix(prompt) for prompt in prompts])

    def prefill(self, codes: Ids, features: Features) -> tuple[ExtendFunction[TextState | None], None]:
        """See :class:`TokenDecoder`; prefills the image."""
        return self._inference.extend([self._inference.prefill_image({"codes": codes, **features})]), None
