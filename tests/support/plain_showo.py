"""The published Show-o in plain PyTorch over its own state dict: whole sequences, no caches, the full vocabulary, padded prompts.

Nothing is shared with export/model/transformer.py.  Axes: B sequences, L columns, D width, H heads, W head width, N image tokens, V codes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class PlainShowO:
    """A state dict with its published names, and what names and shapes do not tell."""

    state: Mapping[str, Tensor]
    layers: int
    heads: int
    rotary: int
    text: int  # ids of the text vocabulary
    image: int  # N
    prompt: int  # columns before <|soi|>

    # Ids, in the order in which Show-o adds them: [PAD], soi, eoi, sov, eov, t2i, mmu, t2v, v2v, lvg.
    @property
    def pad(self) -> int:
        return self.text

    @property
    def soi(self) -> int:
        return self.text + 1

    @property
    def eoi(self) -> int:
        return self.text + 2

    @property
    def t2i(self) -> int:
        return self.text + 5

    @property
    def mmu(self) -> int:
        return self.text + 6

    @property
    def first_code(self) -> int:
        return self.text + 10

    @property
    def mask(self) -> int:
        return len(self.state["showo.lm_head.bias"]) - 1

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def norm(self, name: str, x: Tensor) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:], self.state[f"{name}.weight"], self.state[f"{name}.bias"], eps=1e-5)

    def turned(self, x: Tensor) -> Tensor:
        """Rotary positions 0 … L-1 on the first dims of each head; (B, H, L, W)."""
        half = self.rotary // 2
        angle = torch.arange(x.shape[2])[:, None] * 10000.0 ** (-torch.arange(half) / half)  # (L, rotary/2)
        first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        return torch.cat((first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin(), rest), dim=-1)

    def logits(self, ids: Tensor, allowed: Tensor) -> Tensor:
        """(B, L) and who sees whom (B, L, L) → (B, L, whole vocabulary)."""
        return self.scores(self.state["showo.model.embed_tokens.weight"][ids], allowed)

    def scores(self, x: Tensor, allowed: Tensor) -> Tensor:
        """The same from embeddings (B, L, D)."""
        B, L, D = x.shape
        for layer in range(self.layers):
            at = f"showo.model.layers.{layer}"
            h = self.norm(f"{at}.input_layernorm", x)
            query, key, value = (
                self.linear(f"{at}.self_attn.{part}_proj", h).reshape(B, L, self.heads, D // self.heads).transpose(1, 2) for part in "qkv"
            )
            query, key = self.norm(f"{at}.self_attn.q_layernorm", query), self.norm(f"{at}.self_attn.k_layernorm", key)
            scores = self.turned(query) @ self.turned(key).transpose(2, 3) / math.sqrt(D // self.heads)
            mixed = torch.softmax(scores.masked_fill(~allowed[:, None], -1e9), dim=-1) @ value
            attended = self.linear(f"{at}.self_attn.dense", mixed.transpose(1, 2).reshape(B, L, D))
            up = self.linear(f"{at}.mlp.fc1", h)
            gelu = 0.5 * up * (1 + torch.tanh(math.sqrt(2 / math.pi) * (up + 0.044715 * up**3)))
            x = x + attended + self.linear(f"{at}.mlp.fc2", gelu)
        return self.linear("showo.lm_head", self.norm("showo.model.final_layernorm", x))

    # Pictures from words ---------------------------------------------------------------------------------------------

    def drawing(self, prompts: Sequence[Sequence[int]], start: int, end: int, codes: Tensor) -> Tensor:
        """``[PAD]… <|t2i|> <sot> prompt <eot> <|soi|> codes <|eoi|>``; codes (B, N), V where masked."""
        rows = []
        for prompt, grid in zip(prompts, codes.tolist(), strict=True):
            words = [self.t2i, start, *prompt, end]
            rows.append([self.pad] * (self.prompt - len(words)) + words + [self.soi] + [self.first_code + c for c in grid] + [self.eoi])
        return torch.tensor(rows)

    def drawing_mask(self, ids: Tensor) -> Tensor:
        """Words see earlier words, the image segment sees words and itself; nothing sees padding."""
        column = torch.arange(ids.shape[1])
        in_image = column >= self.prompt
        allowed = (column[None, :] <= column[:, None]) | (in_image[:, None] & in_image[None, :])
        return allowed[None] & (ids != self.pad)[:, None, :]

    def image_logits(self, prompts: Sequence[Sequence[int]], start: int, end: int, codes: Tensor) -> Tensor:
        """(B, N, V)."""
        ids = self.drawing(prompts, start, end, codes)
        return self.logits(ids, self.drawing_mask(ids))[:, -(self.image + 1) : -1, self.first_code : -1]

    def draw(
        self,
        prompt: Sequence[int],
        start: int,
        end: int,
        *,
        steps: int,
        guidance: float,
        temperature: float,
        noise: Callable[[int], tuple[Tensor, Tensor]],
        codes: Tensor | None = None,
    ) -> Tensor:
        """Show-o's loop for one picture; ``noise(step)`` gives Gumbel noise of the codes (N, V) and of the confidence (N,).

        ``codes`` (N,), V where masked, begin an edit.
        """
        N, V = self.image, self.mask - self.first_code
        codes = torch.full((N,), V) if codes is None else codes
        sampled = codes
        for step in range(steps):
            conditional, unconditional = self.image_logits([prompt, []], start, end, codes.expand(2, N))
            probability = ((1 + guidance) * conditional - guidance * unconditional).softmax(dim=-1)
            token_noise, order_noise = noise(step)
            unknown = codes == V
            sampled = torch.where(unknown, (probability.log() + token_noise).argmax(dim=-1), codes)
            ratio = (step + 1) / steps
            wanted = int((N * torch.cos(torch.tensor(ratio) * math.pi * 0.5)).floor())  # in single precision, as published
            masked = max(1, min(int(unknown.sum()) - 1, wanted))
            temperature = temperature * (1 - ratio)  # compounds: the running value is multiplied
            chosen = probability.gather(-1, sampled[:, None])[:, 0].clamp(min=1e-20).log()
            confidence = torch.where(unknown, chosen, torch.finfo(chosen.dtype).max) + temperature * order_noise
            cut = confidence.sort().values[masked]
            codes = torch.where(confidence < cut, V, sampled)
        return sampled

    # Words off pictures ----------------------------------------------------------------------------------------------

    def answer(self, codes: Tensor, question: Sequence[int], start: int, end: int, longest: int) -> list[int]:
        """Greedy over the whole vocabulary, one picture (N,); every row sees all columns up to ``<|eoi|>``, text is causal."""
        ids = [self.mmu, self.soi, *(self.first_code + c for c in codes.tolist()), self.eoi, start, *question]
        said: list[int] = []
        while len(said) < longest and (not said or said[-1] != end):
            column = torch.arange(len(ids))
            allowed = (column[None, :] <= column[:, None]) | (column[None, :] <= self.image + 2)
            said.append(int(self.logits(torch.tensor([ids]), allowed[None])[0, -1].argmax()))
            ids.append(said[-1])
        return said

    def answer_by_features(self, features: Tensor, system: Sequence[int], question: Sequence[int], end: int, longest: int) -> list[int]:
        """Greedy behind a system prompt and an encoder's vectors (M, F) through the projector; every row sees all of them."""
        hidden = functional.gelu(features @ self.state["mm_projector.0.weight"].T + self.state["mm_projector.0.bias"])
        image = hidden @ self.state["mm_projector.2.weight"].T + self.state["mm_projector.2.bias"]
        table = self.state["showo.model.embed_tokens.weight"]
        before, said = [self.mmu, *system, self.soi], list[int]()
        while len(said) < longest and (not said or said[-1] != end):
            x = torch.cat((table[before], image, table[[self.eoi, *question, *said]]))[None]
            column = torch.arange(x.shape[1])
            pictured = (column >= len(before)) & (column < len(before) + len(image))
            allowed = (column[None, :] <= column[:, None]) | pictured[None, :]
            said.append(int(self.scores(x, allowed[None])[0, -1].argmax()))
        return said
