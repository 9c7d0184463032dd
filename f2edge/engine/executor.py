"""What each stage computes: one function of the requests that share it, over one pipeline.

Every function first computes, then changes its requests and emits their events, so that one which raises has changed nothing and can be
run again for each request alone.  Which stage follows stands in :data:`f2edge.engine.sequences.STAGES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from f2edge.decoding.drafts import Drafts, drafted_pass
from f2edge.decoding.parallel import GridRow, StepFunction, advance
from f2edge.decoding.presets import nearest
from f2edge.decoding.repair import Attempt
from f2edge.decoding.sample import greedy
from f2edge.decoding.schedule import plan
from f2edge.engine.requests import Report, Token
from f2edge.engine.scheduler import Stage
from f2edge.engine.sequences import AnswerState, EditState, FaceState, ImageState, ReportState, RequestState
from f2edge.imaging.regions import Cells, paste_outside
from f2edge.inference import Extend, ImagePrefix, PromptPrefix, TextRow
from f2edge.lru_cache import LRUCache
from f2edge.pipeline import FacePipeline, Paste
from f2edge.results import Answer, EditedFace, FaceReport, GeneratedFace
from f2edge.spec.layout import Ids, left_pad


class Executor:
    """Runs stages.

    Args:
        pipeline: what computes.
        clock: seconds.
        steps_that_fit: how many steps a picture is planned with, of those wanted; called right before its first step.
        padded: the row count that a step of so many rows runs with.
    """

    def __init__(
        self,
        pipeline: FacePipeline,
        clock: Callable[[], float],
        steps_that_fit: Callable[[ImageState, int], int],
        padded: Callable[[int], int],
    ) -> None:
        self._pipeline = pipeline
        self._inference = pipeline.inference
        self._clock = clock
        self._steps_that_fit = steps_that_fit
        self._padded = padded
        self._layout = pipeline.bundle.layout
        # The functions of the last batch: while its rows stay the same, their prefixes stay packed.
        self._step: LRUCache[tuple[PromptPrefix, ...], StepFunction] = LRUCache(1)
        self._extend: LRUCache[tuple[ImagePrefix, ...], Extend] = LRUCache(1)
        self._run: Mapping[Stage, Callable[[Any], None]] = {
            Stage.ENCODE: self._encode,
            Stage.PROMPT: self._prompts,
            Stage.STEP: self._steps,
            Stage.PREVIEW: self._previews,
            Stage.CHECK: self._check,
            Stage.PLACE: self._check,
            Stage.DRAW: self._draw,
            Stage.QUESTION: self._texts,
            Stage.TOKEN: self._texts,
            Stage.REPORT: self._reports,
        }

    def begin(self, request: RequestState) -> None:
        """Set a request's next stage, passing over a prefill whose result is cached."""
        request.stage = request.next_stage
        if request.stage is Stage.PROMPT and isinstance(request, ImageState) and request.prompt_key in self._inference.prompts:
            request.prefix = self._inference.prompt_prefix(request.prompt_ids)
        elif request.stage is Stage.ENCODE and isinstance(request, FaceState) and _face(request)[0] in self._inference.images:
            request.prefix = self._face_prefix(_face(request))
        request.stage = request.next_stage

    def run(self, stage: Stage, requests: Sequence[RequestState]) -> None:
        """Run a stage of these requests; what it raises, it raises before anything has changed."""
        self._run[stage](requests)

    def size(self, stage: Stage, requests: Sequence[RequestState]) -> int:
        """Return what the duration depends on: branches of a step, padding included, rows otherwise."""
        if stage is not Stage.STEP:
            return len(requests)
        branches = [request.branches for request in requests if isinstance(request, ImageState)]
        return sum(branches) + branches[-1] * (self._padded(len(requests)) - len(requests))

    def release(self) -> None:
        """Nothing is in progress: free what was packed for the last batch."""
        self._step.clear()
        self._extend.clear()

    # Pictures ------------------------------------------------------------------------------------------------------------------------

    def _encode(self, requests: Sequence[EditState | FaceState]) -> None:
        edits = [request for request in requests if isinstance(request, EditState)]
        others = [request for request in requests if isinstance(request, FaceState)]
        faces = dict(map(_face, others))
        encoded = self._pipeline.backend.each(self._encoded, edits)
        prefixes = dict(zip(faces, self._pipeline.backend.each(self._face_prefix, list(faces.items())), strict=True))
        for edit, (original, cells) in zip(edits, encoded, strict=True):
            edit.original, edit.cells = original, cells
            if edit.refinements is not None:
                edit.refinements.allow(cells)
        for other in others:
            other.prefix = prefixes[_face(other)[0]]
        for request in requests:
            self.begin(request)

    def _face_prefix(self, face: tuple[bytes, NDArray[np.float32]]) -> ImagePrefix:
        key, pixels = face
        return self._inference.image_prefix(pixels, key)

    def _encoded(self, edit: EditState) -> tuple[Ids, Cells]:
        cells = self._pipeline.cells(edit.region, edit.image_wh, edit.pixels)
        return self._pipeline.encode_pixels(edit.pixels[None])[0], cells

    def _prompts(self, requests: Sequence[ImageState]) -> None:
        prompts = {request.prompt_key: request.prompt_ids for request in requests}
        made = self._pipeline.backend.each(self._inference.prompt_prefix, list(prompts.values()))
        prefixes = dict(zip(prompts, made, strict=True))
        for request in requests:
            request.prefix = prefixes[request.prompt_key]
            self.begin(request)

    def _steps(self, requests: Sequence[ImageState]) -> None:
        start = self._clock()
        rows = [request.mending or request.row or self._first_row(request) for request in requests]
        padding = self._padded(len(rows)) - len(rows)
        prefixes = [request.prefix for request in requests if request.prefix is not None]
        key = (*prefixes, *prefixes[-1:] * padding)
        step = self._step.get(key, lambda: self._inference.step(key))
        advanced, proposals = advance(step, rows + rows[-1:] * padding, range(len(rows) + padding))
        now = self._clock()
        for request, row, proposal in zip(requests, advanced, proposals.rows(), strict=False):
            if request.mending is None:
                request.row, request.proposal = row, proposal
                request.step_ms.append(1e3 * (now - start))
            else:
                request.mending = row
            request.first = now if request.first is None else request.first
            request.stage = request.next_stage
            if request.preview_due and not request.preview_images:
                request.handle.emit(request.progress())

    def _first_row(self, image: ImageState) -> GridRow:
        size = self._layout.image_tokens
        codes, masked = np.full(size, self._layout.mask_code, dtype=np.int64), np.ones(size, dtype=bool)
        if isinstance(image, EditState):
            assert image.cells is not None
            assert image.original is not None
            masked = self._pipeline.token_mask(image.cells)
            codes = np.where(masked, self._layout.mask_code, image.original)
        whole = plan(image.schedule, masked, image.seed, self._layout.block)
        image.steps_wanted = whole.steps
        steps = self._steps_that_fit(image, whole.steps)
        if steps == whole.steps:
            return GridRow.of(codes, whole, image.seed)
        image.preset, image.schedule = nearest(image.presets, steps) if image.presets else ("", replace(image.schedule, steps=steps))
        return GridRow.of(codes, plan(image.schedule, masked, image.seed, self._layout.block), image.seed)

    def _previews(self, requests: Sequence[ImageState]) -> None:
        for request, picture in zip(requests, self._pipeline.backend.each(self._previewed, requests), strict=True):
            event = replace(request.progress(), images=(picture,))
            request.stage = request.next_stage
            request.handle.emit(event)

    def _previewed(self, image: ImageState) -> Image.Image:
        assert image.proposal is not None
        return self._pipeline.draw(image.proposal.ids[None])[0]

    def _check(self, requests: Sequence[ImageState]) -> None:
        for request, attempt in zip(requests, self._pipeline.backend.each(self._attempt, requests), strict=True):
            assert request.refinements is not None
            request.refinements.add(attempt)
            request.mending = None if request.refinements.current is None else self._pipeline.next_row(request.refinements)
            request.stage = request.next_stage

    def _attempt(self, image: ImageState) -> Attempt:
        assert image.refinements is not None
        return self._pipeline.attempt(image.refinements, image.current.codes, self._paste(image))

    def _draw(self, requests: Sequence[ImageState]) -> None:
        for request, result in zip(requests, self._pipeline.backend.each(self._drawn, requests), strict=True):
            request.result = result

    def _drawn(self, image: ImageState) -> GeneratedFace | EditedFace:
        assert image.row is not None
        assert image.proposal is not None
        pipeline, best = self._pipeline, None if image.refinements is None else image.refinements.best
        codes = image.row.codes if image.row.finished else image.proposal.ids
        if best is not None:
            codes, picture = best.codes, best.picture
        else:
            picture = pipeline.finished(codes, self._paste(image))
        picture, name = pipeline.mark(picture), pipeline.bundle.name
        check = None if image.refinements is None else image.refinements.check
        schedule, marks, preset = replace(image.schedule, steps=image.row.plan.steps), pipeline.marks, image.preset
        if not isinstance(image, EditState):
            times = tuple(image.step_ms)
            made = (picture, codes, image.prompt, image.seed, schedule, times, marks, image.wording, name, check, preset)
            return GeneratedFace(*made, None if best is None else best.placed)
        assert image.cells is not None
        assert image.original is not None
        original, cells, prompt, seed = image.original, image.cells, image.prompt, image.seed
        return EditedFace(picture, codes, original, cells, marks, image.wording, prompt, seed, name, check, preset, schedule)

    def _paste(self, image: ImageState) -> Paste | None:
        """Return what puts an edit into its original, where that is wanted."""
        if not isinstance(image, EditState) or not image.keep_outside:
            return None
        assert image.cells is not None
        return partial(paste_outside, self._pipeline.bundle.manifest.pictures.picture(image.pixels), cells=image.cells)

    # Words ---------------------------------------------------------------------------------------------------------------------------

    def _texts(self, requests: Sequence[AnswerState]) -> None:
        """Questions, or the last token of each answer: what of its text a request has not passed yet, all of one kind."""
        images = tuple(request.prefix for request in requests if request.prefix is not None)
        extend = self._extend.get(images, lambda: self._inference.extend(images))
        if len(requests) == 1 and requests[0].text is not None and self._inference.drafts is not None:
            self._drafted(requests[0], requests[0].text, extend, self._inference.drafts)
            return
        earlier = [request.text for request in requests if request.text is not None]
        unread = [request.question_ids if request.text is None else request.tokens[-1:] for request in requests]
        text, new = left_pad(unread, self._layout.pad)
        lengths = new + np.array([row.length for row in earlier], dtype=np.int64) if earlier else new
        logits, state = extend(text, lengths, self._inference.gather(earlier) if earlier else None)
        assert state is not None
        now = self._clock()
        for row, (request, token) in enumerate(zip(requests, greedy(logits).tolist(), strict=True)):
            request.first = now if request.first is None else request.first
            request.text = TextRow(state, row, int(lengths[row]))
            request.stage = request.next_stage
            self._add_token(request, token, now)

    def _drafted(self, request: AnswerState, row: TextRow, extend: Extend, drafts: Drafts) -> None:
        """The next tokens of an answer that is alone, which others cannot delay."""
        text, room = (*request.question_ids, *request.tokens), request.max_tokens - len(request.tokens)
        tokens, length, state = drafted_pass(extend, drafts, text, row.length, self._inference.gather([row]), room=room)
        now = self._clock()
        request.text = TextRow(state, 0, length)
        request.stage = request.next_stage
        for token in tokens:
            if request.result is None:
                self._add_token(request, token, now)

    def _add_token(self, answer: AnswerState, token: int, now: float) -> None:
        ends = token == self._layout.end_of_text
        if not ends:
            answer.tokens.append(token)
            _emit_text(answer, answer.stream.push(token))
        if ends or len(answer.tokens) >= answer.max_tokens:
            _emit_text(answer, answer.stream.finish())
            if self._inference.drafts is not None:
                self._inference.drafts.remember((*answer.question_ids, *answer.tokens, *([token] if ends else [])))
            answer.result = self._answer(answer, now)

    def _answer(self, answer: AnswerState, now: float) -> Answer:
        first = now if answer.first is None else answer.first
        return Answer(
            text=self._pipeline.tokenizer.decode(answer.tokens).strip(),
            tokens=tuple(answer.tokens),
            first_token_ms=1e3 * (first - answer.arrived),
            tokens_per_second=(len(answer.tokens) - 1) / (now - first) if now > first and len(answer.tokens) > 1 else 0.0,
        )

    def _reports(self, requests: Sequence[ReportState]) -> None:
        reports = self._pipeline.backend.each(self._reported, requests)
        now = self._clock()
        for request, report in zip(requests, reports, strict=True):
            request.first = now if request.first is None else request.first
            request.handle.emit(Report(request.current, report))
            request.reports.append(report)
            request.prefix = None
            if len(request.reports) == len(request.pixels):
                request.result = tuple(request.reports)
            else:
                self.begin(request)

    def _reported(self, request: ReportState) -> FaceReport:
        assert request.prefix is not None
        return self._pipeline.questions.report(request.prefix, request.schema)


def _face(request: FaceState) -> tuple[bytes, NDArray[np.float32]]:
    """Return the face that a request works on: the key of its prefix, and its pixels."""
    return request.image_keys[request.current], request.pixels[request.current]


def _emit_text(answer: AnswerState, text: str) -> None:
    if text:
        answer.handle.emit(Token(text))
