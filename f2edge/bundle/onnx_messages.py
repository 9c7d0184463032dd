"""ONNX files without the ``onnx`` package, as far as bundles need it.

Only the fields that something here reads or writes are described (onnx.proto, IR version 11); protobuf skips the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

BYTES, INTEGER = "bytes", "int64"
#: Message → field → (number, type, repeated).
_FIELDS: Mapping[str, Mapping[str, tuple[int, str, bool]]] = {
    "Model": {"graph": (7, "Graph", False), "training": (20, "Training", True), "functions": (25, "Function", True)},
    "Training": {"initialization": (1, "Graph", False), "algorithm": (2, "Graph", False)},
    "Graph": {
        "node": (1, "Node", True),
        "initializer": (5, "Tensor", True),
        "output": (12, "Value", True),
        "sparse": (15, "Sparse", True),
    },
    "Function": {"node": (7, "Node", True), "attribute": (11, "Attribute", True)},
    "Node": {"input": (1, BYTES, True), "output": (2, BYTES, True), "operator": (4, BYTES, False), "attribute": (5, "Attribute", True)},
    "Value": {"name": (1, BYTES, False), "type": (2, "Type", False)},
    "Type": {"tensor": (1, "TensorType", False)},
    "TensorType": {"element": (1, INTEGER, False), "shape": (2, "Shape", False)},
    "Shape": {"dimension": (1, "Dimension", True)},
    "Dimension": {"size": (1, INTEGER, False), "name": (2, BYTES, False)},
    "Attribute": {
        "name": (1, BYTES, False),
        "integer": (3, INTEGER, False),
        "t": (5, "Tensor", False),
        "g": (6, "Graph", False),
        "tensors": (10, "Tensor", True),
        "graphs": (11, "Graph", True),
        "sparse": (22, "Sparse", False),
        "kind": (20, INTEGER, False),
        "sparses": (23, "Sparse", True),
    },
    "Sparse": {"values": (1, "Tensor", False), "indices": (2, "Tensor", False)},
    "Tensor": {"external": (13, "Entry", True)},
    "Entry": {"key": (1, BYTES, False), "value": (2, BYTES, False)},
}


@cache
def message(name: str) -> Any:
    """Return the class of a message, made from :data:`_FIELDS`."""
    from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
    from google.protobuf.descriptor_pool import DescriptorPool
    from google.protobuf.message_factory import GetMessageClass

    kinds = FieldDescriptorProto
    plain = {BYTES: kinds.TYPE_BYTES, INTEGER: kinds.TYPE_INT64}
    file = FileDescriptorProto(name="f2edge_onnx.proto", package="f2edge_onnx", syntax="proto2")
    for own, fields in _FIELDS.items():
        described = file.message_type.add(name=own)
        for field, (number, kind, repeated) in fields.items():
            label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
            if kind not in plain:
                described.field.add(name=field, number=number, label=label, type=kinds.TYPE_MESSAGE, type_name=f".f2edge_onnx.{kind}")
            else:
                described.field.add(name=field, number=number, label=label, type=plain[kind])
    pool = DescriptorPool()
    pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName(f"f2edge_onnx.{name}"))
