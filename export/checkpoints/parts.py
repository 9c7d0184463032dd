"""The frozen parts of a model, by name: image tokenizer, encoders and region parser, out of runs, bundles and other people's files.

    parts = open_parts(PartNames(tokenizer="nano", encoders="nano"), configuration_named("nano"))
    parts = open_parts(PartNames(tokenizer="runs/magvit", clip="clip-vit-large-patch14", antelope="glintr100.onnx"), PAPER)

A cache remembers the names and the checksums, so that training and export use the parts that it was made with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from export.checkpoints.clip_vision import clip_vision
from export.checkpoints.external_encoders import identity_encoder
from export.checkpoints.face_inputs import FaceTo112, Resized
from export.checkpoints.stored_graphs import StoredGraph, StoredTokenizer, stored_graph
from export.graph.trace import Models
from f2edge.bundle.bundle import Bundle, find
from f2edge.bundle.manifest import Alignment
from f2edge.errors import BundleError, InputError
from f2edge.spec.configuration import FeatureShape, ImageTokenizerConfiguration, ModelConfiguration


@dataclass(frozen=True)
class PartNames:
    """Where the parts are: folders of runs, weights files, or names and folders of bundles.

    Attributes:
        tokenizer: image tokenizer: a run, an import (MAGVIT-v2) or a bundle.
        encoders: semantic and identity encoder and region parser: a run or a bundle.
        clip: folder of CLIP ViT-L/14 in Hugging Face's layout, instead of the semantic encoder.
        antelope: AntelopeV2's ``glintr100.onnx``, instead of the identity encoder.
    """

    tokenizer: str
    encoders: str | None = None
    clip: str | None = None
    antelope: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the names that are given, paths in full, and a checksum of each that is a file or holds weights."""
        names = {key: value for key, value in asdict(self).items() if value is not None}
        return {
            "names": {key: str(Path(value).absolute()) if Path(value).exists() else value for key, value in names.items()},
            "sums": {key: _sum(value) for key, value in names.items()},
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> PartNames:
        """Return the names that :meth:`to_json` wrote; raises :class:`InputError` where a part has changed since."""
        names = cls(**row["names"])
        for key, value in row["names"].items():
            if _sum(value) != row["sums"][key]:
                raise InputError(f"{value}: is missing or has changed since the token cache was made with it; bring that file back")
        return names


def _sum(name: str) -> str:
    """Return a checksum over the weights of a part: a file, or the weights files of a run's or bundle's folder."""
    path = Path(name)
    if not path.exists():
        try:
            path = find(name)
        except BundleError:
            return ""
    files = [path] if path.is_file() else sorted(file for file in path.glob("*") if file.suffix in {".safetensors", ".bin", ".onnx"})
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def portrait_alignment() -> Alignment:
    """Return where a face lies in the pictures of this project's models: that of the embedded bundle."""
    found = Bundle.load("nano", verify=False).manifest.alignment
    assert found is not None
    return found


def open_parts(names: PartNames, configuration: ModelConfiguration) -> Models:
    """Return the parts, without a transformer, and the configuration that they have.

    Raises:
        InputError: a part is missing or does not fit the configuration.
    """
    tokenizer = tokenizer_of(names.tokenizer)
    shape = tokenizer.configuration
    assert isinstance(shape, ImageTokenizerConfiguration)
    chosen = replace(configuration, tokenizer=shape)
    parts: dict[str, Any] = {"semantic": None, "identity": None, "parser": None, "regions": ()}
    if names.encoders is not None:
        parts |= encoders_of(names.encoders, chosen)
    if names.clip is not None:
        parts["semantic"] = _clip(Path(names.clip), chosen)
    if names.antelope is not None:
        parts["identity"] = _antelope(Path(names.antelope), chosen)
    for kind in ("semantic", "identity"):
        if getattr(chosen, kind) is not None and parts[kind] is None:
            raise InputError(
                f"configuration {configuration.name!r} has a {kind} encoder; give --encoders, or "
                f"{'--clip FOLDER' if kind == 'semantic' else '--antelope FILE'}"
            )
    return Models(chosen, None, tokenizer, **parts)


def bundle_named(name: str) -> Bundle | None:
    """Return the bundle of this name or folder; None where it is something else, such as a run."""
    try:
        return Bundle.load(name)
    except BundleError:
        if (Path(name) / "manifest.json").is_file():
            raise
        return None


def tokenizer_of(name: str) -> nn.Module:
    """Return the image tokenizer of a run, a weights file or a bundle."""
    bundle = bundle_named(name)
    if bundle is not None:
        return StoredTokenizer(bundle)
    from export.training.tokenizer import load_tokenizer

    return load_tokenizer(Path(name))


def encoders_of(name: str, configuration: ModelConfiguration) -> dict[str, Any]:
    """Return the encoders and the parser of a run or a bundle, by the names of :class:`Models`."""
    bundle = bundle_named(name)
    if bundle is None:
        from export.training.encoders import load_encoders

        trained = load_encoders(Path(name), configuration)
        return {
            "semantic": trained.semantic, "identity": trained.identity, "parser": trained.regions, "regions": trained.region_names
        }  # fmt: skip
    own = bundle.configuration
    if (own.semantic, own.identity, own.tokenizer.image_size) != (
        configuration.semantic, configuration.identity, configuration.tokenizer.image_size
    ):  # fmt: skip
        raise InputError(f"bundle {bundle.name!r}: gives {own.semantic} and {own.identity}; {configuration.name!r} reads others")
    graphs = {kind: stored_graph(bundle, kind) for kind in ("semantic", "identity")}
    if not bundle.has("regions"):
        return dict(graphs)
    return {**graphs, "parser": stored_graph(bundle, "regions"), "regions": bundle.regions}


def _clip(folder: Path, configuration: ModelConfiguration) -> nn.Module:
    encoder, found = clip_vision(folder)
    wanted, size = configuration.semantic, configuration.tokenizer.image_size
    if wanted is None or (wanted.vectors, wanted.width) != (found.vectors, found.width):
        raise InputError(f"{folder}: gives {FeatureShape(found.vectors, found.width)}; {configuration.name!r} reads {wanted}")
    return encoder if found.image_size == size else nn.Sequential(Resized(size, found.image_size), encoder)


def _antelope(file: Path, configuration: ModelConfiguration) -> StoredGraph:
    found = identity_encoder(file)
    if configuration.identity is None or (configuration.identity.vectors, configuration.identity.width) != (1, found.width):
        raise InputError(f"{file}: gives 1 x {found.width} values; {configuration.name!r} reads {configuration.identity}")
    template = np.array(portrait_alignment().landmarks)
    return StoredGraph(file, before=FaceTo112(configuration.tokenizer.image_size, template, _normalizes(file)), features=True)


def _normalizes(file: Path) -> bool:
    """Whether a recognition network begins with its own normalization and reads 0 … 255, as those converted from MXNet do."""
    import onnx

    first = onnx.load(str(file), load_external_data=False).graph.node[:8]
    return all(any(node.name.startswith(names) for node in first) for names in (("Sub", "_minus"), ("Mul", "_mul")))
