"""Input embedding and image head of the transformer.

Axes: B sequences, S tokens, N image tokens, V image codes, D width.  Text (with the specials) and image codes have separate tables and
heads; a Show-o checkpoint's single table and head are split at import.  Image code V is the mask.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from export.model.resampler import grid_code
from f2edge.errors import InputError
from f2edge.spec.configuration import ModelConfiguration


def code_bits(codes: Tensor, bits: int) -> Tensor:
    """Convert image codes (…) in [0, 2**bits] to ±1 (…, bits) fp32, bit 0 first, by exact float arithmetic that every runtime has."""
    scale = torch.pow(0.5, torch.arange(bits, dtype=torch.float32, device=codes.device))
    halves = torch.floor(codes.to(torch.float32)[..., None] * scale)
    return 2 * (halves - 2 * torch.floor(halves * 0.5)) - 1


class Embedding(nn.Module):
    """Embedding of text ids, special ids and image codes.

    ``image_input`` "table": one row per code (Show-o).  "bits" (ours): the codes of a cell give one vector, the sum of a linear map of
    their bits (0 where masked), a vector for each masked code, and a learned position of the cell, since rotary positions are
    one-dimensional.
    """

    def __init__(self, configuration: ModelConfiguration) -> None:
        super().__init__()
        width = configuration.width
        self.codes, self.bits = configuration.codes, configuration.tokenizer.bits
        self.text = nn.Embedding(configuration.text_vocabulary + len(configuration.specials), width)
        self.by_bits = configuration.image_input == "bits"
        self.per_cell = configuration.tokenizer.codes_per_column
        if self.by_bits:
            self.image = nn.Linear(self.per_cell * self.bits, width)
            self.mask = nn.Parameter(torch.randn(self.per_cell, width) * 0.02)
            self.place = nn.Parameter(grid_code(configuration.image_columns, width) * 0.05)
        elif self.per_cell > 1:
            raise InputError(f"configuration {configuration.name!r}: several codes per cell require image_input 'bits'")
        elif configuration.image_input == "table":
            self.table = nn.Embedding(self.codes + 1, width)
        else:
            raise InputError(
                f"configuration {configuration.name!r}: image_input {configuration.image_input!r} is neither 'table' nor 'bits'"
            )

    def image_vectors(self, codes: Tensor) -> Tensor:
        """Map codes (B, N), V where masked, to a vector of each cell (B, N / codes per cell, D)."""
        if not self.by_bits:
            rows: Tensor = self.table(codes)
            return rows
        cells = codes.reshape(codes.shape[0], -1, self.per_cell)  # (B, cells, codes per cell)
        masked = (cells == self.codes).to(torch.float32)
        bits = code_bits(cells, self.bits) * (1 - masked[..., None])
        vectors: Tensor = self.image(bits.flatten(2)) + torch.matmul(masked, self.mask) + self.place
        return vectors

    def forward(self, ids: Tensor) -> Tensor:
        """Map text and special ids (B, S) to (B, S, D)."""
        vectors: Tensor = self.text(ids)
        return vectors


class ImageHead(nn.Module):
    """Linear head for the V image codes.

    With "bits" input, the weight is ``bits · W + table``, so that codes with common bits start similar; :meth:`weight` folds it to one
    matrix for export.
    """

    def __init__(self, configuration: ModelConfiguration) -> None:
        super().__init__()
        V, D = configuration.codes, configuration.width
        self.bits = configuration.tokenizer.bits
        self.by_bits = configuration.image_input == "bits"
        self.table = nn.Parameter(torch.zeros(V, D) if self.by_bits else torch.randn(V, D) * 0.02)
        self.bias = nn.Parameter(torch.zeros(V))
        if self.by_bits:
            self.directions = nn.Parameter(torch.randn(self.bits, D) * 0.01)

    def weight(self) -> Tensor:
        """Return the head's weight as one matrix (V, D) fp32."""
        if not self.by_bits:
            return self.table
        signs = code_bits(torch.arange(self.table.shape[0], device=self.table.device), self.bits)
        return torch.matmul(signs, self.directions).float() + self.table

    def forward(self, x: Tensor) -> Tensor:
        """Map states (…, D) to logits (…, V)."""
        return functional.linear(x, self.weight(), self.bias)
