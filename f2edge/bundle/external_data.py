"""Files that an ONNX graph takes its weights from, read without the ``onnx`` package.

ONNX Runtime opens whatever path a tensor's ``external_data`` names, so a graph could read files that its bundle does not list.  Only the
fields on the way to these names are described here (onnx.proto, IR version 11); protobuf skips the others.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from f2edge.bundle.checked_json import inner_path, show
from f2edge.errors import BundleError

#: Message → field → (number, type, repeated).
_FIELDS: Mapping[str, Mapping[str, tuple[int, str, bool]]] = {
    "Model": {"graph": (7, "Graph", False), "training": (20, "Training", True), "functions": (25, "Function", True)},
    "Training": {"initialization": (1, "Graph", False), "algorithm": (2, "Graph", False)},
    "Graph": {"node": (1, "Node", True), "initializer": (5, "Tensor", True), "sparse": (15, "Sparse", True)},
    "Function": {"node": (7, "Node", True), "attribute": (11, "Attribute", True)},
    "Node": {"attribute": (5, "Attribute", True)},
    "Attribute": {
        "t": (5, "Tensor", False),
        "g": (6, "Graph", False),
        "tensors": (10, "Tensor", True),
        "graphs": (11, "Graph", True),
        "sparse": (22, "Sparse", False),
        "sparses": (23, "Sparse", True),
    },
    "Sparse": {"values": (1, "Tensor", False), "indices": (2, "Tensor", False)},
    "Tensor": {"external": (13, "Entry", True)},
    "Entry": {"key": (1, "", False), "value": (2, "", False)},
}
_KEY = b"location"


def check_external_data(folder: Path, graph: str, files: Mapping[str, Any]) -> None:
    """Check that a graph's weights lie in files that the manifest lists.

    Args:
        folder: folder of the bundle.
        graph: path of the graph in it.
        files: listed files by their paths in it.

    Raises:
        BundleError: a weight's file is outside the folder or not listed, or the graph cannot be parsed.
    """
    for location in sorted(external_locations(_with_references(folder / graph))):
        try:
            listed = (PurePosixPath(graph).parent / inner_path(location)).as_posix() in files
        except BundleError:
            listed = False
        if not listed:
            raise BundleError(
                f"{folder / graph}: takes weights from {show(location)}, which the manifest does not list; copy or export the bundle again"
            )


def _with_references(path: Path) -> bytes:
    """Return the bytes of a graph that may have external data, or none; graphs with gigabytes of weights inside are only searched."""
    if not path.stat().st_size:
        return b""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data[:] if data.find(_KEY) >= 0 else b""


def external_locations(model: bytes) -> set[str]:
    """Return the file names in the ``external_data`` of an ONNX model's bytes; raises :class:`BundleError` if they cannot be parsed."""
    from google.protobuf.message import DecodeError

    try:
        return {
            entry.value.decode("utf-8", "backslashreplace") for entry in _entries(_message("Model").FromString(model)) if entry.key == _KEY
        }
    except (DecodeError, RecursionError) as error:
        raise BundleError("an ONNX graph cannot be parsed; copy or export the bundle again") from error


def _entries(message: Any) -> Iterator[Any]:
    for field, value in message.ListFields():
        for inner in value if field.is_repeated else (value,):
            if field.message_type is None:
                continue
            if field.message_type.name == "Entry":
                yield inner
            else:
                yield from _entries(inner)


@cache
def _message(name: str) -> Any:
    """Return the class of a message, made from :data:`_FIELDS`."""
    from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
    from google.protobuf.descriptor_pool import DescriptorPool
    from google.protobuf.message_factory import GetMessageClass

    kinds = FieldDescriptorProto
    file = FileDescriptorProto(name="f2edge_external_data.proto", package="f2edge_onnx", syntax="proto2")
    for message, fields in _FIELDS.items():
        described = file.message_type.add(name=message)
        for field, (number, kind, repeated) in fields.items():
            label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
            if kind:
                described.field.add(name=field, number=number, label=label, type=kinds.TYPE_MESSAGE, type_name=f".f2edge_onnx.{kind}")
            else:
                described.field.add(name=field, number=number, label=label, type=kinds.TYPE_BYTES)
    pool = DescriptorPool()
    pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName(f"f2edge_onnx.{name}"))
