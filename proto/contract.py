"""Compatibility check of the wire contract: every released field, method and value must be unchanged.

python proto/contract.py check      compare with proto/released.txt; exit code 1 and the differences where something is gone
python proto/contract.py release    write proto/released.txt, after the same check
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto

RELEASED = Path(__file__).with_name("released.txt")
_TYPE = FieldDescriptorProto.Type
_LABEL = FieldDescriptorProto.Label


def listing(file: FileDescriptorProto) -> list[str]:
    """Return one sorted line for every message, field, value and method."""
    return sorted(_lines(file))


def broken(released: list[str], current: list[str]) -> list[str]:
    """Return the released lines that are missing in the current contract."""
    return [line for line in released if line not in set(current)]


def current_file() -> FileDescriptorProto:
    """Return the contract of the committed stubs."""
    from f2edge.v1 import face_pb2

    file = FileDescriptorProto()
    face_pb2.DESCRIPTOR.CopyToProto(file)
    return file


def _lines(file: FileDescriptorProto) -> Iterator[str]:
    for message in file.message_type:
        yield f"message {file.package}.{message.name}"
        for entry in message.field:
            yield f"field {file.package}.{message.name} {_field(entry, message)}"
    for enum in file.enum_type:
        for value in enum.value:
            yield f"value {file.package}.{enum.name} {value.number} {value.name}"
    for service in file.service:
        for method in service.method:
            sides = ["stream " * method.client_streaming + method.input_type, "stream " * method.server_streaming + method.output_type]
            yield f"method {file.package}.{service.name} {method.name} ({sides[0]}) returns ({sides[1]})"


def _field(entry: FieldDescriptorProto, message: Any) -> str:
    kind = entry.type_name or _TYPE.Name(entry.type).removeprefix("TYPE_").lower()
    label = "optional" if entry.proto3_optional else _LABEL.Name(entry.label).removeprefix("LABEL_").lower()
    group = f" in {message.oneof_decl[entry.oneof_index].name}" if entry.HasField("oneof_index") and not entry.proto3_optional else ""
    return f"{entry.number} {entry.name} {'single' if label == 'optional' and not entry.proto3_optional else label} {kind}{group}"


def main(command: str) -> int:
    current = listing(current_file())
    released = RELEASED.read_text().splitlines() if RELEASED.exists() else []
    gone = broken(released, current)
    for line in gone:
        sys.stdout.write(f"gone or changed: {line}\n")
    if command == "release" and not gone:
        RELEASED.write_text("\n".join(current) + "\n")
    return 1 if gone else 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    raise SystemExit(main(sys.argv[1] if len(sys.argv) > 1 else "check"))
