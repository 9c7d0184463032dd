"""A scripted backend for the engine's tests: the model of paper with a fast step, a clock of its own, and failures on command."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from threading import Event as Flag

import numpy as np
from PIL import Image

from f2edge.backends.base import Array, Value
from f2edge.bundle.bundle import Bundle
from f2edge.engine.engine import RequestHandle
from f2edge.engine.requests import AnalyzeRequest, AskRequest, Done, Event, Failed, GenerateRequest, Limits, Request
from f2edge.engine.step_loop import StepLoop
from f2edge.pipeline import FacePipeline
from f2edge.results import GenerateOptions
from f2edge.spec.lexicon import Lexicon
from f2edge.text import PromptReader
from tests.support.paper_model import MODEL, PaperBackend

#: A prompt or question with this character breaks every forward pass that it is part of.
POISON = "!"
#: What the bundle's words mean to a check.
WORDS = Lexicon({("cap",): (("hat", "cap"),), ("old",): (("age", "old"),), ("beard",): (("beard", "full"),)}, {}, {}, ["man", "with"])
#: Milliseconds of each graph: fixed, and for each row or branch.
COSTS_MS = {
    "t2i_prefill": (4, 1),
    "t2i_step": (10, 5),
    "image_decode": (6, 0),
    "image_encode": (5, 0),
    "mmu_prefill": (9, 0),
    "mmu_extend": (2, 1),
    "regions": (3, 0),
}


class FakeClock:
    """Seconds that pass only when somebody says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class ScriptedBackend(PaperBackend):
    """Counts rows, advances a clock, fails and hangs on command.

    Attributes:
        rows: of every run, by graph.
        fails: asked before each run with the graph and its inputs.
        beside: pieces of work that it says it does side by side.
        gate: while it is cleared, runs wait; ``inside`` tells that one does.
    """

    def __init__(self, clock: FakeClock | None = None) -> None:
        super().__init__()
        self.clock = clock
        self.rows: list[tuple[str, int]] = []
        self.slowness = 1.0
        self.beside = 1
        self.fails: Callable[[str, Mapping[str, Value]], bool] = lambda _graph, _feeds: False
        self.gate, self.inside = Flag(), Flag()
        self.gate.set()

    @property
    def workers(self) -> int:
        return self.beside

    def run(self, graph: str, feeds: Mapping[str, Value]) -> dict[str, Value]:
        if not self.gate.is_set():
            self.inside.set()
            assert self.gate.wait(30), "the test forgot a run in the gate"
        size = len(next(iter(feeds.values())) if graph != "t2i_step" else feeds["branch_row"])  # type: ignore[arg-type]
        self.rows.append((graph, len(feeds["codes"]) if graph == "t2i_step" else size))  # type: ignore[arg-type]
        if self.clock is not None and graph in COSTS_MS:
            fixed, each = COSTS_MS[graph]
            self.clock.now += self.slowness * (fixed + each * size) / 1e3
        if self.fails(graph, feeds):
            raise RuntimeError(f"{graph} was told to fail")
        return super().run(graph, feeds)

    def t2i_step(self, prefix_key: Array, prefix_value: Array, prefix_lengths: Array, **feeds: Array) -> dict[str, Array]:
        """A row's new codes and their order are hashes of its prompts, grid, noise and numbers, and of nothing else."""
        columns = np.arange(prefix_key.shape[3])
        valid = columns >= prefix_key.shape[3] - prefix_lengths[:, None]  # (B, P)
        ids = np.where(valid, prefix_key[0, :, 0, :, 0].astype(np.int64), 0)
        prompts = (ids * (columns[::-1] * 7919 + 31)).sum(axis=1)  # (B,)
        rows = np.arange(len(feeds["codes"]))
        seen = (feeds["codes"] * (np.arange(MODEL.image_tokens) * 104729 + 17)).sum(axis=1)
        numbers = sum((feeds[name] * 1000).astype(np.int64) for name in ("guidance", "mask_ratio", "temperature", "token_temperature"))
        own = prompts[rows] * 3 + prompts[feeds["unconditional_branch"]] * 5 + seen + numbers
        hashed = (feeds["noise_key"] ^ own[:, None]) * 0x9E3779B1 % (1 << 40) + (feeds["priority"] * 64).astype(np.int64)
        masked = feeds["codes"] == MODEL.codes
        proposal = np.where(masked, (hashed >> 7) % MODEL.codes, feeds["codes"])
        next_codes = proposal.copy()
        for row, order in enumerate(np.argsort(np.where(masked, hashed, 1 << 60), axis=1)):
            next_codes[row, order[: feeds["masked_after"][row]]] = MODEL.codes
        return {"next_codes": next_codes, "proposal": proposal}


