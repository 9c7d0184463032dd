"""What a turn does: each stage as a function of the requests that share it, over one pipeline.

A stage first computes, then changes its requests and tells their listeners, so that one which raises has changed nothing and can be run
again for each request alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from f2edge.decoding.parallel import GridRow, StepFunction, advance
from f2edge.decoding.sample import greedy
from f2edge.decoding.schedule import plan
from f2edge.engine.answer_rows import AnswerRows, TextRow
from f2edge.engine.requests import Progress, Report, Token
from f2edge.engine.scheduler import Stage
from f2edge.engine.sequences import AnswerJob, EditWork, ImageJob, Job, ReportJob
from f2edge.imaging.regions import Cells, paste_outside
from f2edge.pipeline import FacePipeline
from f2edge.prefix_cache import PromptPrefix
from f2edge.results import Answer, EditedFace, FaceReport, GeneratedFace
from f2edge.spec.layout import Ids


class Stages:
    """Runs turns.

    Args:
        pipeline: what computes.
        clock: seconds.
        steps_that_fit: how many steps a picture shall be planned with, of those wanted; asked right before its first step.
        padded: the row count that a step of so many rows runs with.
    """

    def __init__(
        self,
        pipeline: FacePipeline,
        clock: Callable[[], float],
        steps_that_fit: Callable[[ImageJob, int], int],
        padded: Callable[[int], int],
    ) -> None:
        self._pipeline = pipeline
        self._clock = clock
        self._steps_that_fit = steps_that_fit
        self._padded = padded
        self._layout = pipeline.bundle.layout
        self._answers = AnswerRows(pipeline.backend, pipeline.understanding, self._layout.pad)
        self._step: tuple[tuple[PromptPrefix, ...], StepFunction] | None = None
        self._run: Mapping[Stage, Callable[[Any], None]] = {
            Stage.ENCODE: self._encode,
            Stage.PROMPT: self._prompts,
            Stage.STEP: self._steps,
            Stage.PREVIEW: self._previews,
            Stage.DRAW: self._draw,
            Stage.QUESTION: self._questions,
            Stage.TOKEN: self._tokens,
            Stage.REPORT: self._reports,
        }

    def begin(self, job: Job) -> None:
        """Set a request's next preparation, passing over those whose result is remembered."""
        if isinstance(job, ImageJob):
            if job.edit and job.edit.cells is None:
                job.stage = Stage.ENCODE
            elif job.prefix is None and job.prompt_key not in self._pipeline.prompts.recent:
                job.stage = Stage.PROMPT
            else:
                job.prefix = job.prefix or self._pipeline.prompts.prompt(job.prompt_ids)
                job.stage = Stage.STEP
        elif isinstance(job, AnswerJob | ReportJob):
            key = _image_key(job)
            if job.prefix is None and key in self._pipeline.understanding.prefixes:
                job.prefix = self._pipeline.understanding.prefix(_pixels(job), key)
            job.stage = Stage.ENCODE if job.prefix is None else Stage.REPORT if isinstance(job, ReportJob) else Stage.QUESTION

    def run(self, stage: Stage, jobs: Sequence[Job]) -> None:
        """One turn; what it raises, it raises before anything has changed."""
        self._run[stage](jobs)

    def size(self, stage: Stage, jobs: Sequence[Job]) -> int:
        """What a turn's duration depends on: branches of a step, padding included, rows otherwise."""
        if stage is not Stage.STEP:
            return len(jobs)
        branches = [job.branches for job in jobs if isinstance(job, ImageJob)]
        return sum(branches) + branches[-1] * (self._padded(len(jobs)) - len(jobs))

    def rest(self) -> None:
        """Nothing is in progress: let go of what was packed for the last turns."""
        self._step = None
        self._answers.forget()

    # Pictures ------------------------------------------------------------------------------------------------------------------------

    def _encode(self, jobs: Sequence[Job]) -> None:
        edits = [job.edit for job in jobs if isinstance(job, ImageJob) and job.edit is not None]
        others = [job for job in jobs if isinstance(job, AnswerJob | ReportJob)]
        seen = {_image_key(job): _pixels(job) for job in others}
        encoded = self._pipeline.backend.each(self._encoded, edits)
        made = self._pipeline.backend.each(lambda key: self._pipeline.understanding.prefix(seen[key], key), list(seen))
        prefixes = dict(zip(seen, made, strict=True))
        for edit, (original, cells) in zip(edits, encoded, strict=True):
            edit.original, edit.cells = original, cells
        for asker in others:
            asker.prefix = prefixes[_image_key(asker)]
        for job in jobs:
            self.begin(job)

    def _encoded(self, edit: EditWork) -> tuple[Ids, Cells]:
        cells = self._pipeline.cells(edit.region, edit.image_wh, edit.pixels)
        return self._pipeline.encode_pixels(edit.pixels[None])[0], cells

    def _prompts(self, jobs: Sequence[ImageJob]) -> None:
        asked = {job.prompt_key: job.prompt_ids for job in jobs}
        prefixes = dict(zip(asked, self._pipeline.backend.each(self._pipeline.prompts.prompt, list(asked.values())), strict=True))
        for job in jobs:
            job.prefix = prefixes[job.prompt_key]
            self.begin(job)

    def _steps(self, jobs: Sequence[ImageJob]) -> None:
        start = self._clock()
        rows = [job.row or self._first_row(job) for job in jobs]
        padding = self._padded(len(rows)) - len(rows)
        prefixes = [job.prefix for job in jobs if job.prefix is not None]
        step = self._step_of((*prefixes, *prefixes[-1:] * padding))
        advanced, proposals = advance(step, rows + rows[-1:] * padding, range(len(rows) + padding))
        now = self._clock()
        for job, row, proposal in zip(jobs, advanced, proposals, strict=False):
            job.row, job.proposal = row, proposal.copy()
            job.seen(now)
            job.step_ms.append(1e3 * (now - start))
            due = job.preview_every > 0 and row.step % job.preview_every == 0 and not row.finished
            job.stage = Stage.DRAW if row.finished else Stage.PREVIEW if due and job.preview_images else Stage.STEP
            if due and not job.preview_images:
                job.ticket.tell(Progress(row.step, row.plan.steps, row.codes, job.proposal))

    def _first_row(self, job: ImageJob) -> GridRow:
        codes, masked = self._grid(job.edit)
        job.steps_wanted = min(job.schedule.steps, int(masked.sum()))
        steps = self._steps_that_fit(job, job.steps_wanted)
        return GridRow(codes, plan(replace(job.schedule, steps=steps), masked, job.seed), job.seed)

    def _grid(self, edit: EditWork | None) -> tuple[Ids, np.ndarray[Any, np.dtype[np.bool_]]]:
        """The token grid before the first step, and what of it is masked; both (N,)."""
        if edit is None:
            shape = self._layout.image_tokens
            return np.full(shape, self._layout.mask_code, dtype=np.int64), np.ones(shape, dtype=bool)
        assert edit.cells is not None
        assert edit.original is not None
        masked = self._pipeline.token_mask(edit.cells)
        return np.where(masked, self._layout.mask_code, edit.original), masked

    def _step_of(self, prefixes: tuple[PromptPrefix, ...]) -> StepFunction:
        """The step function of these prefixes; the same one for as long as the rows stay the same, for it has them packed."""
        known = self._step and len(self._step[0]) == len(prefixes) and all(a is b for a, b in zip(self._step[0], prefixes, strict=True))
        if self._step is None or not known:
            self._step = prefixes, self._pipeline.prompts.step(prefixes)
        return self._step[1]

    def _previews(self, jobs: Sequence[ImageJob]) -> None:
        images = self._pipeline.backend.each(self._previewed, jobs)
        for job, image in zip(jobs, images, strict=True):
            assert job.row is not None
            assert job.proposal is not None
            job.stage = Stage.STEP
            job.ticket.tell(Progress(job.row.step, job.row.plan.steps, job.row.codes, job.proposal, image))

    def _previewed(self, job: ImageJob) -> Image.Image:
        assert job.proposal is not None
        return self._pipeline.draw(job.proposal[None])[0]

    def _draw(self, jobs: Sequence[ImageJob]) -> None:
        for job, result in zip(jobs, self._pipeline.backend.each(self._drawn, jobs), strict=True):
            job.result = result

    def _drawn(self, job: ImageJob) -> GeneratedFace | EditedFace:
        assert job.row is not None
        codes = job.proposal if job.truncated else job.row.codes
        assert codes is not None
        (image,) = self._pipeline.decode(codes[None])
        if job.edit is None:
            schedule = replace(job.schedule, steps=job.row.plan.steps)
            image = self._pipeline.mark(image)
            return GeneratedFace(image, codes, job.prompt, job.seed, schedule, tuple(job.step_ms), self._pipeline.marks)
        assert job.edit.cells is not None
        assert job.edit.original is not None
        if job.edit.keep_outside:
            image = paste_outside(self._pipeline.bundle.manifest.pictures.picture(job.edit.pixels), image, job.edit.cells)
        return EditedFace(self._pipeline.mark(image), codes, job.edit.original, job.edit.cells, self._pipeline.marks)

    # Words ---------------------------------------------------------------------------------------------------------------------------

    def _questions(self, jobs: Sequence[AnswerJob]) -> None:
        images = [job.prefix for job in jobs if job.prefix is not None]
        logits, rows = self._answers.question(images, [job.question_ids for job in jobs])
        self._say(jobs, greedy(logits, 0), rows)

    def _tokens(self, jobs: Sequence[AnswerJob]) -> None:
        images = [job.prefix for job in jobs if job.prefix is not None]
        rows = [job.text for job in jobs if job.text is not None]
        logits, rows = self._answers.token(images, rows, [job.tokens[-1] for job in jobs])
        self._say(jobs, greedy(logits, 0), rows)

    def _say(self, jobs: Sequence[AnswerJob], tokens: Ids, rows: Sequence[TextRow]) -> None:
        now = self._clock()
        for job, token, row in zip(jobs, tokens.tolist(), rows, strict=True):
            job.seen(now)
            job.text, job.stage = row, Stage.TOKEN
            if token != self._layout.end_of_text:
                job.tokens.append(token)
                self._tell_text(job, job.stream.push(token))
            if token == self._layout.end_of_text or len(job.tokens) >= job.max_tokens:
                self._tell_text(job, job.stream.finish())
                job.result = self._answer(job, now)

    def _tell_text(self, job: AnswerJob, text: str) -> None:
        if text:
            job.ticket.tell(Token(text))

    def _answer(self, job: AnswerJob, now: float) -> Answer:
        first = now if job.first is None else job.first
        return Answer(
            text=self._pipeline.tokenizer.decode(job.tokens).strip(),
            tokens=tuple(job.tokens),
            first_token_ms=1e3 * (first - job.arrived),
            tokens_per_second=(len(job.tokens) - 1) / (now - first) if now > first and len(job.tokens) > 1 else 0.0,
        )

    def _reports(self, jobs: Sequence[ReportJob]) -> None:
        reports = self._pipeline.backend.each(self._reported, jobs)
        now = self._clock()
        for job, report in zip(jobs, reports, strict=True):
            job.seen(now)
            job.ticket.tell(Report(len(job.reports), report))
            job.reports.append(report)
            job.prefix = None
            if len(job.reports) == len(job.pixels):
                job.result = tuple(job.reports)
            else:
                self.begin(job)

    def _reported(self, job: ReportJob) -> FaceReport:
        assert job.prefix is not None
        return self._pipeline.understanding.analyze(job.prefix, job.schema)


def _image_key(job: AnswerJob | ReportJob) -> bytes:
    return job.image_key if isinstance(job, AnswerJob) else job.image_keys[len(job.reports)]


def _pixels(job: AnswerJob | ReportJob) -> np.ndarray[Any, np.dtype[np.float32]]:
    return job.pixels if isinstance(job, AnswerJob) else job.pixels[len(job.reports)]
