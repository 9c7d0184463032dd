"""Optimization of one module: gradients, AdamW, Muon, clipping, learning-rate schedule, and the exponential average of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from export.training.distributed import Processes
from export.training.sharding import like, whole

ALONE = Processes(0, 1)
_PIECE = 1 << 18


def rate_factor(step: int, steps: int, warmup: int, schedule: str, decay_fraction: float = 0.25) -> float:
    """Return the fraction of the peak learning rate at update ``step`` of ``steps`` (from 0), in (0, 1].

    Linear warm-up over ``warmup`` updates, then "constant", "cosine" to 0, or "wsd": stable, then ``1 - sqrt`` decay over the last
    ``decay_fraction`` of all updates (arXiv 2405.18392, section 4).
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))
    if schedule == "wsd":
        decay = max(decay_fraction * steps, 1.0)
        return 1 - math.sqrt(min(max(step - (steps - decay), 0.0) / decay, 1.0))
    return 1.0


def norm_of(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """Return the Euclidean norm of all values together.

    Taken piece by piece: a CPU adds squares one after the other in float32, which loses 3 % of the norm of 200 M values.
    """
    return torch.nn.utils.get_total_norm([piece for tensor in tensors for piece in torch.split(tensor.reshape(-1), _PIECE)])


class FlatGradients:
    """Gradients of one module as views into one flat buffer, so that they are averaged and scaled at once."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters
        self.flat = torch.zeros(sum(p.numel() for p in parameters), device=parameters[0].device, dtype=torch.float32)
        offset = 0
        for p in parameters:  # a view with the parameter's own strides: channels-last weights need equal layouts in the fused kernel
            p.grad = self.flat.as_strided(p.size(), p.stride(), offset)
            offset += p.numel()

    def backward(self, loss: torch.Tensor) -> None:
        """Add a loss' gradients, for these parameters only."""
        loss.backward(inputs=self.parameters)  # type: ignore[no-untyped-call]

    def average(self, processes: Processes) -> None:
        """Average over the processes."""
        processes.average(self.flat)

    def norm(self) -> float:
        """Return the norm of all gradients together."""
        return float(norm_of([self.flat]))

    def scale(self, factor: float) -> None:
        """Multiply all gradients."""
        self.flat *= factor

    def clear(self) -> None:
        """Set all gradients to 0."""
        self.flat.zero_()


class ShardedGradients:
    """Gradients of one sharded module: slices that exist from the backward pass, which averages them, to the update."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters

    def backward(self, loss: torch.Tensor) -> None:
        """Add a loss' gradients."""
        loss.backward()  # type: ignore[no-untyped-call]

    def average(self, _processes: Processes) -> None:
        """Give parameters that took no part a gradient of 0, as they would have without sharding."""
        for p in self.parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)

    def norm(self) -> float:
        """Return the norm of all gradients of all processes together."""
        square = norm_of(cast("DTensor", gradient).to_local() for gradient in self._all()).square()
        torch.distributed.all_reduce(square)
        return float(square.sqrt())

    def scale(self, factor: float) -> None:
        """Multiply all gradients."""
        torch._foreach_mul_(self._all(), factor)

    def clear(self) -> None:
        """Drop all gradients."""
        for p in self.parameters:
            p.grad = None

    def _all(self) -> list[torch.Tensor]:
        return [p.grad for p in self.parameters if p.grad is not None]


class Optimization:
    """Optimizers and gradients of one module.

    Args:
        module: its parameters that require gradients are trained; sharded or not.
        method: "adamw" (arXiv 1711.05101), or "muon": hidden weight matrices by :class:`Muon`, all else by AdamW.
        rate: peak learning rate.
        betas: AdamW's; the first is Muon's momentum too.
        weight_decay: on tensors of two or more axes.
        clip: largest gradient norm; 0 turns it off.
        precision: of Muon's iterations.
    """

    def __init__(
        self,
        module: nn.Module,
        method: str,
        rate: float,
        *,
        betas: tuple[float, float],
        weight_decay: float,
        clip: float,
        precision: torch.dtype = torch.bfloat16,
    ) -> None:
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.rate, self.clip = rate, clip
        sharded = any(isinstance(p, DTensor) for p in self.parameters)
        self.gradients = ShardedGradients(self.parameters) if sharded else FlatGradients(self.parameters)
        hidden = hidden_matrices(module) if method == "muon" else []
        rest = [p for p in self.parameters if not any(p is h for h in hidden)]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in rest if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.optimizers: list[torch.optim.Optimizer] = []
        if rest:
            self.optimizers.append(torch.optim.AdamW([g for g in groups if g["params"]], lr=rate, betas=betas, fused=True))
        if hidden:
            self.optimizers.append(Muon(hidden, rate, 0.95, weight_decay, precision))
        self._state = self._allocate({id(h) for h in hidden})

    def backward(self, loss: torch.Tensor) -> None:
        """Add a loss' gradients, for this module's parameters only."""
        self.gradients.backward(loss)

    def apply(self, factor: float, processes: Processes = ALONE) -> float:
        """Average over the processes, clip, update at ``factor`` times the peak rate, clear; returns the norm before clipping.

        A norm that is not finite updates nothing.
        """
        self.gradients.average(processes)
        norm = self.gradients.norm()
        if math.isfinite(norm):
            if self.clip and norm > self.clip:
                self.gradients.scale(self.clip / norm)
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = self.rate * factor
                optimizer.step()
        self.gradients.clear()
        return norm

    def state(self) -> dict[str, torch.Tensor]:
        """Return the optimizers' tensors (moments, update counts), to be saved or filled in place."""
        return self._state

    def _allocate(self, hidden: set[int]) -> dict[str, torch.Tensor]:
        """Allocate the optimizers' state, which they would create at the first step, so that a new and a resumed run are alike."""
        tensors: dict[str, torch.Tensor] = {}
        for index, p in enumerate(self.parameters):
            muon = id(p) in hidden
            state = self.optimizers[-1 if muon else 0].state[p]
            for key in ("momentum",) if muon else ("exp_avg", "exp_avg_sq"):
                state[key] = torch.zeros_like(p, memory_format=torch.preserve_format)
            if not muon:
                state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
            tensors |= {f"{index:04d}.{key}": value for key, value in state.items()}
        return tensors


