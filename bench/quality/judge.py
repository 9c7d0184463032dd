"""Attribute judge: a network that classifies every slot of a face.

It scores generated and edited faces against their prompts and shares nothing with the judged model: architecture, code, seeds, training run
(``bench/quality/judge_training.py``) and weights are separate.

    judge = Judge.load("bench/weights/judge.safetensors")
    judge.predict(images)        # (n, 40) value index of every slot
    judge.features(images)       # (n, F) for the Fréchet distance

Axes: n images, B batch, C channels, K slots, V values of the richest slot, F width of a feature vector.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from f2edge.errors import BundleError, BundleNotFoundError, InputError
from f2edge.spec.attributes import F2EDGE_SCHEMA, AttributeSchema

Images = NDArray[np.uint8]

WIDTHS = (32, 64, 96, 112)
BLOCKS = (0, 1, 3, 2)
LOOK_WIDTH = 16
IMAGE_SIZE = 128
_CHUNK = 64


class _PreActivated(nn.Module):
    """Pre-activation residual block (arXiv 1603.05027): ``x + conv(silu(norm(conv(silu(norm(x))))))``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_first, self.norm_second = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.first = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(functional.silu(self.norm_first(x)))
        result: Tensor = x + self.second(functional.silu(self.norm_second(y)))
        return result


class JudgeNetwork(nn.Module):
    """Residual network over 64, 32, 16 and 8 pixel grids; each slot reads the squeezed 16 and 8 grids, by position, and the mean.

    Faces are aligned, so a fully connected layer over a squeezed grid can use positions.
    """

    def __init__(
        self,
        schema: AttributeSchema = F2EDGE_SCHEMA,
        widths: tuple[int, ...] = WIDTHS,
        blocks: tuple[int, ...] = BLOCKS,
        look_width: int = LOOK_WIDTH,
    ) -> None:
        super().__init__()
        counts = [len(slot.values) for slot in schema.values()]
        stages: list[nn.Module] = []
        before = 3
        for width, count in zip(widths, blocks, strict=True):
            stages.append(
                nn.Sequential(
                    nn.Conv2d(before, width, 5 if before == 3 else 3, 2, 2 if before == 3 else 1),
                    *(_PreActivated(width) for _ in range(count)),
                )
            )
            before = width
        self.stages = nn.ModuleList(stages)
        self.norm = nn.BatchNorm2d(widths[-1])
        self.fine = nn.Conv2d(widths[-2], 4, 1)
        self.coarse = nn.Conv2d(widths[-1], look_width, 1)
        self.look = nn.Linear(4 * 16 * 16 + look_width * 8 * 8, 128)
        self.head = nn.Linear(128 + widths[-1], sum(counts))
        values = torch.arange(max(counts))
        offsets = torch.tensor([0, *np.cumsum(counts)[:-1].tolist()])
        self.index: Tensor
        self.valid: Tensor
        self.register_buffer("valid", values < torch.tensor(counts)[:, None], persistent=False)
        self.register_buffer("index", (offsets[:, None] + values).clamp(max=sum(counts) - 1), persistent=False)

    def features(self, pixels: Tensor) -> Tensor:
        """``(B, 3, 128, 128)`` float in [-1, 1] → ``(B, F)``, the input of the last linear layer."""
        x = pixels.contiguous(memory_format=torch.channels_last)
        grids: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            grids.append(x)
        last = functional.silu(self.norm(x))  # (B, C, 8, 8)
        placed = torch.cat([self.fine(grids[-2]).flatten(1), self.coarse(last).flatten(1)], dim=1)
        return torch.cat([functional.silu(self.look(placed)), last.mean(dim=(2, 3))], dim=1)

    def forward(self, pixels: Tensor) -> Tensor:
        """``(B, 3, 128, 128)`` → logits ``(B, K, V)``; entries beyond a slot's values are the lowest float."""
        logits: Tensor = self.head(self.features(pixels)).float()
        return logits[:, self.index].masked_fill(~self.valid, torch.finfo(torch.float32).min)


