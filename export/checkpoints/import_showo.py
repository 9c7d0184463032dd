r"""Conversion of published Show-o weights: implementation of ``python -m export import-showo``.

    python -m export import-showo --showo show-o --magvit magvitv2 --out runs/show-o [--dry-run]

Reads the Hugging Face layouts of ``showlab/show-o`` (256 and 512 pixels, with and without CLIP-ViT) and ``showlab/magvitv2``, checks every
name, shape and value, and then writes, one tensor at a time and in the dtype of the source:

    OUT/unified.safetensors      the transformer                  OUT/tokenizer.safetensors   the image tokenizer

What works with which checkpoint: pictures from words, edits and answers with all.  One with CLIP-ViT answers by CLIP's features behind a
system prompt; its export takes the folder of ``openai/clip-vit-large-patch14-336`` as ``--encoders``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from math import isqrt
from pathlib import Path
from typing import Any

from torch import Tensor

from export.checkpoints import magvit2 as magvit2_checkpoint
from export.checkpoints import showo as showo_checkpoint
from export.checkpoints.showo import READS_FEATURES
from export.checkpoints.weight_files import (
    ExternalWeights,
    Shape,
    TensorInfo,
    check_finite,
    mismatches,
    open_weights,
    read_json,
    write_streamed,
)
from f2edge.errors import InputError
from f2edge.spec.configuration import SHOW_O, ModelConfiguration

UNIFIED, TOKENIZER = "unified.safetensors", "tokenizer.safetensors"


@dataclass(frozen=True)
class Part:
    """One file to be written: what it is, where it comes from, and its tensors.

    Attributes:
        name: for people.
        file: its name in the output folder.
        weights: where it is read from.
        shapes: of the tensors written.
        tensors: gives them, one at a time.
        configuration: stored in the file.
    """

    name: str
    file: str
    weights: ExternalWeights
    shapes: Mapping[str, Shape]
    tensors: Callable[[], Iterable[tuple[str, Tensor]]]
    configuration: Mapping[str, Any]

    def infos(self) -> dict[str, TensorInfo]:
        return {name: TensorInfo(shape, self.weights.float_dtype) for name, shape in self.shapes.items()}


@dataclass(frozen=True)
class RecognizedCheckpoints:
    """What the two folders hold: the configuration, and the files that they give."""

    configuration: ModelConfiguration
    parts: tuple[Part, ...]

    def table(self) -> str:
        """What was recognized, one line for each file."""
        rows = [("part", "from", "tensors", "values", "numbers", "to")]
        for part in self.parts:
            infos = part.infos()
            values = sum(info.values for info in infos.values())
            source = f"{part.weights.source} ({len(part.weights)} tensors)"
            rows.append(
                (part.name, source, str(len(infos)), f"{values:,}", str(part.weights.float_dtype).removeprefix("torch."), part.file)
            )
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def recognize(showo: Path, magvit: Path, size: int | None = None, base: ModelConfiguration = SHOW_O) -> RecognizedCheckpoints:
    """Look at both folders; of the tensors only the tokenizer's two tables are read.

    Args:
        showo: folder of the transformer, or its weights file.
        magvit: likewise, of the image tokenizer.
        size: pixels along one side of the pictures; None takes it from ``config.json``.
        base: sizes of the transformer and the tokenizer.

    Raises:
        InputError: not there, unreadable, swapped, or other tensors than the published ones; all differences are listed.
    """
    transformer, tokenizer = open_weights(showo), open_weights(magvit)
    _refuse_exchanged(transformer, tokenizer)
    configuration, lines = _configured(showo, size, base)
    if showo_checkpoint.has_projector(transformer.infos) or _config(showo).get("w_clip_vit") is True:
        configuration = replace(configuration, **READS_FEATURES)
    complaints = _listed(showo, "Show-o checkpoint", lines, transformer, showo_checkpoint.published_shapes(configuration))
    kind = str(_config(magvit).get("_class_name", "MAGVITv2"))
    lines = [] if kind.lower() == "magvitv2" else [f"config.json names a {kind}"]
    complaints += _listed(magvit, "MAGVIT-v2 checkpoint", lines, tokenizer, magvit2_checkpoint.published_shapes(configuration.tokenizer))
    if complaints:
        raise InputError("\n".join(complaints))
    magvit2_checkpoint.check_tables(tokenizer, configuration.tokenizer)
    model_row, tokenizer_row = configuration.to_json(), asdict(configuration.tokenizer)
    shapes, tokenizer_shapes = showo_checkpoint.own_shapes(configuration), magvit2_checkpoint.own_shapes(configuration.tokenizer)
    parts = [
        Part(
            f"Show-o transformer, {configuration.tokenizer.image_size} px", UNIFIED, transformer, shapes,
            lambda: showo_checkpoint.renamed(transformer, configuration), model_row,
        ),
        Part(
            "MAGVIT-v2 image tokenizer", TOKENIZER, tokenizer, tokenizer_shapes,
            lambda: magvit2_checkpoint.renamed(tokenizer), tokenizer_row,
        ),
    ]  # fmt: skip
    return RecognizedCheckpoints(configuration, tuple(parts))


def _refuse_exchanged(transformer: ExternalWeights, tokenizer: ExternalWeights) -> None:
    """Raise :class:`InputError` where a folder holds the other one's model."""
    first, second = magvit2_checkpoint.is_tokenizer(transformer.infos), showo_checkpoint.is_transformer(tokenizer.infos)
    if first and second:
        raise InputError(
            f"{transformer.source} holds MAGVIT-v2 and {tokenizer.source} holds Show-o: the two are swapped; exchange --showo and --magvit"
        )
    if first:
        raise InputError(f"{transformer.source}: holds MAGVIT-v2; give the folder of Show-o as --showo")
    if second:
        raise InputError(f"{tokenizer.source}: holds Show-o; give the folder of MAGVIT-v2 as --magvit")


