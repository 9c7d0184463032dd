"""Options and results of a face pipeline: plain frozen data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from f2edge.decoding.presets import Presets, built_in, check_quality
from f2edge.decoding.schedule import Schedule
from f2edge.errors import InputError
from f2edge.provenance.labelled import LabelledPicture
from f2edge.spec.layout import Ids
from f2edge.spec.lexicon import Wording


@dataclass(frozen=True)
class GenerateOptions:
    """Options of decoding; None takes the bundle's default.  Meaning and ranges: :class:`~f2edge.decoding.schedule.Schedule`.

    ``quality`` takes a named preset of the bundle instead (:mod:`f2edge.decoding.presets`); other options then change that.
    """

    steps: int | None = None
    guidance: float | None = None
    order: str | None = None
    mask_law: str | None = None
    temperature: float | None = None
    temperature_law: str | None = None
    token_temperature: float | None = None
    guidance_interval: tuple[float, float] | None = None
    guidance_ramp: bool | None = None
    quality: str | None = None

    def resolve(self, defaults: Schedule, presets: Presets | None = None) -> Schedule:
        """Return the schedule, checked; :class:`~f2edge.errors.InputError` names an option that is out of range.

        Args:
            defaults: where neither ``quality`` nor the option is given.
            presets: the bundle's; None makes them from the defaults.
        """
        if self.quality is not None:
            defaults = (presets or built_in(defaults))[check_quality(self.quality)].schedule
        return replace(defaults, **self.changes)

    @property
    def changes(self) -> dict[str, Any]:
        """The options that are given, without ``quality``."""
        found = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "quality"}
        return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True)
class Check:
    """How the model itself reads a picture that it drew, held against its prompt.

    Attributes:
        score: 0 … 1, the share of the attributes that the prompt names which the picture shows; 1 where it names none.
        missing: attributes that the prompt names and the picture does not show.
        named: attributes that were looked at.
        repairs: how often parts of the picture were drawn again.
    """

    score: float
    missing: tuple[str, ...]
    named: int
    repairs: int


@dataclass(frozen=True)
class GeneratedFace(LabelledPicture):
    """A generated picture.

    Attributes:
        image: RGB.
        codes: int64 (N,), its tokens.
        prompt: as it was given.
        seed: in ``[0, 2^64)``; with the prompt and the options it fixes the tokens.
        options: the schedule used, defaults filled in.
        step_ms: duration of each step of its batch.
        marks: what its pixels carry: ("watermark",) or nothing.
        wording: what the model made of the prompt's words.
        bundle: name of the model.
        check: how the model reads it; None where that was not asked for.
        preset: name of the preset whose options were followed; "" for options of one's own.
        layout_agreement: 0 … 1, how far its regions lie as the layout wants them (intersection over union, by the model's own eyes);
            None without a layout.
    """

    image: Image.Image
    codes: Ids
    prompt: str
    seed: int
    options: Schedule
    step_ms: tuple[float, ...]
    marks: tuple[str, ...] = ()
    wording: Wording = field(default_factory=Wording)
    bundle: str = ""
    check: Check | None = None
    preset: str = ""
    layout_agreement: float | None = None

    @property
    def unmatched(self) -> tuple[str, ...]:
        """Words of the prompt that the model does not know."""
        return self.wording.unmatched


@dataclass(frozen=True)
class EditedFace(LabelledPicture):
    """An edited picture.

    Attributes:
        image: RGB; outside the region it shows the original's pixels, under the watermark, unless that was declined.
        codes: int64 (N,); equal to ``original_codes`` wherever ``region`` is false.
        original_codes: int64 (N,), tokens of the picture given.
        region: bool (G, G), the token cells that were decoded anew.
        marks: what its pixels carry: ("watermark",) or nothing.
        wording: what the model made of the prompt's words.
        prompt, seed: as they were given.
        bundle: name of the model.
        check: how the model reads it; None where that was not asked for.
        preset: name of the preset whose options were followed; "" for options of one's own.
        options: the schedule used, defaults filled in.
    """

    image: Image.Image
    codes: Ids
    original_codes: Ids
    region: NDArray[np.bool_]
    marks: tuple[str, ...] = ()
    wording: Wording = field(default_factory=Wording)
    prompt: str = ""
    seed: int = 0
    bundle: str = ""
    check: Check | None = None
    preset: str = ""
    options: Schedule | None = None
    _edited = True

    @property
    def unmatched(self) -> tuple[str, ...]:
        """Words of the prompt that the model does not know."""
        return self.wording.unmatched


@dataclass(frozen=True)
class Answer:
    """An answer in words.

    Attributes:
        text: without surrounding blanks.
        tokens: its token ids, without the end of text.
        first_token_ms: from the call to the first token, image encoding included.
        tokens_per_second: rate after the first token; 0 where there is no second one.
        include_sensitive: whether sensitive traits were asked for (:mod:`f2edge.spec.sensitive`).
    """

    text: str
    tokens: tuple[int, ...]
    first_token_ms: float
    tokens_per_second: float
    include_sensitive: bool = False


@dataclass(frozen=True)
class FaceReport:
    """Every attribute of one face.

    Attributes:
        probabilities: ``[slot][value]``, summing to 1 over each slot's values.
        hidden: slot → probability that the picture does not show it; empty where the model cannot tell.
        unfamiliar: 0 … 1, how sure it is that this is no face of the kind that the model knows; None where the model cannot tell.
        include_sensitive: whether sensitive traits were asked for (:mod:`f2edge.spec.sensitive`).
    """

    probabilities: Mapping[str, Mapping[str, float]]
    hidden: Mapping[str, float] = field(default_factory=dict)
    unfamiliar: float | None = None
    include_sensitive: bool = False

    @property
    def best(self) -> dict[str, str]:
        """The most probable value of each slot."""
        return {slot: max(values, key=values.__getitem__) for slot, values in self.probabilities.items()}

    def _repr_html_(self) -> str:
        best = self.best
        rows = (
            f"<tr><td>{escape(slot.replace('_', ' '))}</td><td>{escape(best[slot].replace('_', ' '))}</td>"
            f'<td style="text-align:right">{100 * values[best[slot]]:.0f} %</td>'
            f'<td><meter min="0" max="1" value="{values[best[slot]]:.3f}"></meter></td></tr>'
            for slot, values in self.probabilities.items()
        )
        return f"<table><tr><th>attribute</th><th>value</th><th></th><th>probability</th></tr>{''.join(rows)}</table>"


def paired(prompts: str | Sequence[str], seeds: int | Sequence[int]) -> Iterator[tuple[str, int]]:
    """Return pairs of prompt and seed; one of either goes with all of the other.  :class:`InputError` where the numbers do not fit."""
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    numbers = [seeds] if isinstance(seeds, int) else list(seeds)
    count = max(len(texts), len(numbers))
    if not texts or not numbers or {len(texts), len(numbers)} - {1, count}:
        raise InputError(f"{len(texts)} prompts and {len(numbers)} seeds do not pair; give one of either, or as many seeds as prompts")
    return zip(texts * (count // len(texts)), numbers * (count // len(numbers)), strict=True)
