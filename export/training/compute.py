"""How a transformer computes while it trains: choices of time and memory that leave the numbers as they are."""

from __future__ import annotations

from dataclasses import dataclass

from export.model.transformer import UnifiedTransformer
from f2edge.errors import InputError

#: Width from which on computing experts on their own tokens pays for the gathering.
_WIDE = 1024


@dataclass(frozen=True)
class Compute:
    """Kernels of the training.

    Attributes:
        attention: "fused" (PyTorch's kernel under the omni mask), "plain", or "auto": fused on GPUs; plain is faster on CPUs.
        recompute: drop each block's activations and compute them again in the backward pass.
        experts: "grouped" (each on its own tokens), "dense" (all on all tokens), or "auto": grouped from width 1024 on.
    """

    attention: str = "auto"
    recompute: bool = False
    experts: str = "auto"

    def __post_init__(self) -> None:
        if self.attention not in {"auto", "fused", "plain"}:
            raise InputError(f"--attention {self.attention!r}: choose auto, fused or plain")
        if self.experts not in {"auto", "grouped", "dense"}:
            raise InputError(f"--expert-kernel {self.experts!r}: choose auto, grouped or dense")

    def apply(self, model: UnifiedTransformer, device: str) -> None:
        """Set a model up to be trained on a device of this type."""
        model.use_fused_attention(self.attention == "fused" or (self.attention == "auto" and device != "cpu"))
        model.use_recomputation(self.recompute)
        model.use_grouped_experts(self.experts == "grouped" or (self.experts == "auto" and model.configuration.width >= _WIDE))