class Muon(torch.optim.Optimizer):
    """Momentum whose matrix is replaced by the nearest semi-orthogonal one before it is applied.

    Keller Jordan's method, with the scale of arXiv 2502.16982 (section 2.2): an update has the root mean square of AdamW's, so one learning
    rate and one weight decay serve both.  A sharded matrix is gathered, and every process computes all of
    its update.  Convolutions count as matrices (outputs, inputs x window), three axes as a batch of matrices.

    Iterations in bfloat16 are two to five times as fast and turn differences of 1e-7 in a gradient, such as another order of its sums
    leaves, into tenths of an update's spread.  In float32 they stay near 1e-5.
    """

    def __init__(
        self, parameters: list[nn.Parameter], rate: float, momentum: float, weight_decay: float, precision: torch.dtype = torch.bfloat16
    ) -> None:
        super().__init__(parameters, {"lr": rate, "momentum": momentum, "weight_decay": weight_decay})
        self.precision = precision

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the parameters from their gradients; ``closure`` is ignored."""
        del closure
        for group in self.param_groups:
            for p in group["params"]:
                average = self.state[p]["momentum"]
                average.lerp_(p.grad, 1 - group["momentum"])
                nesterov = torch.lerp(p.grad, average, group["momentum"])
                gathered = whole(nesterov)
                matrix = gathered if p.ndim == 3 else gathered.flatten(1)  # ([E,] m, n)
                update = like(orthogonalised(matrix, self.precision).reshape(p.shape), p)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * 0.2 * max(matrix.shape[-2:]) ** 0.5)


def orthogonalised(matrix: torch.Tensor, precision: torch.dtype = torch.bfloat16, iterations: int = 5) -> torch.Tensor:
    """Approximate U V^T of the singular value decomposition U S V^T of (..., m, n), in float32.

    Five Newton-Schulz steps in ``precision`` with coefficients chosen for speed: singular values end between 0.7 and 1.2.
    """
    x = matrix.to(precision)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(iterations):
        square = x @ x.mT  # (..., m, m)
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    result: torch.Tensor = (x.mT if tall else x).float()
    return result


def hidden_matrices(module: nn.Module, smallest: int = 16) -> list[nn.Parameter]:
    """Return the hidden weight matrices for :class:`Muon`: two to four axes, no side below ``smallest``.

    Embeddings and output heads ("embed", "head" or "table" in their name) are excluded, since their rows are independent.
    """
    found = []
    for name, p in module.named_parameters():
        outer = any(word in name for word in ("embed", "head", "table"))
        sides = p.shape[-2:] if p.ndim == 3 else (p.shape[0], p[0].numel()) if p.ndim in (2, 4) else (0,)
        if p.requires_grad and not outer and min(sides) >= smallest:
            found.append(p)
    return found


class Averages:
    """Exponential moving average of a module's weights in fp32, with a ramp at the start; buffers are not averaged."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.live = {name: t for name, t in module.state_dict().items() if t.is_floating_point()}
        trained = {name for name, p in module.named_parameters() if p.requires_grad}
        self.shadow = {name: t.detach().clone() for name, t in self.live.items() if name in trained}
        self._module = module

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average with the weights after update ``step`` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.shadow.values()), [self.live[name] for name in self.shadow], 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Swap averaged and live weights; a second call swaps them back."""
        for name, shadow in self.shadow.items():
            live = self.live[name]
            kept = live.clone()
            live.copy_(shadow)
            shadow.copy_(kept)

    def state(self) -> dict[str, torch.Tensor]:
        """Return a full state dict: averaged parameters, and the module's buffers and frozen parameters."""
        return {name: self.shadow.get(name, tensor) for name, tensor in self._module.state_dict().items()}
