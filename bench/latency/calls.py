"""Calls of the latency benches: the same work every time, on faces that the pipeline has not seen."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from f2edge.bundle.bundle import Bundle
from f2edge.decoding.schedule import Schedule
from f2edge.errors import InputError
from f2edge.pipeline import FacePipeline
from f2edge.results import GenerateOptions
from f2edge.spec.flops import image_flops, step_flops, text_flops
from f2edge.text import TextTokenizer

PROMPT = "a young woman with long curly red hair and eyeglasses"
QUESTION = "what color is the hair?"
#: In the order of the tables.
CALLS = ("generate", "analyze", "ask")


def new_faces(face: Image.Image) -> Iterator[Image.Image]:
    """Yield copies of a face with different corners, so that no cached prefix is used."""
    rng = np.random.default_rng(0)
    while True:
        pixels = np.array(face)
        pixels[:4, :4] = rng.integers(0, 256, size=(4, 4, 3))
        yield Image.fromarray(pixels)


def generate_flops(bundle: Bundle, tokenizer: TextTokenizer, schedule: Schedule) -> int:
    """Return the transformer's operations for one face from :data:`PROMPT`, without the prefill of the prompts, which is cached."""
    prompts = [len(bundle.layout.prompt(tokenizer.encode(PROMPT)))] + ([len(bundle.layout.unconditional)] if schedule.guidance else [])
    return schedule.steps * step_flops(bundle.configuration, prompts, 1)


def analyze_flops(bundle: Bundle, tokenizer: TextTokenizer) -> int:
    """Return the transformer's operations for all attributes of one face."""
    questions = [len(tokenizer.encode(slot.question)) + 2 for slot in bundle.schema.values()]
    return image_flops(bundle.configuration) + text_flops(bundle.configuration, questions)


@dataclass(frozen=True)
class ModelCall:
    """One kind of call.

    Attributes:
        call: one of :data:`CALLS`: "generate", "analyze", or "ask" (time to the first token).
        batch: faces per call; 1 for "ask".
        steps: decoding steps of "generate"; None for the others.
        guidance: of "generate"; None takes the bundle's default.
    """

    call: str
    batch: int = 1
    steps: int | None = None
    guidance: float | None = None

    def __post_init__(self) -> None:
        if self.call not in CALLS:
            raise InputError(f"unknown call {self.call!r}; choose from {', '.join(CALLS)}")
        if self.batch < 1 or (self.call == "ask" and self.batch != 1):
            raise InputError(f"{self.call}: a batch of {self.batch} is not possible; give 1 or more faces, and 1 to ask")

    def flops(self, bundle: Bundle, tokenizer: TextTokenizer) -> int | None:
        """Return the transformer's operations for one face; None for "ask"."""
        if self.call == "ask":
            return None
        if self.call == "analyze":
            return analyze_flops(bundle, tokenizer)
        options = GenerateOptions(steps=self.steps, guidance=self.guidance)
        return generate_flops(bundle, tokenizer, options.resolve(bundle.generation))


class CallTimer:
    """Makes calls on one pipeline and times them."""

    def __init__(self, pipeline: FacePipeline) -> None:
        self._pipeline = pipeline
        self._faces = new_faces(pipeline.generate(PROMPT, seeds=7)[0].image)

    def milliseconds(self, call: ModelCall, number: int) -> float:
        """Return the duration of one call; equal ``number`` means equal seeds, so that compared engines draw the same faces."""
        if call.call == "ask":
            return self._pipeline.ask(next(self._faces), QUESTION, max_tokens=1).first_token_ms
        if call.call == "analyze":
            faces = [next(self._faces) for _ in range(call.batch)]
            start = time.perf_counter()
            self._pipeline.analyze(faces)
        else:
            seeds = range(number * call.batch, (number + 1) * call.batch)
            options = GenerateOptions(steps=call.steps, guidance=call.guidance)
            start = time.perf_counter()
            self._pipeline.generate(PROMPT, seeds=list(seeds), options=options)
        return 1e3 * (time.perf_counter() - start)
