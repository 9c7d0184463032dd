"""Token level of the mixture of experts: an FFN split into one shared and several routed experts, one such layer per task group.

Axes: B sequences, S tokens, D width, E routed experts, K active, I width of one expert, J = shared width + E·I.

All experts of a group lie in one up-projection (J, D) and one down-projection (D, J).  Training runs both in full and multiplies the
hidden values by the gates, zero for an expert that was not chosen: exact, and on a CPU faster than gathering.  Expert e owns the hidden
rows ``slice_of(e)``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from f2edge.spec.configuration import TokenExperts


class Router(nn.Module):
    """Softmax router without bias, always in fp32: the ``active`` most probable experts, their gates renormalised to sum 1."""

    def __init__(self, width: int, experts: int, active: int) -> None:
        super().__init__()
        self.active = active
        self.weight = nn.Parameter(torch.randn(experts, width) * width**-0.5 * 0.5)

    def probabilities(self, x: Tensor) -> Tensor:
        """(…, D) → (…, E) fp32."""
        if torch.is_autocast_enabled(x.device.type):
            with torch.autocast(x.device.type, enabled=False):
                return torch.softmax(functional.linear(x.float(), self.weight.float()), dim=-1)
        return torch.softmax(functional.linear(x.float(), self.weight.float()), dim=-1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(…, D) → gates (…, E) with K nonzero entries of sum 1, probabilities (…, E), chosen (…, E) in {0, 1}; all fp32."""
        probability = self.probabilities(x)
        index = torch.topk(probability, self.active, dim=-1).indices  # (…, K)
        chosen = (index[..., None] == torch.arange(self.weight.shape[0], device=x.device)).to(probability.dtype).sum(dim=-2)
        gates = probability * chosen
        return gates / gates.sum(dim=-1, keepdim=True), probability, chosen


class DenseFeedForward(nn.Module):
    """The plain FFN of Phi and Show-o, GELU (tanh), used by both tasks."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, D) → (B, S, D)."""
        output: Tensor = self.down(functional.gelu(self.up(x), approximate="tanh"))
        return output


class TokenExpertLayer(nn.Module):
    """One group's shared expert and routed experts.

    The down-projection has one bias, the shared expert's: the gates sum to 1, so it serves all.
    """

    def __init__(self, width: int, shape: TokenExperts) -> None:
        super().__init__()
        self.shape = shape
        hidden = shape.shared_width + shape.routed * shape.routed_width
        self.router = Router(width, shape.routed, shape.active)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def slice_of(self, expert: int) -> slice:
        """Hidden rows of routed expert ``expert``; the shared expert has rows ``[0, shared_width)``."""
        start = self.shape.shared_width + expert * self.shape.routed_width
        return slice(start, start + self.shape.routed_width)

    def forward(self, x: Tensor, exact: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, S, D) → output (B, S, D), router probabilities (B, S, E), chosen (B, S, E).  ``exact``: x in fp32, for the router."""
        B, S, _ = x.shape
        shape = self.shape
        gates, probability, chosen = self.router(exact)
        hidden = functional.gelu(self.up(x), approximate="tanh")  # (B, S, J)
        shared, routed = torch.split(hidden, [shape.shared_width, shape.routed * shape.routed_width], dim=-1)
        routed = (routed.view(B, S, shape.routed, shape.routed_width) * gates.to(hidden.dtype)[..., None]).flatten(-2)
        return self.down(torch.cat((shared, routed), dim=-1)), probability, chosen
