"""Options of an export, checked before a model is loaded: at paper size a late error costs an hour."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.data.text.tokenizer import read_text_tokenizer
from export.destination import check_destination
from f2edge.errors import InputError


@dataclass(frozen=True)
class ExportRequest:
    """Destination, manifest fields and measurement sizes of an export.

    Attributes:
        out: the bundle's folder, which gives the bundle its name; an existing bundle is replaced.
        text: ``tokenizer.json`` of the text tokenizer.
        quality: JSON of ``python -m bench quality``, copied into the manifest.
        description: one sentence for the manifest.
        prompts: number of prompts for calibration and parity.
        faces: number of faces for calibration and parity.
        largest_mb: maximum size of the bundle in MiB.
        photographed: the training pictures were photographs, not this project's renders.
        reading: number of renders that probabilities and the model's domain are fitted on (:mod:`export.reading`); 0 for none.

    Raises:
        InputError: a number is out of range, or the text tokenizer or the quality metrics cannot be read.
        OutputError: the bundle cannot be written to ``out``.
    """

    out: Path
    text: Path
    quality: Path | None = None
    description: str = ""
    prompts: int = 50
    faces: int = 4
    largest_mb: float | None = None
    reading: int = 0
    photographed: bool = False

    def __post_init__(self) -> None:
        if self.prompts < 1 or self.faces < 1:
            raise InputError(f"prompts {self.prompts} and faces {self.faces} must be at least 1 each: parity is measured on them")
        if self.reading and self.reading < _LEAST_READING:
            raise InputError(f"reading {self.reading}: give 0, or at least {_LEAST_READING} renders")
        if self.largest_mb is not None and not 0 < self.largest_mb < math.inf:
            raise InputError(f"--largest-mb {self.largest_mb}: must be a number of MiB above 0")
        check_destination(self.out)
        read_text_tokenizer(self.text)
        self.quality_metrics()

    @property
    def largest_bytes(self) -> int | None:
        """Maximum size of the bundle in bytes."""
        return None if self.largest_mb is None else int(self.largest_mb * 2**20)

    def quality_metrics(self) -> Mapping[str, Any] | None:
        """Read ``quality``; raises :class:`InputError` for anything but a JSON object with finite numbers."""
        if self.quality is None:
            return None
        try:
            row = json.loads(self.quality.read_text(encoding="utf-8"), parse_constant=_refuse)
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"quality metrics {self.quality}: cannot be read as JSON ({error}); {_QUALITY_CURE}") from error
        if not isinstance(row, dict):
            raise InputError(f"quality metrics {self.quality}: not a JSON object; {_QUALITY_CURE}")
        return row


_LEAST_READING = 16
_QUALITY_CURE = "give the quality.json that `python -m bench quality --out FOLDER` wrote"


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not a finite number")
