"""Upcycling as a command of its own: a dense transformer in, a start for training out."""

from __future__ import annotations

import json
from pathlib import Path

from export.data.text.dialogues import TextMaker
from export.data.text.tokenizer import read_text_tokenizer
from export.data.tokens import TokenCache
from export.training.checkpoint import save_weights
from export.training.start import Report, start
from export.training.unified import UnifiedTask
from f2edge.errors import InputError
from f2edge.spec.configuration import ModelConfiguration


def write_upcycled(
    dense: Path,
    configuration: ModelConfiguration,
    out: Path,
    *,
    tokens: Path,
    text: Path,
    batch: int,
    validation_rows: int,
    report: Report,
) -> Path:
    """Write ``OUT/unified.safetensors``, a start for ``configuration`` from a dense model; returns the file.

    Measured on the first batches of a training with these tokens; see :mod:`export.training.start`.
    """
    if not configuration.token_experts.routed:
        raise InputError(f"configuration {configuration.name!r} has no routed experts; choose one that has, such as 1.8b-exact")
    texts = TextMaker(read_text_tokenizer(text), configuration)
    task = UnifiedTask(TokenCache(tokens), texts, batch, configuration=configuration, validation_rows=validation_rows)
    start(task.model, dense, task.parts, report)
    file = out / "unified.safetensors"
    save_weights(file, task.model, {"configuration": json.dumps(configuration.to_json())})
    return file