@dataclass
class Heard:
    """A handle and everything that its listener was told."""

    handle: RequestHandle
    events: list[Event] = field(default_factory=list)

    @property
    def end(self) -> Done | Failed:
        ends = [event for event in self.events if isinstance(event, Done | Failed)]
        assert len(ends) == 1, "a request ends once"
        assert self.events[-1] is ends[0], "nothing is told after the end"
        return ends[0]

    @property
    def done(self) -> Done:
        assert isinstance(self.end, Done), self.end
        return self.end

    @property
    def error(self) -> Exception:
        assert isinstance(self.end, Failed)
        return self.end.error


class Bench:
    """A step loop without a thread, on a scripted backend and a fake clock."""

    def __init__(self, bundle: Bundle, limits: Limits | None = None) -> None:
        self.clock = FakeClock()
        self.backend = ScriptedBackend(self.clock)
        self.pipeline = FacePipeline(bundle, self.backend)
        self.loop = StepLoop(self.pipeline, limits or Limits(margin_ms=0), self.clock)
        self.alone = FacePipeline(bundle, ScriptedBackend())
        reader = PromptReader(self.alone.tokenizer, WORDS, bundle.layout.prompt_tokens)
        self.pipeline._prompts = self.alone._prompts = reader

    def ask(self, request: Request, **options: object) -> Heard:
        events: list[Event] = []
        return Heard(self.loop.submit(request, on_event=events.append, **options), events)  # type: ignore[arg-type]

    def run(self, turns: int = 10_000) -> int:
        """Run so many turns, or until there is nothing to do; the turns run."""
        for turn in range(turns):
            if not self.loop.run_batch():
                return turn
        return turns

    def learn(self) -> None:
        """Fill the table of step times, as the warm-up does."""
        with self.loop.admission.without_quantum():
            for size in (1, 1, 2, 4):
                for _ in range(size):
                    self.loop.submit_internal(generate(99, steps=2))
                self.run()
            for image in (97, 98, 99):
                self.loop.submit_internal(question(image))
                self.loop.submit_internal(AnalyzeRequest((face(image),), ("hat",)))
            self.run()
        self.loop.reset_counters()
        self.backend.runs.clear()
        self.backend.rows.clear()

    def steps(self) -> list[int]:
        """Rows of each image step so far."""
        return [rows for graph, rows in self.backend.rows if graph == "t2i_step"]


def generate(seed: int = 0, *, prompt: str = "an old man", steps: int | None = None, **more: object) -> Request:
    return GenerateRequest(prompt, seed, GenerateOptions(steps=steps), **more)  # type: ignore[arg-type]


def question(image: int = 0, text: str = "what?", max_tokens: int = 6) -> Request:
    return AskRequest(face(image), text, max_tokens)


def face(seed: int = 0) -> Image.Image:
    """A picture of flat cells, different for each seed."""
    cells = np.random.default_rng(seed).integers(0, 256, size=(8, 8, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((128, 128), Image.Resampling.NEAREST)


def poisoned(graph: str, feeds: Mapping[str, Value]) -> bool:
    """Whether a prompt or question with :data:`POISON` takes part in a step, a question or a token."""
    if graph not in ("t2i_step", "mmu_extend"):
        return False
    mark = 2 + sorted_letters().index(POISON)
    texts = [feeds["prefix_key"]] if graph == "t2i_step" else [feeds["text_key"], feeds["text_ids"]]
    return any((np.asarray(text) == mark).any() for text in texts)


def sorted_letters() -> list[str]:
    """The paper tokenizer's letters in the order of their ids, which begin at 2."""
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())
