"""Checks of external encoders, which the paper-size model needs and users provide because of their licences.

* identity: AntelopeV2's ``glintr100.onnx`` (InsightFace), an aligned face (1, 3, 112, 112) → 512 values;
* semantic: CLIP ViT-L/14, as a folder of Hugging Face's layout, hidden width 1024.

    identity_encoder(Path("antelopev2/glintr100.onnx"), sha256="…")
    semantic_encoder(Path("clip-vit-large-patch14"))

Nothing is downloaded, and no code of a file is executed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import onnx

from export.checkpoints.weight_files import Shape, mismatches, open_weights, read_json
from f2edge.errors import InputError

ANTELOPE = "AntelopeV2 (glintr100.onnx of InsightFace's antelopev2 pack; licence: non-commercial research only)"
CLIP = "CLIP ViT-L/14 (a folder with config.json and weights, such as openai/clip-vit-large-patch14; licence: MIT)"
_FACE: Shape = (1, 3, 112, 112)
_IDENTITY = 512
CLIP_WIDTH, CLIP_LAYERS, CLIP_PATCH = 1024, 24, 14


@dataclass(frozen=True)
class ExternalEncoder:
    """A file or folder that passed its check.

    Attributes:
        path: of it.
        licence: what its name and licence are, for manifests and messages.
        image_size: pixels along one side of its input.
        vectors: feature vectors of one image, without CLIP's class token.
        width: values of one vector.
        sha256: of the file, or of a folder's weights where one file holds them; "" where shards do.
    """

    path: Path
    licence: str
    image_size: int
    vectors: int
    width: int
    sha256: str


def identity_encoder(path: Path | None, sha256: str | None = None) -> ExternalEncoder:
    """AntelopeV2's recognition network.

    Args:
        path: of ``glintr100.onnx``.
        sha256: refuse a file with another sum.

    Raises:
        InputError: not given, not there, another sum, no ONNX, or other inputs and outputs; names the licence.
    """
    file = _given(path, ANTELOPE, "the identity encoder")
    if not file.is_file():
        raise InputError(f"{file}: no such file; bring {ANTELOPE}")
    found = _checked_sum(file, sha256, ANTELOPE)
    try:
        graph = onnx.load(str(file), load_external_data=False).graph
    except Exception as error:  # protobuf's errors share no base
        raise InputError(f"{file}: cannot be read as ONNX ({error}); bring {ANTELOPE}") from error
    stored = {tensor.name for tensor in graph.initializer}
    inputs = [_shape(value) for value in graph.input if value.name not in stored]
    outputs = [_shape(value) for value in graph.output]
    fits = len(inputs) == 1 and len(outputs) == 1 and _agrees(inputs[0], _FACE) and _agrees(outputs[0], (1, _IDENTITY))
    if not fits:
        raise InputError(
            f"{file}: takes {_words(inputs)} and gives {_words(outputs)}, must take 1x3x112x112 and give 1x512; bring {ANTELOPE}"
        )
    return ExternalEncoder(file, ANTELOPE, _FACE[-1], 1, _IDENTITY, found)


def semantic_encoder(path: Path | None, sha256: str | None = None) -> ExternalEncoder:
    """CLIP's vision tower.

    Args:
        path: a folder with ``config.json`` and weights of the whole CLIP or of its vision model.
        sha256: refuse a folder whose one weights file has another sum.

    Raises:
        InputError: not given, not there, another sum, or another model; names the licence.
    """
    folder = _given(path, CLIP, "the semantic encoder")
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: has no config.json; bring {CLIP}")
    config = read_json(folder / "config.json")
    vision = config.get("vision_config", config)
    wanted = {"hidden_size": CLIP_WIDTH, "num_hidden_layers": CLIP_LAYERS, "patch_size": CLIP_PATCH}
    wrong = [f"{key} is {vision.get(key)}, must be {value}" for key, value in wanted.items() if vision.get(key, value) != value]
    size = vision.get("image_size", 224)
    if not isinstance(size, int) or size < CLIP_PATCH or size % CLIP_PATCH:
        wrong.append(f"image_size is {size}, must be a multiple of {CLIP_PATCH}")
    if wrong:
        raise InputError(f"{folder}/config.json: {'; '.join(wrong)}; bring {CLIP}")
    patches = (size // CLIP_PATCH) ** 2
    weights = open_weights(folder)
    prefix = clip_prefix(weights.infos)
    at = f"{prefix}embeddings."
    expected = {
        f"{at}class_embedding": (CLIP_WIDTH,),
        f"{at}patch_embedding.weight": (CLIP_WIDTH, 3, CLIP_PATCH, CLIP_PATCH),
        f"{at}position_embedding.weight": (patches + 1, CLIP_WIDTH),
        **{f"{prefix}encoder.layers.{i}.self_attn.q_proj.weight": (CLIP_WIDTH, CLIP_WIDTH) for i in range(CLIP_LAYERS)},
    }
    lines = mismatches({name: info for name, info in weights.infos.items() if name in expected}, expected)
    if lines:
        raise InputError("\n  ".join((f"{folder}: is another model; bring {CLIP}", *lines)))
    files = [file for file in (*folder.glob("*.safetensors"), *folder.glob("*.bin")) if file.is_file()]
    if sha256 is not None and len(files) != 1:
        raise InputError(f"{folder}: holds {len(files)} weights files, a sum can be checked for one only; keep the one that is meant")
    return ExternalEncoder(folder, CLIP, size, patches, CLIP_WIDTH, _checked_sum(files[0], sha256, CLIP) if len(files) == 1 else "")


def clip_prefix(names: Iterable[str]) -> str:
    """Return what the vision tower's names begin with: "vision_model.", or nothing in files of its own that transformers 5 writes."""
    return "" if "embeddings.class_embedding" in names else "vision_model."


def _given(path: Path | None, what: str, part: str) -> Path:
    if path is None:
        raise InputError(f"{part} is not part of this project and was not given; bring {what}")
    return path


def _checked_sum(file: Path, expected: str | None, what: str) -> str:
    with file.open("rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
    found = digest.hexdigest()
    if expected is not None and found != expected.lower():
        raise InputError(f"{file}: sha256 is {found}, expected {expected.lower()}; the file is damaged or another one; bring {what}")
    return found


def _shape(value: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    return tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in value.type.tensor_type.shape.dim)


def _agrees(shape: tuple[int | str, ...], wanted: Shape) -> bool:
    """Whether a shape is the wanted one; the batch may be open."""
    return shape[1:] == wanted[1:] and len(shape) == len(wanted) and (isinstance(shape[0], str) or shape[0] == 1)


def _words(shapes: list[tuple[int | str, ...]]) -> str:
    return ", ".join("x".join(map(str, shape)) for shape in shapes) or "nothing"
