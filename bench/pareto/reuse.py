"""Reuse between decoding steps against fewer steps: ``python -m bench reuse --bundle nano --images 200``.

A picture's forwards can be cut by taking fewer steps, or by computing part of a step only.  Of each guided step that is not the first of
its period this takes from the last whole one

* ``logits``: everything; codes are drawn again from the same logits, with new noise;
* ``branch``: what guidance adds, the difference of the two branches' logits; the prompt's own branch runs;
* ``blocks``: what the lower blocks add to the states; the upper ones run on new codes.

The bundle's weights run in PyTorch, in fp32, by the runtime's own loop and sampler.  Forwards count a block as its share of one.  Prompts,
seeds and figures are those of ``bench pareto``: attributes by the judge with a 95 % interval, the kernel distance to renders with its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from bench.options import DEFAULT_JUDGE, AsJson, BundleName, Threads, whole_numbers
from bench.pareto.pareto import interval
from bench.quality.presets import SEED
from bench.results import Results, write_json
from f2edge.cli.console import Output
from f2edge.decoding.schedule import Schedule
from f2edge.errors import InputError
from f2edge.spec.layout import Ids

if TYPE_CHECKING:
    from torch import Tensor

    from bench.quality.judge import Images
    from bench.quality.quality import Bench
    from export.model.transformer import UnifiedTransformer

_GROUP = 16
_BRANCHES = 2


@dataclass(frozen=True)
class Reuse:
    """What the steps of a period take from its first.

    Attributes:
        kind: "", "logits", "branch" or "blocks".
        period: steps of a period.
        kept: lower blocks that are not run again, of "blocks".
    """

    kind: str = ""
    period: int = 1
    kept: int = 0

    def forwards(self, steps: int, layers: int) -> float:
        """Return the forwards of a picture of guided steps."""
        part = {"": 1.0, "logits": 0.0, "branch": 1 / _BRANCHES, "blocks": 1 - self.kept / layers}[self.kind]
        whole = -(-steps // self.period)
        return _BRANCHES * (whole + part * (steps - whole))

    @property
    def described(self) -> str:
        """For people."""
        blocks = f" of the lower {self.kept}" if self.kept else ""
        return f"{self.kind}{blocks}, every {self.period}" if self.kind else ""


@dataclass(frozen=True)
class Method:
    """Guided steps with reuse."""

    schedule: Schedule
    reuse: Reuse


def methods(default: Schedule, steps: Sequence[int], layers: int) -> Iterator[Method]:
    """Yield all steps without reuse, then the default with every kind of it."""
    for count in dict.fromkeys([default.steps, *steps]):
        yield Method(replace(default, steps=count), Reuse())
    for period in (2, 3):
        kinds = [Reuse(kind, period) for kind in ("logits", "branch")] + [Reuse("blocks", period, n) for n in (layers // 2, layers - 1)]
        yield from (Method(default, kind) for kind in kinds)


class Reused:
    """Lets a transformer's guided steps take from an earlier one what ``reuse`` says, while it is entered and pictures begin together."""

    def __init__(self, model: UnifiedTransformer, reuse: Reuse) -> None:
        self._model, self._reuse = model, reuse
        self._lower = list(model.blocks)[: reuse.kept]
        self._added: dict[int, tuple[Any, ...]] = {}
        self._calls, self._again = 0, False
        self._last: Tensor

    def __enter__(self) -> Reused:  # noqa: PYI034  Self is younger than Python 3.10
        self._model.image_logits = partial(self._logits, self._model.image_logits)  # type: ignore[method-assign]
        for place, block in enumerate(self._lower):
            block.forward = partial(self._block, place, block.forward)
        return self

    def __exit__(self, *_error: object) -> None:
        del self._model.image_logits
        for block in self._lower:
            del block.forward

    def _logits(self, whole: Callable[..., Tensor], codes: Tensor, key: Tensor, value: Tensor, *rows: Tensor) -> Tensor:
        """Return the logits of all branches: those of the prompts, then those without."""
        import torch

        self._again, self._calls = self._calls % self._reuse.period > 0, self._calls + 1
        own = len(codes) // _BRANCHES
        if self._again and self._reuse.kind == "branch":
            said = whole(codes[:own], key[:, :own], value[:, :own], *(row[:own] for row in rows))
            self._last = torch.cat((said, said + self._last[own:] - self._last[:own]))
        elif not self._again or self._reuse.kind == "blocks":
            self._last = whole(codes, key, value, *rows)
        return self._last

    def _block(self, place: int, forward: Callable[..., tuple[Any, ...]], x: Tensor, *given: Any, **options: Any) -> tuple[Any, ...]:
        if self._again:
            added, *rest = self._added[place]
            return (x + added, *rest)
        after, *rest = forward(x, *given, **options)
        self._added[place] = (after - x, *rest)
        return (after, *rest)


