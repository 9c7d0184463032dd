"""The wire contract: stubs that come from it and nothing else, and numbers that never change their meaning."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto

ROOT = Path(__file__).parents[2]


def _contract() -> Any:
    spec = importlib.util.spec_from_file_location("contract", ROOT / "proto" / "contract.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CONTRACT = _contract()


def test_the_committed_stubs_are_those_of_the_contract(tmp_path: Path) -> None:
    subprocess.run([ROOT / "proto" / "generate.sh", tmp_path], check=True, env={**os.environ, "PYTHON": sys.executable}, timeout=60)
    made = sorted((tmp_path / "f2edge" / "v1").iterdir())
    assert [file.name for file in made] == ["face_pb2.py", "face_pb2.pyi", "face_pb2_grpc.py"]
    for file in made:
        assert file.read_text() == (ROOT / "f2edge" / "v1" / file.name).read_text(), file.name


def test_the_contract_has_only_grown() -> None:
    released = CONTRACT.RELEASED.read_text().splitlines()
    assert len(released) > 100
    assert CONTRACT.broken(released, CONTRACT.listing(CONTRACT.current_file())) == []


def renumber(file: FileDescriptorProto) -> None:
    file.message_type[0].field[0].number = 99


def rename(file: FileDescriptorProto) -> None:
    file.message_type[0].field[0].name = "other"


def retype(file: FileDescriptorProto) -> None:
    file.message_type[0].field[0].type = FieldDescriptorProto.TYPE_SINT64


def repeat(file: FileDescriptorProto) -> None:
    file.message_type[-1].field[0].label = FieldDescriptorProto.LABEL_REPEATED


def drop_field(file: FileDescriptorProto) -> None:
    del file.message_type[0].field[0]


def drop_message(file: FileDescriptorProto) -> None:
    del file.message_type[3]


def drop_value(file: FileDescriptorProto) -> None:
    del file.enum_type[0].value[1]


def stop_streaming(file: FileDescriptorProto) -> None:
    file.service[0].method[0].server_streaming = False


def drop_method(file: FileDescriptorProto) -> None:
    del file.service[0].method[-1]


BREACHES = [renumber, rename, retype, repeat, drop_field, drop_message, drop_value, stop_streaming, drop_method]


@pytest.mark.parametrize("breach", BREACHES)
def test_every_kind_of_breach_is_seen(breach: Callable[[FileDescriptorProto], None]) -> None:
    file = CONTRACT.current_file()
    released = CONTRACT.listing(file)
    breach(file)
    assert CONTRACT.broken(released, CONTRACT.listing(file))


def test_additions_are_welcome() -> None:
    file = CONTRACT.current_file()
    released = CONTRACT.listing(file)
    file.message_type[0].field.add(name="new", number=77, type=FieldDescriptorProto.TYPE_BOOL, label=FieldDescriptorProto.LABEL_OPTIONAL)
    file.message_type.add(name="New")
    assert CONTRACT.broken(released, CONTRACT.listing(file)) == []


def test_every_method_and_message_is_explained() -> None:
    lines = (ROOT / "proto" / "f2edge" / "v1" / "face.proto").read_text().splitlines()
    for before, line in pairwise(lines):
        if line.strip().startswith("rpc "):
            assert before.strip().startswith("//"), line