def to_pixels(images: Images) -> Tensor:
    """uint8 ``(n, 128, 128, 3)`` → float ``(n, 3, 128, 128)`` in [-1, 1]; of sizes twice, three times … that, the means.

    Another shape or dtype raises :class:`InputError`.
    """
    square = images.ndim == 4 and images.shape[1] == images.shape[2] and images.shape[3] == 3
    if not square or images.shape[1] % IMAGE_SIZE or not images.shape[1] or images.dtype != np.uint8:
        raise InputError(
            f"the judge reads uint8 pictures (n, {IMAGE_SIZE}, {IMAGE_SIZE}, 3), or of multiples, got {images.dtype} {images.shape}"
        )
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)
    times = images.shape[1] // IMAGE_SIZE
    return pixels if times == 1 else functional.avg_pool2d(pixels, times)


def _shape_of(state: dict[str, Tensor]) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Return widths, blocks and look width of the network of a state dict."""
    stages = range(sum(name.startswith("stages.") and name.endswith(".0.weight") for name in state))
    widths = tuple(len(state[f"stages.{stage}.0.weight"]) for stage in stages)
    blocks = tuple(sum(name.startswith(f"stages.{stage}.") and name.endswith(".first.weight") for name in state) for stage in stages)
    return widths, blocks, len(state["coarse.weight"])


class Judge:
    """A trained judge in evaluation mode."""

    def __init__(self, network: JudgeNetwork, schema: AttributeSchema = F2EDGE_SCHEMA) -> None:
        self.network = network.eval().float().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.schema = schema

    @classmethod
    def load(cls, path: str | Path) -> Judge:
        """Read a file of :meth:`save`; a missing, damaged or unrelated file raises :class:`BundleError`."""
        path = Path(path)
        if not path.is_file():
            raise BundleNotFoundError(f"{path}: judge not found; train one: python -m bench judge --data SHARDS --out {path.parent}")
        try:
            with safe_open(str(path), framework="pt") as file:
                schema = AttributeSchema.from_json(json.loads((file.metadata() or {})["schema"]))
            state = load_file(str(path))
            network = JudgeNetwork(schema, *_shape_of(state))
            network.load_state_dict({name: value.float() if value.is_floating_point() else value for name, value in state.items()})
        except BundleError:
            raise
        except Exception as error:
            raise BundleError(f"judge {path}: {type(error).__name__}: {error}; train it again: python -m bench judge") from error
        return cls(network, schema)

    def save(self, path: Path) -> None:
        """Write the weights in fp16 and the schema."""
        state = {
            name: (value.half() if value.is_floating_point() else value).contiguous() for name, value in self.network.state_dict().items()
        }
        save_file(state, str(path), metadata={"schema": json.dumps(self.schema.to_json())})

    def _run(self, images: Images, function: Any) -> Tensor:
        with torch.inference_mode():
            parts = [function(to_pixels(images[i : i + _CHUNK])) for i in range(0, len(images), _CHUNK)]
        return torch.cat(parts)

    def logits(self, images: Images) -> NDArray[np.float32]:
        """uint8 ``(n, 128, 128, 3)`` → ``(n, K, V)``."""
        result: NDArray[np.float32] = self._run(images, self.network).numpy()
        return result

    def predict(self, images: Images) -> NDArray[np.int8]:
        """uint8 ``(n, 128, 128, 3)`` → the most likely value index of every slot, ``(n, K)``."""
        answers: NDArray[np.int8] = self.logits(images).argmax(axis=-1).astype(np.int8)
        return answers

    def features(self, images: Images) -> NDArray[np.float32]:
        """uint8 ``(n, 128, 128, 3)`` → ``(n, F)`` for the Fréchet distance."""
        result: NDArray[np.float32] = self._run(images, self.network.features).numpy()
        return result
