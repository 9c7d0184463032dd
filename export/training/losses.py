"""The losses of the unified model: D3Diff for pictures, next-token cross entropy for words, balance for the routers.

Axes: K masked positions (of all rows together), V codes, B rows, S tokens, L layers, E experts, N image tokens.

D3Diff (UniF²ace, arXiv 2503.08120) is masked cross entropy plus ``0.01 ·`` the denoising score entropy of SEDD (arXiv 2310.16834) for the
absorbing state.  Let u be the probability that a token is unmasked at time t, and ``odds = u / (1 - u)``.  The concrete score of a masked
position is ``s(y) = odds · p(y)``, its truth ``a(y) = odds · [y = x0]``; the term is ``s - a · log s + a · (log a - 1)``, summed over
all y.  For a normalised p this is exactly ``-odds · log p(x0)`` (arXiv 2406.03736, 2406.07524), the closed form.  Over time, weighted by
the schedule's rate ``-u' / u``, it is a cross entropy with weight ``-u' / (1 - u)``, the evidence bound of masked diffusion.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

SCORE_WEIGHT = 0.01  # of the score entropy in D3Diff, the paper's best


def cosine_mask_ratio(u: Tensor) -> Tensor:
    """MaskGIT's training law (arXiv 2202.04200): share of masked tokens ``cos(π/2 · u)`` for u uniform in [0, 1]."""
    return torch.cos(u * (math.pi / 2))


def cosine_rate(ratio: Tensor) -> Tensor:
    """The rate ``-u' / u`` of the cosine schedule, where ``1 - u = ratio = sin(π/2 · t)``; ``ratio`` in (0, 1)."""
    return (math.pi / 2) * torch.sqrt(1 - ratio**2) / (1 - ratio)


def score_entropy(log_probability: Tensor, target: Tensor, ratio: Tensor) -> Tensor:
    """Denoising score entropy of masked positions, the general form.

    Args:
        log_probability: normalised log p_θ(y | x_t), (K, V).
        target: x0, (K,) int64.
        ratio: 1 - u of each position's row, (K,) in (0, 1).

    Returns:
        (K,), at least 0; without the time weight.
    """
    odds = ((1 - ratio) / ratio)[:, None]
    log_score = torch.log(odds) + log_probability
    truth: Tensor = odds * functional.one_hot(target, log_probability.shape[1])  # a(y)
    terms: Tensor = log_score.exp() - truth * log_score + torch.special.xlogy(truth, truth) - truth
    return terms.sum(dim=1)


def score_entropy_closed(negative_log_probability: Tensor, ratio: Tensor) -> Tensor:
    """:func:`score_entropy` in closed form: ``-odds · log p(x0)``, both (K,)."""
    return (1 - ratio) / ratio * negative_log_probability


def score_time_weight(ratio: Tensor) -> Tensor:
    """``-u' / (1 - u)`` of the cosine schedule, weight of the cross entropy in the score entropy over time; ``ratio`` in (0, 1]."""
    return (math.pi / 2) * torch.sqrt(1 - ratio**2) / ratio


@dataclass(frozen=True)
class GenerationLoss:
    """``total``: both terms times their weights; ``each`` (K,) is -log p(x0) of every masked position."""

    total: Tensor
    masked: Tensor
    score: Tensor
    each: Tensor


def generation_loss(
    logits: Tensor,
    target: Tensor,
    ratio: Tensor,
    *,
    rows: int,
    image_tokens: int,
    smoothing: float = 0.0,
    weight: Tensor | None = None,
    masked_weight: float = 1.0,
    score_weight: float = SCORE_WEIGHT,
) -> GenerationLoss:
    """D3Diff of all masked positions of a batch, ``masked_weight · masked + score_weight · score``.

    Args:
        logits: (K, V).
        target: (K,) int64.
        ratio: share of masked positions of each one's row, (K,) in (0, 1].
        rows: rows in the batch, for the mean of the score term, which is a sum over a row's masked positions divided by N.
        image_tokens: N.
        smoothing: label smoothing of the masked cross entropy; the score term has none.
        weight: of each position in the mean of the masked cross entropy, (K,); None: all equal.  The score term has none.
        masked_weight: 0 leaves the score term alone.
        score_weight: alpha in the paper; 0 leaves the masked cross entropy alone.
    """
    logits = logits.float()
    each = functional.cross_entropy(logits, target, reduction="none")  # (K,)
    smoothed = functional.cross_entropy(logits, target, reduction="none", label_smoothing=smoothing) if smoothing else each
    masked = smoothed.mean() if weight is None else (smoothed * weight).sum() / weight.sum()
    score = (score_time_weight(ratio) * each).sum() / (rows * image_tokens)
    return GenerationLoss(masked_weight * masked + score_weight * score, masked, score, each.detach())


def text_loss(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Next-token cross entropy of answer tokens (K,) weighted by ``weight`` (K,), divided by its sum."""
    each = functional.cross_entropy(logits.float(), target, reduction="none")
    return (each * weight).sum() / weight.sum()


def expert_usage(chosen: Tensor, valid: Tensor | None = None) -> Tensor:
    """How often each expert is chosen, as shares of all choices (L, E) that sum to 1.

    Args:
        chosen: 0 or 1, (L, B, S, E) or (L, B, E).
        valid: which tokens count, (B, S) or (B,); None: all.
    """
    counted = chosen if valid is None else chosen * valid[..., None].to(chosen.dtype)
    counts = counted.flatten(1, -2).sum(dim=1)  # (L, E)
    return counts / counts.sum(dim=-1, keepdim=True)


def balance_loss(probability: Tensor, chosen: Tensor, valid: Tensor | None = None) -> Tensor:
    """``E · Σ_e f_e P_e`` (Switch Transformer, arXiv 2101.03961), averaged over layers; 1 for an even router.

    f: share of the choices that fell on expert e, P: its mean probability; arguments as for :func:`expert_usage`.
    """
    weight = torch.ones_like(probability[0, ..., 0]) if valid is None else valid.to(probability.dtype)
    mean = (probability * weight[..., None]).flatten(1, -2).sum(dim=1) / weight.sum()  # (L, E)
    return probability.shape[-1] * (expert_usage(chosen, valid).detach() * mean).sum(dim=-1).mean()
