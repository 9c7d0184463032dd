"""The published MAGVIT-v2 checkpoint (``showlab/magvitv2``, 382 tensors) as weights of :class:`export.model.magvit2.Magvit2Tokenizer`.

Names agree but for the quantiser, whose two constant tables are a law here and have no weights: they are compared with it and dropped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from export.checkpoints.weight_files import Shape
from export.model.image_tokenizer import bits_of
from export.model.magvit2 import Magvit2Tokenizer
from f2edge.errors import InputError
from f2edge.spec.configuration import ImageTokenizerConfiguration

_CODES = "quantize.embedding"
_WEIGHTS_OF_BITS = "quantize.power_vals"


def own_shapes(configuration: ImageTokenizerConfiguration) -> dict[str, Shape]:
    """Return names and shapes of the tokenizer's tensors, without allocating them."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in Magvit2Tokenizer(configuration).state_dict().items()}


def published_shapes(configuration: ImageTokenizerConfiguration) -> dict[str, Shape]:
    """Return names and shapes of the published checkpoint."""
    tables = {_CODES: (configuration.codes, configuration.bits), _WEIGHTS_OF_BITS: (configuration.bits,)}
    return {**own_shapes(configuration), **tables}


def is_tokenizer(names: Mapping[str, object]) -> bool:
    """Whether these are a MAGVIT-v2 checkpoint's names."""
    return _CODES in names


def check_tables(state: Mapping[str, Tensor], configuration: ImageTokenizerConfiguration) -> None:
    """Compare the quantiser's two tables with the law that stands for them.

    Raises:
        InputError: codes are not ordered most significant bit first, +1 for 1.
    """
    codes = bits_of(torch.arange(configuration.codes), configuration.bits)
    powers = 2 ** torch.arange(configuration.bits - 1, -1, -1)
    if not torch.equal(state[_CODES].float(), codes) or not torch.equal(state[_WEIGHTS_OF_BITS].long(), powers):
        raise InputError(f"MAGVIT-v2 checkpoint: {_CODES} orders its codes differently from the published model; this is another tokenizer")


def renamed(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Our names and tensors of a published checkpoint that passed :func:`check_tables`, one at a time."""
    for name, tensor in state.items():
        if name not in {_CODES, _WEIGHTS_OF_BITS}:
            yield name, tensor
