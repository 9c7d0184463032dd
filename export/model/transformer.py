"""Unified transformer: one backbone for generation (T2I) and understanding (MMU) of faces.

Axes: B sequences, P prompt columns, S text columns, T earlier text columns, N image tokens, J image columns, C = J + 3 columns of MMU's
image segment, L layers, H heads, W head width, D width, V image codes, G draws of one image.

One column stands for one cell of the image's grid, or for a block of them.  Where a column has several codes (nano: two; nano-2: eight),
their embeddings are summed on the way in and a linear map splits its state into one state per code on the way out, so that finer pictures
cost no longer sequences (ours).

Everything is one function, :meth:`UnifiedTransformer.run`, called with different columns, masks and caches:

* graph forms, one per graph of f2edge/spec/graphs.py: ``prefill_prompt``, ``image_logits``, ``prefill_image``, ``extend_text``.  They use
two
  exact caches of the omni mask: nothing in a prompt sees the image, and nothing in the image segment of MMU sees the question;
* whole-sequence forms for training, without caches: ``generation_states`` (several mask draws of an image behind one prompt) and
  ``understanding_states`` (several questions behind one image).  Both forms give the same numbers; tests/export/model/test_transformer.py
  holds them together.

>>> model = UnifiedTransformer(NANO)
>>> key, value = model.prefill_prompt(prompt_ids, prompt_lengths)
>>> model.image_logits(codes, key, value, prompt_lengths, mask_ratio).shape        # (B, N, V)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from export.model.attention import Attention, Columns, additive, rotary_table
from export.model.embedding import Embedding, ImageHead
from export.model.experts import DenseFeedForward, TokenExpertLayer
from export.model.resampler import NoiseEmbedding, Resampler
from export.model.sequence_experts import KINDS, SequenceExpertLayer
from f2edge.errors import InputError
from f2edge.spec.configuration import ModelConfiguration


@dataclass(frozen=True)
class Segments:
    """Position of images among the new columns: ``count`` consecutive segments ``<|soi|> codes <|eoi|>`` from column ``start``."""

    start: int
    count: int = 1


@dataclass(frozen=True)
class Routing:
    """Routing decisions of all blocks; probabilities sum to 1, chosen is 0 or 1.  Empty for a level that does not exist.

    ``token_*`` (L, B, S, E) of every new column, ``sequence_*`` (L, B·G, 4) of every image segment.
    """

    token_probability: Tensor
    token_chosen: Tensor
    sequence_probability: Tensor
    sequence_chosen: Tensor


@dataclass(frozen=True)
class States:
    """Result of :meth:`UnifiedTransformer.run`: states (B, S, D) before the final norm, the columns of each layer, and the routing."""

    hidden: Tensor
    columns: list[Columns]
    routing: Routing

    def stacked(self) -> tuple[Tensor, Tensor]:
        """Return keys and values of all layers, each (L, B, H, T + S, W)."""
        return torch.stack([key for key, _ in self.columns]), torch.stack([value for _, value in self.columns])


class TransformerBlock(nn.Module):
    """Phi's parallel block with both levels of experts: ``x + Attn(LN x) + FFN(LN x) [+ SequenceExperts(LN x) at the image positions]``."""

    def __init__(self, configuration: ModelConfiguration) -> None:
        super().__init__()
        width, shape = configuration.width, configuration.token_experts
        self.image_columns = configuration.image_columns
        self.norm = nn.LayerNorm(width, eps=configuration.layer_norm_eps)
        self.attention = Attention(width, configuration.heads, configuration.layer_norm_eps if configuration.query_key_norm else None)
        self.routed = shape.routed > 0
        self.common = shape.common or not self.routed
        if self.routed:
            own = replace(shape, shared_width=0) if shape.common else shape
            self.experts = nn.ModuleDict({group: TokenExpertLayer(width, own) for group in KINDS})
        if self.common:
            self.dense = DenseFeedForward(width, shape.shared_width)
        self.recompute = False
        self.sequence = nn.ModuleDict()
        if configuration.sequence_experts:
            for group in KINDS:
                self.sequence[group] = SequenceExpertLayer(
                    group, width, configuration.resampler_width, configuration.sequence_active, scaled=configuration.sequence_scale
                )

    def sequence_residual(
        self, h: Tensor, exact: Tensor, group: str, segments: Segments, sources: Mapping[str, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return the sequence level's residual (B, S, D), zero outside the code positions of ``segments``, and its routing."""
        B, S, D = h.shape
        J, G = self.image_columns, segments.count
        end = segments.start + G * (J + 2)
        images, routed = (v[:, segments.start : end].reshape(B * G, J + 2, D)[:, 1 : J + 1] for v in (h, exact))  # (B·G, J, D)
        delta, probability, chosen = self.sequence[group](images, routed.mean(dim=1), sources)
        before, after = segments.start, S - end
        if G == 1:
            return functional.pad(delta, (0, 0, before + 1, after + 1)), (probability, chosen)
        delta = functional.pad(delta, (0, 0, 1, 1)).reshape(B, G * (J + 2), D)
        return functional.pad(delta, (0, 0, before, after)), (probability, chosen)

    def forward(
        self,
        x: Tensor,
        group: str,
        *,
        table: tuple[Tensor, Tensor],
        mask: Tensor,
        shared: Columns | None,
        past: Columns | None,
        segments: Segments | None,
        sources: Mapping[str, Tensor],
    ) -> tuple[Tensor, Columns, list[Tensor]]:
        """(B, S, D) → (B, S, D), this layer's columns, and its routing (token probability, chosen, sequence probability, chosen).

        With ``recompute``, activations inside the block are not kept for the backward pass but computed again.
        """
        rest = (table, mask, shared, past, segments, sources)
        if self.recompute and torch.is_grad_enabled():
            result: tuple[Tensor, Columns, list[Tensor]] = checkpoint(self._computed, x, group, *rest, use_reentrant=False)
            return result
        return self._computed(x, group, *rest)

    def _computed(  # noqa: PLR0917 - checkpointing passes by position
        self,
        x: Tensor,
        group: str,
        table: tuple[Tensor, Tensor],
        mask: Tensor,
        shared: Columns | None,
        past: Columns | None,
        segments: Segments | None,
        sources: Mapping[str, Tensor],
    ) -> tuple[Tensor, Columns, list[Tensor]]:
        exact = self.norm(x)
        h = _autocast(exact)
        mixed, columns = self.attention(h, table, mask, shared, past)
        routing: list[Tensor] = []
        if self.routed:
            fed, probability, chosen = self.experts[group](h, exact)
            routing += [probability, chosen]
            if self.common:
                fed = fed + self.dense(h)
        else:
            fed = self.dense(h)
        x = x + mixed + fed
        if segments is not None and group in self.sequence:
            delta, decisions = self.sequence_residual(h, exact, group, segments, sources)
            x = x + delta
            routing += decisions
        return x, columns, routing


class UnifiedTransformer(nn.Module):
    """Unified transformer with two task groups of experts, "t2i" and "mmu"; see the module's docstring."""

    #: Methods that training and validation call.
    ENTRY_POINTS = ("generation_states", "understanding_states", "prefill_prompt", "image_logits")

    def __init__(self, configuration: ModelConfiguration) -> None:
        super().__init__()
        self.configuration = configuration
        width = configuration.width
        self.embedding = Embedding(configuration)
        self.blocks = nn.ModuleList(TransformerBlock(configuration) for _ in range(configuration.layers))
        self.norm = nn.LayerNorm(width, eps=configuration.layer_norm_eps)
        self.text_head = nn.Linear(width, configuration.text_vocabulary)
        self.image_head = ImageHead(configuration)
        self.per_cell = configuration.tokenizer.codes_per_column
        if self.per_cell > 1:
            self.split = nn.Linear(width, self.per_cell * width)
        if configuration.sequence_experts:
            if configuration.semantic is None or configuration.identity is None:
                raise InputError(f"configuration {configuration.name!r}: sequence experts need semantic and identity features")
            self.noise = NoiseEmbedding(configuration.resampler_width)
            self.semantic = Resampler(configuration.image_columns, configuration.semantic, configuration.resampler_width)
            self.identity = Resampler(configuration.image_columns, configuration.identity, configuration.resampler_width)
        if configuration.understanding == "features":
            assert configuration.semantic is not None
            self.projector = nn.Sequential(nn.Linear(configuration.semantic.width, width), nn.GELU(), nn.Linear(width, width))
        self._initialise()

    def _initialise(self) -> None:
        """Linears and tables by N(0, 0.02), what writes to the residual stream smaller by √(2L), biases 0 (GPT-2's scheme)."""
        residual = 0.02 / (2 * self.configuration.layers) ** 0.5
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                out = name.endswith(("attention.output", "down")) and name.startswith("blocks.")
                nn.init.normal_(module.weight, std=residual if out else max(0.02, 0.5 * module.in_features**-0.5))
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        if self.per_cell > 1:
            with torch.no_grad():  # every code begins with the cell's own state
                self.split.weight += torch.eye(self.configuration.width).repeat(self.per_cell, 1)

    def use_fused_attention(self, fused: bool) -> None:
        """Select PyTorch's fused attention kernel (training) or explicit products and softmax (export), with equal results."""
        for block in self._blocks():
            block.attention.fused = fused

    def use_recomputation(self, recompute: bool) -> None:
        """Select whether training keeps each block's activations or computes them again in the backward pass, with equal results."""
        for block in self._blocks():
            block.recompute = recompute

    def use_grouped_experts(self, grouped: bool) -> None:
        """Select whether training computes routed experts on the tokens that chose them, or on all tokens, with equal results."""
        for layer in self.modules():
            if isinstance(layer, TokenExpertLayer):
                layer.grouped = grouped

    def _blocks(self) -> Iterator[TransformerBlock]:
        for block in self.blocks:
            assert isinstance(block, TransformerBlock)
            yield block

    def shard_units(self) -> list[nn.Module]:
        """Return the parts whose parameters are gathered one by one when the model is sharded (export/training/sharding.py)."""
        return [*self.blocks, self.text_head, self.image_head]

    def special(self, token: str) -> int:
        """Return the vocabulary id of a special token."""
        return self.configuration.text_vocabulary + self.configuration.specials.index(token)

    def run(
        self,
        x: Tensor,
        positions: Tensor,
        mask: Tensor,
        group: str,
        *,
        shared: Sequence[Columns] | None = None,
        past: Sequence[Columns] | None = None,
        segments: Segments | None = None,
        sources: Mapping[str, Tensor] | None = None,
    ) -> States:
        """Run all blocks over new columns.

        Args:
            x: their embeddings (B, S, D).
            positions: rotary positions (B or 1, S) int64.
            mask: additive (B or 1, 1, S or 1, columns of shared, past and new).
            group: "t2i" or "mmu".
            shared: each layer's columns of B rows or of one, see :class:`Attention`.
            past: each layer's earlier columns of the same sequences.
            segments: the images among the new columns, for the sequence-level experts.
            sources: S's shared part by kind, (B·G, J or 1, R), see :class:`SequenceExpertLayer`.
        """
        configuration = self.configuration
        table = rotary_table(positions, configuration.rotary, configuration.rotary_base)
        columns: list[Columns] = []
        decisions: list[list[Tensor]] = []
        for index, block in enumerate(self.blocks):
            x, own, routing = block(
                x,
                group,
                table=table,
                mask=mask,
                shared=shared[index] if shared else None,
                past=past[index] if past else None,
                segments=segments,
                sources=sources or {},
            )
            columns.append(own)
            decisions.append(routing)
        token = 2 if configuration.token_experts.routed else 0
        return States(x, columns, _routing(decisions, token, x))

    # Ends ------------------------------------------------------------------------------------------------------------

    def image_segment(self, codes: Tensor) -> Tensor:
        """``<|soi|> image <|eoi|>`` of (B, N) codes, V where masked → (B, J + 2, D)."""
        ends = self.embedding(torch.tensor([[self.special("<|soi|>"), self.special("<|eoi|>")]], device=codes.device))
        ends = ends.expand(codes.shape[0], -1, -1)
        return torch.cat((ends[:, :1], self.embedding.image_vectors(codes), ends[:, 1:]), dim=1)

    def understanding_segment(self, codes: Tensor) -> Tensor:
        """``<|mmu|> <|soi|> codes <|eoi|>`` → (B, C, D)."""
        task = self.embedding(torch.full_like(codes[:, :1], self.special("<|mmu|>")))
        return torch.cat((task, self.image_segment(codes)), dim=1)

    def _sees_image(self, column: Tensor) -> Tensor:
        """Return which columns of an MMU sequence see the whole image segment: all but ``<|mmu|>``, in Show-o all."""
        return column >= (0 if self.configuration.task_sees_image else 1)

    def token_states(self, cells: Tensor) -> Tensor:
        """Map states of cells (…, J, D) to states of tokens (…, N, D)."""
        return self.split(cells).unflatten(-1, (self.per_cell, -1)).flatten(-3, -2) if self.per_cell > 1 else cells

    def image_scores(self, hidden: Tensor) -> Tensor:
        """Map states (…, D) of image tokens to logits (…, V)."""
        scores: Tensor = self.image_head(self.norm(hidden))
        return scores

    def text_scores(self, hidden: Tensor) -> Tensor:
        """Map states (…, D) of text positions to logits (…, text vocabulary)."""
        scores: Tensor = self.text_head(self.norm(hidden))
        return scores

    def image_head_weight(self) -> Tensor:
        """Return the image head folded to one matrix (V, D) fp32."""
        return self.image_head.weight()

    def noise_sources(self, mask_ratio: Tensor) -> dict[str, Tensor]:
        """Map mask ratios (B,) to the input of the T2I group's noise expert."""
        return {"noise": self.noise(mask_ratio)} if self.configuration.sequence_experts else {}

    def feature_sources(self, semantic: Tensor, identity: Tensor) -> dict[str, Tensor]:
        """Map encoder features (B, M, F) to the inputs of the MMU group's experts."""
        return {"semantic": self.semantic(semantic), "identity": self.identity(identity)} if self.configuration.sequence_experts else {}

    # Graph forms -----------------------------------------------------------------------------------------------------

    def prefill_prompt(self, prompt_ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Left-padded ``<|t2i|> <sot> prompt <eot>`` (B, P) int64 and its lengths (B,) → keys and values, each (L, B, H, P, W)."""
        P = prompt_ids.shape[1]
        column = torch.arange(P, device=prompt_ids.device)
        positions = (column + (self.configuration.image_offset - P))[None]
        allowed = (column[None, :] <= column[:, None]) & (column >= P - lengths[:, None])[:, None]  # (B, P, P)
        return self.run(self.embedding(prompt_ids), positions, additive(allowed)[:, None], "t2i").stacked()

    def image_logits(self, codes: Tensor, prefix_key: Tensor, prefix_value: Tensor, prefix_lengths: Tensor, mask_ratio: Tensor) -> Tensor:
        """One look at the image behind a cached prompt.

        Args:
            codes: (B, N) int64, V where masked.
            prefix_key: of :meth:`prefill_prompt`.
            prefix_value: likewise.
            prefix_lengths: valid prompt columns (B,), from the right.
            mask_ratio: (B,) in [0, 1].

        Returns:
            logits (B, N, V).
        """
        J, P = self.configuration.image_columns, prefix_key.shape[3]
        column = torch.arange(J + 2, device=codes.device)
        seen = torch.arange(P, device=codes.device) >= P - prefix_lengths[:, None]  # (B, P)
        allowed = functional.pad(additive(seen), (0, J + 2))[:, None, None]
        states = self.run(
            self.image_segment(codes), (column + self.configuration.image_offset)[None], allowed, "t2i",
            past=_layers(prefix_key, prefix_value), segments=Segments(0), sources=self.noise_sources(mask_ratio),
        )  # fmt: skip
        return self.image_scores(self.token_states(states.hidden[:, 1 : J + 1]))

    def prefill_image(self, codes: Tensor, semantic: Tensor, identity: Tensor) -> tuple[Tensor, Tensor]:
        """Codes (B, N) and encoder features (B, M, F) of faces → keys and values of ``<|mmu|> <|soi|> codes <|eoi|>``, (L, B, H, C, W)."""
        column = torch.arange(self.configuration.image_columns + 3, device=codes.device)
        allowed = (column[None, :] <= column[:, None]) | self._sees_image(column)[:, None]
        states = self.run(
            self.understanding_segment(codes), column[None], additive(allowed)[None, None], "mmu",
            segments=Segments(1), sources=self.feature_sources(semantic, identity),
        )  # fmt: skip
        return states.stacked()

    def prefill_features(self, system_ids: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """The same by the vectors of the semantic encoder, behind a system prompt, for ``understanding`` "features".

        Args:
            system_ids: (system tokens,) int64.
            features: (B, M, F).

        Returns:
            keys and values of ``<|mmu|> system <|soi|> features <|eoi|>``, (L, B, H, C, W).
        """
        B, M, _ = features.shape
        ends = [torch.tensor([self.special(token)], device=features.device) for token in ("<|mmu|>", "<|soi|>", "<|eoi|>")]
        before = self.embedding(torch.cat((ends[0], system_ids, ends[1]))).expand(B, -1, -1)
        x = torch.cat((before, self.projector(features), self.embedding(ends[2]).expand(B, -1, -1)), dim=1)
        column = torch.arange(self.configuration.understanding_columns, device=features.device)
        first = self.configuration.system_tokens + 2
        pictured = (column >= first) & (column < first + M)
        allowed = (column[None, :] <= column[:, None]) | pictured[None, :]  # every row sees the picture, all else is causal
        return self.run(x, column[None], additive(allowed)[None, None], "mmu").stacked()

    def extend_text(  # noqa: PLR0917 - the graph's inputs in their order
        self, text_ids: Tensor, text_lengths: Tensor, image_key: Tensor, image_value: Tensor, text_key: Tensor, text_value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """New text columns behind an image: the question, then one token at a time.

        Args:
            text_ids: (B, S) int64, left-padded where no earlier text exists.
            text_lengths: valid text columns (B,), earlier and new together, from the right.
            image_key: of :meth:`prefill_image`, B rows or one.
            image_value: likewise.
            text_key: earlier text columns (L, B, H, T, W), T may be 0.
            text_value: likewise.

        Returns:
            logits of the last column (B, text vocabulary), and the text columns with the new ones, each (L, B, H, T + S, W).
        """
        S, T, C = text_ids.shape[1], text_key.shape[3], image_key.shape[3]
        column = torch.arange(T + S, device=text_ids.device)
        first = T + S - text_lengths[:, None]  # (B, 1) column where each row's text begins
        positions = column[None, T:] - first + self.configuration.understanding_columns  # (B, S)
        allowed = (column[None, :] <= column[T:, None]) & (column >= first)[:, None]  # (B, S, T + S)
        states = self.run(
            self.embedding(text_ids), positions, functional.pad(additive(allowed), (C, 0))[:, None], "mmu",
            shared=_layers(image_key, image_value), past=_layers(text_key, text_value),
        )  # fmt: skip
        return self.text_scores(states.hidden[:, -1]), *states.stacked()

    # Whole-sequence forms --------------------------------------------------------------------------------------------

    def generation_states(self, prompt_ids: Tensor, lengths: Tensor, codes: Tensor, mask_ratio: Tensor) -> tuple[Tensor, Routing]:
        """G mask draws of each image behind one prompt; no draw sees another.

        Args:
            prompt_ids: as in :meth:`prefill_prompt`.
            lengths: likewise.
            codes: (B, G, N), V where masked.
            mask_ratio: (B, G).

        Returns:
            states of the tokens (B, G, N, D) for :meth:`image_scores`, and the routing over P + G·(J + 2) columns.
        """
        B, P = prompt_ids.shape
        G, J = codes.shape[1], self.configuration.image_columns
        column = torch.arange(P + G * (J + 2), device=codes.device)
        draw = torch.where(column < P, -1, (column - P) // (J + 2))
        positions = torch.where(column < P, column - P, (column - P) % (J + 2)) + self.configuration.image_offset
        prompt = (draw[None, :] < 0) & (column[None, :] <= column[:, None])
        allowed = (prompt | ((draw[None, :] == draw[:, None]) & (draw[None, :] >= 0)))[None] & (column >= P - lengths[:, None])[:, None]
        images = self.image_segment(codes.flatten(0, 1)).reshape(B, G * (J + 2), -1)
        states = self.run(
            torch.cat((self.embedding(prompt_ids), images), dim=1), positions[None], additive(allowed)[:, None], "t2i",
            segments=Segments(P, G), sources=self.noise_sources(mask_ratio.flatten()),
        )  # fmt: skip
        return self.token_states(states.hidden[:, P:].reshape(B, G, J + 2, -1)[:, :, 1 : J + 1]), states.routing

    def understanding_states(  # noqa: PLR0917 - three for the face, three for the text
        self, codes: Tensor, semantic: Tensor, identity: Tensor, text_ids: Tensor, text_positions: Tensor, text_segments: Tensor
    ) -> tuple[Tensor, Routing]:
        """Several questions with their answers behind one image; no question sees another.

        Args:
            codes: as in :meth:`prefill_image`.
            semantic: likewise.
            identity: likewise.
            text_ids: (B, S), questions and answers one behind the other.
            text_positions: (B, S), 0 at the first token of each question.
            text_segments: (B, S), number of the question that a token belongs to; padding is a separate segment.

        Returns:
            states of the text columns (B, S, D) for :meth:`text_scores`, and the routing over C + S columns.
        """
        B, S = text_ids.shape
        C = self.configuration.image_columns + 3
        column = torch.arange(C + S, device=codes.device)
        owner = functional.pad(text_segments + 1, (C, 0))  # (B, C + S), 0 for the image
        causal = column[None, :] <= column[:, None]
        image = (column[None, :] < C) & (causal | self._sees_image(column)[:, None])
        allowed = image[None] | ((owner[:, None, :] == owner[:, :, None]) & causal & (column[None, :] >= C))
        positions = torch.cat((column[None, :C].expand(B, -1), text_positions + C), dim=1)
        states = self.run(
            torch.cat((self.understanding_segment(codes), self.embedding(text_ids)), dim=1), positions, additive(allowed)[:, None], "mmu",
            segments=Segments(1), sources=self.feature_sources(semantic, identity),
        )  # fmt: skip
        return states.hidden[:, C:], states.routing


def _autocast(x: Tensor) -> Tensor:
    """Cast ``x`` to autocast's dtype if autocast is on, once instead of in every linear layer."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


def _layers(key: Tensor, value: Tensor) -> list[Columns]:
    """Split stacked columns (L, B, H, T, W) into one pair per layer."""
    return list(zip(key.unbind(0), value.unbind(0), strict=True))


def _routing(decisions: list[list[Tensor]], token: int, x: Tensor) -> Routing:
    """Stack each layer's decisions; ``token`` of them (0 or 2) come from the token level."""
    stacks = [torch.stack(parts) for parts in zip(*decisions, strict=True)]
    empty = x.new_zeros(0)
    tokens, sequences = stacks[:token] or [empty, empty], stacks[token:] or [empty, empty]
    return Routing(tokens[0], tokens[1], sequences[0], sequences[1])
