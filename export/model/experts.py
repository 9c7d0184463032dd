"""Token-level mixture of experts: an FFN with one shared and several routed experts for each task group.

Axes: B sequences, S tokens, D width, E routed experts, K active, I width of one expert, J = shared width + E·I.

All experts of a group are stored in one up-projection (J, D) and one down-projection (D, J).  The dense form computes both in full and
multiplies the hidden values by the gates, which are zero for experts that were not chosen: exact, and faster for narrow models.  The
grouped form (training of wide ones) computes every expert on the tokens that chose it.  Expert e has the hidden rows ``slice_of(e)``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from f2edge.spec.configuration import TokenExperts


class Router(nn.Module):
    """Softmax router without bias in fp32; the gates of the ``active`` most probable experts are normalized to sum 1."""

    def __init__(self, width: int, experts: int, active: int) -> None:
        super().__init__()
        self.active = active
        self.weight = nn.Parameter(torch.randn(experts, width) * width**-0.5 * 0.5)

    def probabilities(self, x: Tensor) -> Tensor:
        """Map states (…, D) to expert probabilities (…, E) fp32."""
        if torch.is_autocast_enabled(x.device.type):
            with torch.autocast(x.device.type, enabled=False):
                return torch.softmax(functional.linear(x.float(), self.weight.float()), dim=-1)
        return torch.softmax(functional.linear(x.float(), self.weight.float()), dim=-1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Route states (…, D).

        Returns:
            Gates (…, E) with K nonzero entries of sum 1, probabilities (…, E), chosen (…, E) in {0, 1}; all fp32.
        """
        probability = self.probabilities(x)
        index = torch.topk(probability, self.active, dim=-1).indices  # (…, K)
        chosen = (index[..., None] == torch.arange(self.weight.shape[0], device=x.device)).to(probability.dtype).sum(dim=-2)
        gates = probability * chosen
        return gates / gates.sum(dim=-1, keepdim=True), probability, chosen


class DenseFeedForward(nn.Module):
    """FFN of Phi and Show-o with GELU (tanh), shared by both tasks."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, S, D) to (B, S, D)."""
        output: Tensor = self.down(functional.gelu(self.up(x), approximate="tanh"))
        return output


class TokenExpertLayer(nn.Module):
    """Shared and routed experts of one task group.

    The down-projection has one bias: since the gates sum to 1, one bias is enough for all experts.
    """

    def __init__(self, width: int, shape: TokenExperts) -> None:
        super().__init__()
        self.shape = shape
        hidden = shape.shared_width + shape.routed * shape.routed_width
        self.router = Router(width, shape.routed, shape.active)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.grouped = False

    def slice_of(self, expert: int) -> slice:
        """Return the hidden rows of a routed expert; the shared expert has rows ``[0, shared_width)``."""
        start = self.shape.shared_width + expert * self.shape.routed_width
        return slice(start, start + self.shape.routed_width)

    def forward(self, x: Tensor, exact: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the layer for x (B, S, D); ``exact`` is x in fp32, for the router.

        Returns:
            Output (B, S, D), router probabilities (B, S, E), chosen (B, S, E).
        """
        B, S, _ = x.shape
        shape = self.shape
        gates, probability, chosen = self.router(exact)
        if self.grouped:
            return self._by_expert(x, gates, chosen), probability, chosen
        hidden = functional.gelu(self.up(x), approximate="tanh")  # (B, S, J)
        shared, routed = torch.split(hidden, [shape.shared_width, shape.routed * shape.routed_width], dim=-1)
        routed = (routed.view(B, S, shape.routed, shape.routed_width) * gates.to(hidden.dtype)[..., None]).flatten(-2)
        return self.down(torch.cat((shared, routed), dim=-1)), probability, chosen

    def rows_of(self, chosen: Tensor, expert: int) -> Tensor:
        """Return which tokens of ``chosen`` (T, E) chose an expert."""
        return chosen[:, expert].nonzero().flatten()

    def _by_expert(self, x: Tensor, gates: Tensor, chosen: Tensor) -> Tensor:
        """Return the output (B, S, D), each routed expert computed on the tokens that chose it."""
        shape, rows = self.shape, x.reshape(-1, x.shape[-1])  # (T, D)
        gates, chosen = gates.flatten(0, 1), chosen.flatten(0, 1)  # (T, E)
        sizes = [shape.shared_width] + [shape.routed_width] * shape.routed
        ups, biases = torch.split(self.up.weight, sizes), torch.split(self.up.bias, sizes)  # one gradient for all, unlike slices
        downs = torch.split(self.down.weight, sizes, dim=1)
        output = functional.linear(
            functional.gelu(functional.linear(rows, ups[0], biases[0]), approximate="tanh"), downs[0], self.down.bias
        )
        for expert in range(shape.routed):
            index = self.rows_of(chosen, expert)
            hidden = functional.gelu(functional.linear(rows[index], ups[1 + expert], biases[1 + expert]), approximate="tanh")
            hidden = hidden * gates[index, expert, None].to(hidden.dtype)
            output = output.index_add(0, index, functional.linear(hidden, downs[1 + expert]))
        return output.view_as(x)
