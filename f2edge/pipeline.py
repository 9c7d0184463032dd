"""The library's front door: generate, edit, describe, ask and analyze faces with one bundle.

>>> pipeline = FacePipeline.load("nano")                                                     # doctest: +SKIP
>>> pipeline.generate("a young woman with long red hair", seeds=7)[0].save("face.png")        # doctest: +SKIP

B images, R requests, N image tokens, G cells along a side of the token grid.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from f2edge.backends.base import Backend, host
from f2edge.backends.registry import choose_backend
from f2edge.bundle.bundle import Bundle
from f2edge.decoding.autoregressive import TextStream, answer, drafted_answer
from f2edge.decoding.parallel import GridRow, StepEvent, decode
from f2edge.decoding.placement import Placement
from f2edge.decoding.presets import name_of
from f2edge.decoding.repair import Attempt, Refinements, Repair, Wanted, Workshop, checked_rounds
from f2edge.decoding.schedule import Schedule, plan
from f2edge.errors import InputError
from f2edge.imaging.images import ImageSource, listed, open_image
from f2edge.imaging.map_pictures import ASKED, LayoutSource, drawn_map
from f2edge.imaging.region_map import STRENGTH, Layout, map_indices, sources
from f2edge.imaging.regions import Cells, Region, paste_outside, region_cells
from f2edge.inference import Inference, PromptPrefix
from f2edge.provenance.watermark import PUBLIC, Watermark
from f2edge.questions import Questions
from f2edge.results import Answer, EditedFace, FaceReport, GeneratedFace, GenerateOptions, paired
from f2edge.spec.layout import Ids, left_pad, tokens_of_cells
from f2edge.spec.sensitive import SensitivePolicy
from f2edge.text import PromptReader, PromptText, TextTokenizer, check_text

logger = logging.getLogger(__name__)

#: Requests decoded together; more of them are decoded one group after another.
ROWS_AT_ONCE = 16
#: Faces read together: the encoders' memory grows with their number.
FACES_AT_ONCE = 8
#: Puts an edited picture into its original.
Paste = Callable[[Image.Image], Image.Image]


class FacePipeline:
    """One bundle on one backend.  Made by :meth:`load`; safe to call from several threads.

    Pictures given may have any size and be paths, bytes of a file, arrays or Pillow's images; of one that is not square the centred square
    is taken.  Pictures returned have the model's size.

    What :meth:`generate` and :meth:`edit` return is marked as drawn by a model, in its pixels (:mod:`f2edge.provenance.watermark`); so are
    all copies of it, however saved or sent.  Tokens never change by that, and :meth:`decode` gives the pixels unmarked.
    """

    def __init__(self, bundle: Bundle, backend: Backend, watermark: Watermark | None = None) -> None:
        self.bundle = bundle
        self.backend = backend
        self.watermark = watermark
        self.tokenizer = TextTokenizer(bundle.tokenizer_path)
        self._prompts = PromptReader(self.tokenizer, bundle.lexicon(), bundle.layout.prompt_tokens)
        self.inference = Inference.of(backend, bundle)
        self.questions = Questions(self.inference, bundle, self.tokenizer)
        if self.inference.drafts is not None:
            self.inference.drafts.keep(self.questions.texts())

    @classmethod
    def load(
        cls,
        bundle: str | Path | Bundle = "nano",
        *,
        backend: str = "auto",
        threads: int | None = None,
        watermark: Watermark | None = PUBLIC,
    ) -> FacePipeline:
        """Open a bundle by name or path.

        Args:
            bundle: "nano", another name, a folder, or an open bundle.
            backend: "auto" or a name in :data:`f2edge.backends.registry.BACKENDS`.
            threads: CPU threads; None takes every usable core.
            watermark: written into every picture; None leaves pixels as drawn, to measure a model or to train on them.

        Raises:
            BundleError: the bundle is missing, damaged or of an unknown version.
            BackendError: an unknown backend, or one that cannot run here.
        """
        opened = Bundle.load(bundle)
        return cls(opened, choose_backend(backend, opened, threads)[0], watermark)

    @property
    def describe_question(self) -> str:
        """The question that the bundle was trained to answer with a description."""
        return self.bundle.manifest.describe_question

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        seeds: int | Sequence[int] = 0,
        options: GenerateOptions | None = None,
        check: bool | int = False,
        layout: LayoutSource | Sequence[LayoutSource] | None = None,
        layout_from: ImageSource | Sequence[ImageSource] | None = None,
        layout_strength: float = STRENGTH,
        on_step: Callable[[StepEvent], None] | None = None,
        preview_images: bool = False,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> list[GeneratedFace]:
        """Generate faces from words.

        Args:
            prompts: one prompt, or one for each face.
            seeds: one seed for all, or one for each face, in ``[0, 2^64)``.
            options: what None is follows the bundle's defaults.
            check: read each picture, and draw again what disagrees with the prompt, twice at most or as often as a number says
                (:mod:`f2edge.decoding.repair`); ``on_step`` hears of the first drawing only.
            layout: a map of the regions as they are to lie (:mod:`f2edge.imaging.region_map`), one for all faces or one for each.
            layout_from: a face whose regions are wanted instead, one for all or one for each.
            layout_strength: 0 … 1, how much of a draft by the map is kept (:mod:`f2edge.decoding.placement`).
            on_step: called after each step; with more than ``ROWS_AT_ONCE`` faces, for one group of rows after another.
            preview_images: give ``on_step`` pictures too; each step then costs one run of the tokenizer's decoder for each face.
            cancelled: polled before each step; True stops.

        Raises:
            InputError: options out of range, seeds and prompts of different number, a map with colours of no region.
            PromptError: a prompt that is empty, too long or not plain text.
            CancelledError: ``cancelled`` returned True.
        """
        schedule, rounds = self.schedule(options), checked_rounds(check)
        rows, preset = list(paired(prompts, seeds)), self.preset_name(schedule, options)
        layouts = [self.layout(*source, layout_strength) for source in sources(layout, layout_from, len(rows))]
        texts = [self.prompt_text(prompt, where) for (prompt, _), where in zip(rows, layouts, strict=True)]
        prefixes = [self.inference.prompt_prefix(text.ids) for text in texts]
        everything = np.ones(self.bundle.layout.image_tokens, dtype=bool)
        plans = [plan(schedule, everything, seed, self.bundle.layout.block) for _, seed in rows]
        faces: list[GeneratedFace] = []
        for first in range(0, len(rows), ROWS_AT_ONCE):
            group = slice(first, first + ROWS_AT_ONCE)
            times: list[float] = []

            def preview(event: StepEvent) -> None:
                assert on_step is not None
                on_step(replace(event, images=tuple(self.draw(event.proposal))))

            masked = np.full((len(rows[group]), len(everything)), self.bundle.layout.mask_code, dtype=np.int64)
            codes = decode(
                self.inference.step(prefixes[group]),
                masked,
                plans[group],
                [s for _, s in rows[group]],
                on_step=preview if on_step and preview_images else on_step,
                cancelled=cancelled,
                times=times,
            )
            given = list(zip(rows[group], texts[group], layouts[group], strict=True))
            refinements = [self.refinements(text, seed, rounds, where, options) for (_, seed), text, where in given]
            attempts = self.refined(refinements, codes, prefixes[group], cancelled=cancelled)
            for ((prompt, seed), text, _), refinement, attempt in zip(given, refinements, attempts, strict=True):
                image, grid, found, name = self.mark(attempt.picture), attempt.codes, refinement.check, self.bundle.name
                marks, wording, placed = self.marks, text.wording, attempt.placed
                face = GeneratedFace(image, grid, prompt, seed, schedule, tuple(times), marks, wording, name, found, preset, placed)
                faces.append(face)
        return faces

    def edit(
        self,
        image: ImageSource,
        prompt: str,
        region: Region,
        *,
        seed: int = 0,
        options: GenerateOptions | None = None,
        keep_outside: bool = True,
        check: bool | int = False,
        on_step: Callable[[StepEvent], None] | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> EditedFace:
        """Decode a region of a face anew, by a prompt for the wanted face; tokens outside it stay as they are.

        Args:
            image: the face.
            prompt: words for the whole face as it should be, or for the change.
            region: a name of ``bundle.regions``, a box ``(x, y, w, h)`` in pixels of ``image``, a mask image (bright is inside),
                or bool (G, G).
            seed: in ``[0, 2^64)``.
            options: what is None follows the bundle's defaults for edits.
            keep_outside: paste the original's pixels back outside the region, with an edge of half a token cell; otherwise the whole
                picture comes from the tokenizer's decoder.
            check: read the picture and draw again, within the region, what disagrees with the prompt; as of :meth:`generate`.
            on_step: called after each step.
            cancelled: polled before each step; True stops.

        Raises:
            UnknownRegionError: no such region.
            InputError: a region that covers no token, or what :meth:`generate` raises.
        """
        schedule, rounds = self.schedule(options, edit=True), checked_rounds(check)
        text, preset = self.prompt_text(prompt, edit=True), self.preset_name(schedule, options, edit=True)
        prefix = self.inference.prompt_prefix(text.ids)
        picture = open_image(image)
        pixels = self.pixels(picture)
        cells = self.cells(region, picture.size, pixels)
        original = self.encode_pixels(pixels[None])[0]
        tokens = self.token_mask(cells)
        masked = np.where(tokens, self.bundle.layout.mask_code, original)
        step = self.inference.step([prefix])
        codes = decode(
            step, masked[None], [plan(schedule, tokens, seed, self.bundle.layout.block)], [seed], on_step=on_step, cancelled=cancelled
        )[0]
        paste = None
        if keep_outside:
            paste = partial(paste_outside, self.bundle.manifest.pictures.picture(pixels), cells=cells)
        refinements = self.refinements(text, seed, rounds, None, options, edit=True)
        refinements.allow(cells)
        (best,) = self.refined([refinements], codes[None], [prefix], paste=paste, cancelled=cancelled)
        edited, marks, name, found = self.mark(best.picture), self.marks, self.bundle.name, refinements.check
        return EditedFace(edited, best.codes, original, cells, marks, text.wording, prompt, seed, name, found, preset, schedule)

    def schedule(self, options: GenerateOptions | None = None, *, edit: bool = False) -> Schedule:
        """Return the schedule of options, by the bundle's defaults and presets; :class:`InputError` names one that is out of range."""
        bundle = self.bundle
        defaults, presets = (bundle.editing, bundle.editing_presets) if edit else (bundle.generation, bundle.presets)
        return (options or GenerateOptions()).resolve(defaults, presets)

    def preset_name(self, schedule: Schedule, options: GenerateOptions | None = None, *, edit: bool = False) -> str:
        """Return the name of the preset that a schedule is; of presets that are equal, the one that its options ask for."""
        return name_of(schedule, self.bundle.editing_presets if edit else self.bundle.presets, options.quality if options else None)

    def layout(self, layout: LayoutSource | None, face: ImageSource | None, strength: float = STRENGTH) -> Layout | None:
        """Return where regions are to lie, by a map or by another face; None where neither does; errors as of :meth:`generate`."""
        if layout is None and face is None:
            return None
        self.bundle.path("regions")
        names, grid = self.bundle.regions, self.bundle.configuration.tokenizer.grid
        indices, pixels = None if layout is None else map_indices(layout, names), None if face is None else self.pixels(face)
        return Layout(names, grid, indices=indices, face=pixels, strength=strength)

    def refinements(
        self,
        text: PromptText,
        seed: int,
        rounds: int,
        layout: Layout | None,
        options: GenerateOptions | None = None,
        *,
        edit: bool = False,
    ) -> Refinements:
        """Return what follows the first drawing of a prompt's picture: a layout, and a check of so many rounds.

        Where sensitive traits are protected, those of a generated picture are looked at and never named; those of a given one are not
        even looked at.
        """
        schema, policy = self.bundle.schema, self.policy(include_sensitive=False)
        closed = () if policy.open else tuple(slot.name for slot in schema.values() if slot.sensitive)
        wanted = Wanted.of(text.reading, schema, silent=closed)
        wanted = wanted.without(closed) if edit else wanted
        repair = Repair(wanted, self.schedule(options, edit=True), seed, rounds) if rounds else None
        placement = None if layout is None else Placement(wanted, self.schedule(options), seed, layout)
        return Refinements(wanted, layout, placement, repair)

    def refined(
        self,
        refinements: Sequence[Refinements],
        codes: Ids,
        prefixes: Sequence[PromptPrefix],
        *,
        paste: Paste | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> list[Attempt]:
        """Refine finished tokens (B, N), all of them or none; return the best attempt of each."""
        if refinements[0].current is None:
            pictures = self.decode(codes) if paste is None else [paste(picture) for picture in self.decode(codes)]
            return [Attempt(row, picture) for row, picture in zip(codes, pictures, strict=True)]
        grids, active = list(codes), list(range(len(codes)))
        while active:
            for i in active:
                refinements[i].add(self.attempt(refinements[i], grids[i], paste))
            active = [i for i in active if refinements[i].current is not None]
            rows = [self.next_row(refinements[i]) for i in active]
            if rows:
                step, masked = self.inference.step([prefixes[i] for i in active]), np.stack([row.codes for row in rows])
                drawn = decode(step, masked, [row.plan for row in rows], [row.seed for row in rows], cancelled=cancelled)
                for i, row in zip(active, drawn, strict=True):
                    grids[i] = row
        return [each.best for each in refinements if each.best is not None]

    def attempt(self, refinements: Refinements, codes: Ids, paste: Paste | None = None) -> Attempt:
        """Return tokens (N,) with their picture and how the model reads it."""
        picture, wanted, layout = self.finished(codes, paste), refinements.wanted, refinements.layout
        agreement: Mapping[str, float] = {}
        if wanted.slots:
            prefix = self.inference.image_prefix(self.reading_pixels(picture))
            agreement = wanted.agreement(self.questions.report(prefix, self.bundle.schema.select(wanted.slots)))
        if layout is None:
            return Attempt(codes, picture, agreement)
        coverage = self.coverage(self.pixels(picture))
        return Attempt(codes, picture, agreement, coverage, layout.read(self.coverage, coverage).agreement(coverage))

    def next_row(self, refinements: Refinements) -> GridRow:
        """Return the row of the next attempt at a picture whose refinement is in progress."""
        assert refinements.current is not None
        grid, layout = self.bundle.configuration.tokenizer.grid, self.bundle.layout
        workshop = Workshop(
            self.bundle.regions, grid, layout.mask_code, layout.block, self.pixels, self.coverage, self.encode_pixels, self.token_mask
        )
        return refinements.current.next_row(workshop)

    def region_map(self, image: ImageSource, side: int = 512) -> Image.Image:
        """Return where the regions of a face lie, as a picture that ``layout`` takes; a hat and hair that are not there are left out."""
        self.bundle.path("regions")
        asked = [slot for slot in ASKED if slot in self.bundle.schema]
        seen = self.analyze(image, attributes=asked)[0].best if asked else {}
        return drawn_map(self.coverage(self.pixels(image)), self.bundle.regions, side, seen)

    def finished(self, codes: Ids, paste: Paste | None = None) -> Image.Image:
        """Return the picture of tokens (N,) without marks, in an edit's original where there is one."""
        (picture,) = self.decode(codes[None])
        return picture if paste is None else paste(picture)

    def describe(
        self,
        image: ImageSource,
        *,
        max_tokens: int = 128,
        include_sensitive: bool = False,
        on_token: Callable[[str], None] | None = None,
    ) -> Answer:
        """Describe a face in words; ``on_token`` is called with each piece of text as soon as it is certain.

        Raises:
            SensitiveError: the bundle's faces are photographed and ``include_sensitive`` is off.
        """
        self.policy(include_sensitive).check_caption()
        return replace(self._answer(image, self.describe_question, max_tokens, on_token), include_sensitive=include_sensitive)

    def ask(
        self,
        image: ImageSource,
        question: str,
        *,
        max_tokens: int = 64,
        include_sensitive: bool = False,
        on_token: Callable[[str], None] | None = None,
    ) -> Answer:
        """Answer a question about a face; several questions about the last few faces share each face's prefix.

        Raises:
            PromptError: a question that is empty, too long or not plain text.
            SensitiveError: it asks for a sensitive trait of a photographed face, and ``include_sensitive`` is off.
            InputError: ``max_tokens`` below 1.
        """
        self.policy(include_sensitive).check_question(check_text(question, "question"))
        return replace(self._answer(image, question, max_tokens, on_token), include_sensitive=include_sensitive)

    def policy(self, include_sensitive: bool) -> SensitivePolicy:
        """Return what is answered about faces."""
        return SensitivePolicy.of(self.bundle.faces, include=include_sensitive)

    def _answer(self, image: ImageSource, question: str, max_tokens: int, on_token: Callable[[str], None] | None) -> Answer:
        if max_tokens < 1:
            raise InputError(f"max_tokens must be at least 1, got {max_tokens}")
        pixels, layout, stream = self.reading_pixels(image), self.bundle.layout, TextStream(self.tokenizer.decode)
        start = perf_counter()
        times: list[float] = []

        def emit(piece: str) -> None:
            if on_token and piece:
                on_token(piece)

        def on_id(_row: int, token: int) -> None:
            times.append(perf_counter())
            emit(stream.push(token))

        asked = self.questions.ids(check_text(question, "question"))
        extend = self.inference.extend([self.inference.image_prefix(pixels)])
        end, drafts = layout.end_of_text, self.inference.drafts
        if drafts is not None:
            tokens = drafted_answer(extend, drafts, asked, end_of_text=end, max_tokens=max_tokens, on_token=partial(on_id, 0))
        else:
            ids, lengths = left_pad([asked], layout.pad)
            (tokens,) = answer(extend, None, ids, lengths, end_of_text=end, max_tokens=max_tokens, on_token=on_id)
        emit(stream.finish())
        seconds = times[-1] - times[0] if times else 0.0
        return Answer(
            text=self.tokenizer.decode(tokens).strip(),
            tokens=tuple(tokens),
            first_token_ms=1e3 * ((times[0] if times else perf_counter()) - start),
            tokens_per_second=(len(times) - 1) / seconds if seconds > 0 else 0.0,
        )

    def analyze(
        self, images: ImageSource | Sequence[ImageSource], *, attributes: Sequence[str] | None = None, include_sensitive: bool = False
    ) -> list[FaceReport]:
        """Return every attribute of each face with its probability; they do not depend on the other faces, to the last bit.

        Args:
            images: one face or several; up to ``FACES_AT_ONCE`` pass the encoders together.
            attributes: slots to report, in this order; None takes all that are permitted.
            include_sensitive: report sensitive slots of photographed faces too; those of drawn ones always are.

        Raises:
            UnknownAttributeError: a slot that the bundle's schema does not have.
            SensitiveError: a sensitive slot of photographed faces is named, and ``include_sensitive`` is off.
        """
        schema = self.bundle.schema.select(self.policy(include_sensitive).attributes(self.bundle.schema, attributes))
        pixels = [self.reading_pixels(image) for image in listed(images)]
        groups = (pixels[first : first + FACES_AT_ONCE] for first in range(0, len(pixels), FACES_AT_ONCE))
        reports = [report for group in groups for report in self.questions.reports(self.inference.image_prefixes(group), schema)]
        return [replace(report, include_sensitive=include_sensitive) for report in reports]

    def encode(self, images: ImageSource | Sequence[ImageSource]) -> Ids:
        """Return the tokens of pictures, int64 (B, N)."""
        return self.encode_pixels(np.stack([self.pixels(image) for image in listed(images)]))

    def decode(self, codes: Ids) -> list[Image.Image]:
        """Return the pictures of tokens (B, N), each in ``[0, V)``; :class:`~f2edge.errors.InputError` for anything else."""
        layout = self.bundle.layout
        if codes.ndim != 2 or codes.shape[1] != layout.image_tokens or not np.issubdtype(codes.dtype, np.integer):
            raise InputError(f"codes must be whole numbers of shape (images, {layout.image_tokens}), got {codes.dtype} {codes.shape}")
        if codes.size and not 0 <= codes.min() <= codes.max() < layout.codes:
            raise InputError(f"codes must lie in 0 … {layout.codes - 1}; a masked position ({layout.mask_code}) has to be decoded first")

        def picture(row: Ids) -> Image.Image:
            return self.bundle.manifest.pictures.picture(host(self.backend.run("image_decode", {"codes": row[None]})["pixels"])[0])

        return self.backend.each(picture, list(codes.astype(np.int64)))

    def prompt_text(self, prompt: str, layout: Layout | None = None, *, edit: bool = False) -> PromptText:
        """Return a prompt as the model reads it, with words for what it leaves open and a layout's map shows.

        Raises:
            PromptError: what is no text.
        """
        return self._prompts.read(prompt, () if layout is None else layout.words, restated=not edit)

    def draw(self, codes: Ids) -> list[Image.Image]:
        """Return the pictures of tokens as :meth:`generate` does: decoded and marked."""
        return [self.mark(image) for image in self.decode(codes)]

    def mark(self, image: Image.Image) -> Image.Image:
        """Return the picture with the pipeline's watermark, if there is one."""
        return image if self.watermark is None else self.watermark.embed(image)

    @property
    def marks(self) -> tuple[str, ...]:
        """What :meth:`mark` leaves in pixels."""
        return () if self.watermark is None else ("watermark",)

    def encode_pixels(self, pixels: NDArray[np.float32]) -> Ids:
        """Pixels (B, 3, Y, X) → codes (B, N), one picture at a time, so that its tokens do not depend on the others."""
        return np.concatenate([host(self.backend.run("image_encode", {"pixels": p[None]})["codes"]) for p in pixels])

    def pixels(self, image: ImageSource) -> NDArray[np.float32]:
        """Return the centred square of a picture as the image tokenizer sees it, float32 (3, Y, X) in [-1, 1]."""
        return self.bundle.manifest.pictures.pixels(open_image(image), self.bundle.configuration.tokenizer.image_size)

    def reading_pixels(self, image: ImageSource) -> NDArray[np.float32]:
        """Return the same as understanding sees it: of another size where the model reads pictures by an encoder's features."""
        return self.bundle.manifest.pictures.pixels(open_image(image), self.bundle.configuration.understanding_size)

    def masked(self, region: Region) -> Region:
        """Return a mask as cells, where the model's law of pictures says how; any other region unchanged."""
        law, tokenizer = self.bundle.manifest.pictures, self.bundle.configuration.tokenizer
        if law.mask_cells is None or not isinstance(region, Image.Image):
            return region
        return law.mask_cells(region, tokenizer.image_size, tokenizer.grid)

    def token_mask(self, cells: Cells) -> NDArray[np.bool_]:
        """Return the tokens (N,) of cells (G, G)."""
        return tokens_of_cells(cells, self.bundle.configuration.tokenizer)

    def cells(self, region: Region, image_wh: tuple[int, int], pixels: NDArray[np.float32]) -> Cells:
        """Return the token cells (G, G) of a region of a picture of that size; the parser sees ``pixels`` where the region is a name."""
        grid, coverage = self.bundle.configuration.tokenizer.grid, partial(self.coverage, pixels)
        return region_cells(self.masked(region), image_wh, grid, self.bundle.regions, coverage)

    def coverage(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the parser's shares (K, G, G) of each region in pixels (3, Y, X)."""
        return np.asarray(host(self.backend.run("regions", {"pixels": pixels[None]})["coverage"])[0], dtype=np.float32)
