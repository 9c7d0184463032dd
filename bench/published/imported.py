"""What :mod:`bench.published.classes` does, by the imported checkpoint: our graphs in PyTorch, behind the runtime's own loops.

Axes: N image tokens, V image codes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from export.checkpoints.import_showo import import_show_o
from export.defaults import defaults_of, schedule_of
from export.graph.trace import Models
from export.onnx_export import load_models
from export.verify.parity import TorchBackend
from f2edge.backends.base import Value
from f2edge.decoding.autoregressive import answer
from f2edge.decoding.parallel import decode
from f2edge.decoding.schedule import Schedule, plan
from f2edge.inference import Inference, TextState
from f2edge.spec.configuration import ModelConfiguration
from f2edge.spec.layout import Ids, TokenLayout, left_pad

Features = NDArray[np.float32]


@dataclass
class Imported:
    """One imported checkpoint.

    Attributes:
        models: its parts.
        layout: of its tokens.
        backend: runs its graphs.
    """

    models: Models
    layout: TokenLayout = field(init=False)
    backend: TorchBackend = field(init=False)

    def __post_init__(self) -> None:
        end = self.models.configuration.text_vocabulary - 1
        self.layout = TokenLayout.of(self.models.configuration, end, end)
        self.backend = TorchBackend(self.models)
        self.inference = Inference(self.backend, self.layout)

    @classmethod
    def of(cls, folders: tuple[Path, Path], out: Path, base: ModelConfiguration, clip: Path | None = None) -> Imported:
        """Import two published folders to ``out`` and open what was written."""
        import_show_o(*folders, out, base=base, progress=lambda _: None)
        return cls(load_models(out, out, clip, "show-o"))

    def with_system(self, system: Sequence[int]) -> Imported:
        """The same behind this system prompt."""
        return Imported(replace(self.models, system_ids=tuple(system)))

    # Pictures from words ---------------------------------------------------------------------------------------------

    def image_logits(self, prompts: Sequence[Sequence[int]], codes: Ids) -> Tensor:
        """(B, N, V)."""
        transformer = self.models.transformer
        assert transformer is not None
        ids, lengths = left_pad([self.layout.prompt(prompt) for prompt in prompts], self.layout.pad)
        valid = torch.from_numpy(lengths)
        key, value = transformer.prefill_prompt(torch.from_numpy(ids), valid)
        rows = torch.from_numpy(codes).expand(len(prompts), -1)
        return transformer.image_logits(rows, key, value, valid, torch.zeros(len(prompts)))

    def draw(self, prompt: Sequence[int], codes: Ids, *, steps: int, guidance: float, seed: int) -> Ids:
        """One picture (N,), V where masked → (N,)."""
        schedule = Schedule(
            **{**vars(schedule_of(defaults_of(self.models.configuration).generation)), "steps": steps, "guidance": guidance}
        )
        step = self.inference.step([self.inference.prompt_prefix(prompt)])
        drawn: Ids = decode(step, codes[None], [plan(schedule, codes == self.layout.mask_code, seed, self.layout.block)], [seed])[0]
        return drawn

    # Words off pictures ----------------------------------------------------------------------------------------------

    def answer(self, codes: Ids, question: Sequence[int], longest: int) -> tuple[Tensor, list[int]]:
        """Logits behind the question (T,), and the greedy answer without its end."""
        return self._answer({"codes": codes[None]}, question, longest)

    def answer_by_features(self, features: Features, question: Sequence[int], longest: int) -> tuple[Tensor, list[int]]:
        """The same by CLIP's features (1, M, F)."""
        return self._answer({"semantic": features}, question, longest)

    def _answer(self, feeds: Mapping[str, Value], question: Sequence[int], longest: int) -> tuple[Tensor, list[int]]:
        extend = self.inference.extend([self.inference.prefill_image(feeds)])
        first: list[Tensor] = []

        def recorded(text: Ids, lengths: Ids, state: TextState | None) -> tuple[Features, TextState | None]:
            logits, state = extend(text, lengths, state)
            first.append(torch.from_numpy(logits[0]))
            return logits, state

        ids, lengths = left_pad([self.layout.question(question)], self.layout.pad)
        (tokens,) = answer(recorded, None, ids, lengths, end_of_text=self.layout.end_of_text, max_tokens=longest)
        return first[0], tokens