def _config(path: Path) -> dict[str, Any]:
    """The ``config.json`` of a folder; empty where there is none or a file was given."""
    file = path / "config.json"
    return read_json(file) if file.is_file() else {}


def _configured(showo: Path, size: int | None, base: ModelConfiguration) -> tuple[ModelConfiguration, list[str]]:
    """``base`` at the size that was asked or that the folder's configuration names, and what else of it disagrees with ``base``."""
    config = _config(showo)
    expected = {
        "_class_name": "Showo",
        "vocab_size": base.vocabulary,
        "llm_vocab_size": base.text_vocabulary,
        "codebook_size": base.codes,
        "mask_token_id": base.vocabulary - 1,
    }
    lines = [f"config.json: {key} is {config[key]}, must be {value}" for key, value in expected.items() if config.get(key, value) != value]
    tokens = config.get("num_vq_tokens")
    known = isinstance(tokens, int) and tokens > 0 and isqrt(tokens) ** 2 == tokens
    if size is None and not known:
        raise InputError(f"{showo}: config.json does not tell the size of its pictures (num_vq_tokens); give --size 256 or --size 512")
    if isinstance(tokens, int) and known:
        stated = isqrt(tokens) * base.tokenizer.downsampling
        if size not in {None, stated}:
            raise InputError(f"--size {size}: {showo}/config.json says {tokens} tokens, which is {stated} pixels; leave --size out")
        size = stated
    assert size is not None
    if size % base.tokenizer.downsampling or size < base.tokenizer.downsampling:
        raise InputError(f"--size {size}: must be a multiple of {base.tokenizer.downsampling}, as 256 or 512")
    return replace(base, tokenizer=replace(base.tokenizer, image_size=size)), lines


def _listed(path: Path, what: str, lines: list[str], weights: ExternalWeights, expected: Mapping[str, Shape]) -> list[str]:
    """The complaints about one folder: one line for one, a heading above several; empty where there are none."""
    lines = lines + mismatches(weights.infos, expected)
    lines += [f"not float  {name} is {info.dtype}" for name, info in weights.infos.items() if _integer(name, info)]
    if len(lines) < 2:
        return [f"{path}: this is no {what}: {line}" for line in lines]
    return [f"{path}: this is no {what} ({len(lines)} differences)", *(f"  {line}" for line in lines)]


def _integer(name: str, info: TensorInfo) -> bool:
    return not info.dtype.is_floating_point and not name.startswith("quantize.")


def import_show_o(
    showo: Path,
    magvit: Path,
    out: Path,
    *,
    size: int | None = None,
    dry_run: bool = False,
    base: ModelConfiguration = SHOW_O,
    progress: Callable[[str], None] = print,
) -> list[Path]:
    """Check both folders, say what they are, and write them as our own checkpoints.

    Args:
        showo: as in :func:`recognize`.
        magvit: likewise.
        out: folder of the files, made where it does not exist.
        size: as in :func:`recognize`.
        dry_run: check and say only.
        base: as in :func:`recognize`.
        progress: told the table and each file written.

    Returns:
        the files written, which ``python -m export onnx --unified OUT --tokenizer OUT`` reads.

    Raises:
        InputError: as in :func:`recognize`, or a tensor has a NaN or an infinity; nothing is written.
        OutputError: the folder cannot be written, or the disk is too small; none of the files is left.
    """
    recognized = recognize(showo, magvit, size, base)
    for part in recognized.parts:
        check_finite(part.weights)
    progress(recognized.table())
    if dry_run:
        return []
    written: list[Path] = []
    new = not out.exists()
    try:
        for part in recognized.parts:
            write_streamed(out / part.file, part.infos(), part.tensors(), {"configuration": json.dumps(part.configuration)})
            written.append(out / part.file)
            progress(f"wrote {out / part.file}")
    except BaseException:
        for file in written:
            file.unlink(missing_ok=True)
        if new and out.is_dir():
            out.rmdir()
        raise
    return written
