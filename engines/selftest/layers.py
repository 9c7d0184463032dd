"""Self-test forms of a transformer's graphs: the same graph with the state between its layers as further outputs.

The state that enters a layer is the input of its LayerNormalization, whose weights are known by their names, so any exported graph can be
given these outputs; bytes are appended to the ONNX file, and nothing in it changes.  Forms are made for a self-test, never shipped:
ONNX Runtime reads them from memory; for TensorRT a bundle of forms is written, built and tested like any other (:func:`write_forms`).
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from f2edge.backends.onnxruntime import OnnxRuntimeBackend
from f2edge.bundle.bundle import MANIFEST, Bundle, write_manifest
from f2edge.bundle.onnx_messages import message
from f2edge.errors import InputError, OutputError
from f2edge.spec.graphs import STATE

_NORM = re.compile(rb"\w+\.(?:blocks\.\d+\.)?norm\.(?:weight|bias)")
#: ``TensorProto.FLOAT`` and ``AttributeProto.INT`` of ONNX.
_FLOAT, _INT = 1, 2
_AXES = ("state_rows", "state_width")
#: ONNX Runtime: where the weights of a graph in memory are.
FOLDER = "session.model_external_initializers_file_folder_path"


def states(model: bytes, every: int = 1) -> dict[int, bytes]:
    """Return the values between the layers of a graph: number of layers before → name, 0 for what enters the first.

    Args:
        model: bytes of an ONNX file.
        every: layers of a group; the state behind each group is returned.
    """
    found = [
        node.input[0]  # in the order of the layers; equal weights of several may have been merged under one name
        for node in message("Model").FromString(model).graph.node
        if node.operator == b"LayerNormalization" and any(map(_NORM.fullmatch, node.input[1:]))
    ]
    return {layer: value for layer, value in enumerate(found) if layer % every == 0 or layer == len(found) - 1}


def form(model: bytes, every: int = 1) -> bytes:
    """Return a graph with its states as outputs ``state_0`` …, fp32 (B · columns, width); a graph without any, or a form, as it is."""
    more = message("Model")()
    if any(value.name.startswith(STATE.encode()) for value in message("Model").FromString(model).graph.output):
        return model
    for layer, value in states(model, every).items():
        name = f"{STATE}{layer}".encode()
        for operator, source, target, attribute, number in (
            (b"Flatten", value, name + b"_rows", b"axis", -1),
            (b"Cast", name + b"_rows", name, b"to", _FLOAT),
        ):
            node = more.graph.node.add(operator=operator, input=[source], output=[target])
            node.attribute.add(name=attribute, integer=number, kind=_INT)
        tensor = more.graph.output.add(name=name).type.tensor
        tensor.element = _FLOAT
        for axis in _AXES:
            tensor.shape.dimension.add(name=axis.encode())
    appended: bytes = more.SerializeToString()
    return model + appended  # protobuf joins repeated fields


class LayersBackend(OnnxRuntimeBackend):
    """The CPU backend on the self-test forms of a bundle's graphs, each run as it is."""

    def __init__(self, bundle: Bundle, threads: int | None, every: int) -> None:
        super().__init__(bundle.path, threads, split=False)
        self._every = every

    def _source(self, path: Path) -> str | bytes:
        self.entries = {FOLDER: str(path.parent)}
        return form(path.read_bytes(), self._every)


def write_forms(bundle: Bundle, folder: Path, every: int) -> Path:
    """Write a bundle of self-test forms, to be built and tested like the bundle; other files are copied.

    Raises:
        InputError: no graph has layers.
        OutputError: the folder exists or cannot be written.
    """
    document = dict(bundle.manifest.document)
    graphs: dict[str, Any] = {}
    made: dict[str, bytes] = {}
    for name, entry in bundle.manifest.graphs.items():
        model = bundle.path(name).read_bytes()
        ports = [_port(layer) for layer in states(model, every)]
        graphs[name] = {**document["graphs"][name], "outputs": [*document["graphs"][name]["outputs"], *ports]}
        made |= {entry.file: form(model, every)} if ports else {}
    if not made:
        raise InputError(f"bundle {bundle.name!r} has no graph with layers, so there is no self-test form of it")
    try:
        folder.mkdir(parents=True)
        for file in (*bundle.manifest.files, MANIFEST):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            if file in made:
                (folder / file).write_bytes(made[file])
            elif file != MANIFEST:
                shutil.copyfile(bundle.folder / file, folder / file)  # readers of external data refuse links
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror}") from error
    write_manifest(folder, {**document, "graphs": graphs})
    return folder


def _port(layer: int) -> Mapping[str, Any]:
    return {"name": f"{STATE}{layer}", "dtype": "float32", "shape": [*_AXES]}
