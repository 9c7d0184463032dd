"""The bench's baselines: every decoder ends in the same tokens, so their times are comparable."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from bench.latency.decoders import GraphDecoder, TokenDecoder
from bench.latency.reference import CachedTorch, Lineage, looped_experts
from export.graph.trace import Models
from export.verify.parity import TorchBackend
from f2edge.decoding.autoregressive import answer
from f2edge.decoding.parallel import decode
from f2edge.decoding.schedule import Schedule, plan
from f2edge.spec.configuration import ModelConfiguration
from f2edge.spec.layout import Ids, TokenLayout, left_pad
from tests.support.small_showo import SMALL
from tests.support.tiny_model import TINY, random_models

START, END = 0, 1
CONFIGURATIONS = {"every organ": TINY, "show-o": replace(SMALL, text_vocabulary=1024, prompt_tokens=20, image_offset=23)}


@pytest.fixture(scope="module", params=CONFIGURATIONS)
def models(request: pytest.FixtureRequest) -> Models:
    return random_models(CONFIGURATIONS[request.param])


def layout_of(configuration: ModelConfiguration) -> TokenLayout:
    return TokenLayout.of(configuration, START, END)


def draw(decoder: TokenDecoder, layout: TokenLayout, guidance: float = 1.75) -> Ids:
    prompts, seeds = [[5, 9, 30, 31], [7], []], [3, 4, 2**33]
    everything = np.ones(layout.image_tokens, dtype=bool)
    masked = np.full((3, layout.image_tokens), layout.mask_code)
    plans = [plan(Schedule(steps=6 + row, guidance=guidance * row), everything, seed) for row, seed in enumerate(seeds)]
    return decode(decoder.step(prompts), masked, plans, seeds)


def say(decoder: TokenDecoder, models: Models, layout: TokenLayout, seed: int) -> list[int]:
    rng, c = np.random.default_rng(seed), models.configuration
    shapes = {"semantic": c.semantic, "identity": c.identity}
    features = {name: rng.normal(size=(1, s.vectors, s.width)).astype(np.float32) for name, s in shapes.items() if s is not None}
    extend, state = decoder.prefill(rng.integers(0, layout.codes, (1, layout.image_tokens)), features)
    question = left_pad([layout.question([8, 40, 41, 12])], layout.pad)
    return answer(extend, state, *question, end_of_text=END, max_tokens=6)[0]


def test_all_decoders_generate_the_same_pictures(models: Models) -> None:
    layout = layout_of(models.configuration)
    wanted = draw(GraphDecoder(TorchBackend(models), layout), layout)
    assert np.array_equal(draw(Lineage(models, layout), layout), wanted)
    assert np.array_equal(draw(GraphDecoder(CachedTorch(models), layout), layout), wanted)
    assert np.unique(wanted).size > 8
    assert not np.array_equal(draw(Lineage(models, layout), layout, guidance=4.0), wanted)


def test_all_decoders_give_the_same_answers(models: Models) -> None:
    layout = layout_of(models.configuration)
    decoders: list[TokenDecoder] = [
        GraphDecoder(TorchBackend(models), layout),
        Lineage(models, layout),
        GraphDecoder(CachedTorch(models), layout),
    ]
    said = [[say(decoder, models, layout, seed) for seed in (1, 8)] for decoder in decoders]
    assert said[0] == said[1] == said[2]
    assert said[0][0] != said[0][1]


def test_the_loop_over_experts_is_the_layer() -> None:
    transformer = random_models().transformer
    assert transformer is not None
    layer: Any = transformer.blocks[0].experts["t2i"]  # type: ignore[index]
    x = torch.randn(2, 7, TINY.width, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert float((looped_experts(layer, x) - layer(x, x)[0]).abs().max()) < 1e-5


@pytest.mark.long
def test_compiled_modules_draw_and_say_the_same(models: Models) -> None:
    layout = layout_of(models.configuration)
    plain, compiled = (GraphDecoder(backend, layout) for backend in (TorchBackend(models), CachedTorch(models, compiled=True)))
    assert np.array_equal(draw(compiled, layout), draw(plain, layout))
    assert say(compiled, models, layout, 1) == say(plain, models, layout, 1)