def drawn(bench: Bench, model: UnifiedTransformer, method: Method) -> Images:
    """Return the pictures (n, Y, X, 3) of the bench's prompts, with the seeds of the other benches."""
    import torch

    from bench.quality.faces import progress
    from bench.quality.quality import as_array
    from export.training.preview import sample

    pipeline, prompts = bench.pipeline, bench.prompts
    layout, made = pipeline.bundle.layout, list[Ids]()
    name = method.reuse.described or f"{method.schedule.steps} steps"
    for begin in progress(range(0, len(prompts), _GROUP), name, -(-len(prompts) // _GROUP)):
        texts = [prompt.text for prompt in prompts[begin : begin + _GROUP]]
        seeds = [bench.seed * 1_000_000 + begin + row for row in range(len(texts))]
        ids = [layout.prompt(pipeline.prompt_text(text).ids) for text in texts]
        with torch.inference_mode(), Reused(model, method.reuse):
            made.append(sample(model, layout, ids, method.schedule, seeds).numpy())
    return as_array(pipeline.decode(np.concatenate(made)))


def reuse(
    *,
    bundle: BundleName = "nano",
    judge_file: Annotated[Path, typer.Option("--judge", help="Weights of the judge.")] = DEFAULT_JUDGE,
    images: Annotated[int, typer.Option(min=4, help="Faces of each method.")] = 200,
    steps: Annotated[str, typer.Option(help="Steps without reuse.")] = "2,4,6,8",
    seed: Annotated[int, typer.Option(min=0, help="Seed of faces, prompts and pictures.")] = 1,
    threads: Threads = None,
    out: Annotated[Path | None, typer.Option(help="Folder for reuse.json.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure what reuse between decoding steps costs in quality, beside fewer steps."""
    import torch

    from bench.quality import scores
    from bench.quality.faces import held_out_faces
    from bench.quality.judge import Judge
    from bench.quality.quality import Bench
    from bench.quality.realism import kernel_distance
    from export.checkpoints.from_bundle import transformer_of
    from f2edge.pipeline import FacePipeline

    counts = whole_numbers("--steps", [steps], "4")
    if seed == SEED:
        raise InputError(f"--seed {seed}: its prompts are those that presets are searched on; choose another")
    pipeline = FacePipeline.load(bundle, threads=threads, watermark=None)
    if not pipeline.bundle.generation.guidance:
        raise InputError(f"bundle {bundle!r} draws without guidance; the kinds of reuse here are those of guided steps")
    if threads is not None:
        torch.set_num_threads(threads)
    model, judge = transformer_of(pipeline.bundle).eval(), Judge.load(judge_file)
    bench = Bench(
        pipeline, judge, images, seed=seed, render=partial(held_out_faces, size=pipeline.bundle.configuration.tokenizer.image_size)
    )
    real = judge.features(bench.faces.images[:images])
    said = scores.mention_table([p.mentioned for p in bench.prompts], bench.schema)
    layers, rows = model.configuration.layers, list[Results]()
    for method in methods(pipeline.bundle.generation, counts, layers):
        pictures = drawn(bench, model, method)
        right = ((judge.predict(pictures) == said) & (said >= 0)).sum(axis=1)
        rows.append({
            "steps": method.schedule.steps,
            "reuse": method.reuse.described,
            "forwards": method.reuse.forwards(method.schedule.steps, layers),
            "attributes": interval(right, (said >= 0).sum(axis=1), seed),
            "kernel": list(kernel_distance(judge.features(pictures), real)),
        })  # fmt: skip
    document = {"bundle": bundle, "images": images, "seed": seed, "rows": rows}
    if out is not None:
        write_json(document, out / "reuse.json")
    Output(json=as_json).table((">steps", "reuse", ">forwards", ">attributes %", ">kernel distance"), [_cells(row) for row in rows])
    if as_json:
        print(json.dumps(document))


def _cells(row: Results) -> tuple[str, ...]:
    return (
        str(row["steps"]),
        row["reuse"],
        f"{row['forwards']:.1f}",
        "{:.1f} ({:.1f} … {:.1f})".format(*(100 * value for value in row["attributes"])),
        "{:.0f} ({:.0f} … {:.0f})".format(*row["kernel"]),
    )
