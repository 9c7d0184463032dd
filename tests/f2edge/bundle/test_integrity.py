"""Damage of one byte anywhere in a bundle, and weights from files that it does not list: refused."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest

from f2edge.bundle.bundle import MANIFEST, Bundle, embedded_folder, seal_bundle, write_manifest
from f2edge.bundle.external_data import external_locations
from f2edge.bundle.seal import check_seal, sealed
from f2edge.cli.main import run
from f2edge.errors import BundleError, ChecksumError

NANO = embedded_folder() / "nano"


@pytest.fixture
def nano(tmp_path: Path) -> Path:
    return Path(shutil.copytree(NANO, tmp_path / "nano"))


def flips(size: int, count: int) -> list[tuple[int, int]]:
    """Positions and differences of ``count`` damaged bytes."""
    noise = np.random.default_rng(size)
    return list(zip(noise.integers(0, size, count).tolist(), noise.integers(1, 256, count).tolist(), strict=True))


@pytest.mark.slow
def test_every_flip_of_the_manifest_is_refused(nano: Path) -> None:
    path = nano / MANIFEST
    whole = path.read_bytes()
    edges = [(position, 1) for position in [*range(100), len(whole) - 1]]
    for position, change in [*flips(len(whole), 600), *edges]:
        data = bytearray(whole)
        data[position] ^= change
        path.write_bytes(data)
        with pytest.raises(BundleError):
            Bundle.load(nano, verify=False)
    path.write_bytes(whole)
    assert Bundle.load(nano).name == "nano"


def test_blanks_and_other_spellings_of_the_same_manifest_are_refused(nano: Path) -> None:
    path = nano / MANIFEST
    whole = path.read_bytes()
    for same in (whole + b"\n", whole.replace(b"\n", b"\n\n", 1), json.dumps(json.loads(whole)).encode(), b" " + whole):
        path.write_bytes(same)
        with pytest.raises(BundleError, match="checksum"):
            Bundle.load(nano)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.name for path in NANO.iterdir() if path.name != MANIFEST))
def test_every_flip_of_another_file_is_refused(name: str, nano: Path) -> None:
    path = nano / name
    data = bytearray(path.read_bytes())
    for position, change in flips(len(data), 200):
        data[position] ^= change
        with path.open("r+b") as file:
            file.seek(position)
            file.write(data[position : position + 1])
        with pytest.raises(ChecksumError, match=name):
            Bundle.load(nano)
        data[position] ^= change
        with path.open("r+b") as file:
            file.seek(position)
            file.write(data[position : position + 1])
    assert Bundle.load(nano).name == "nano"


def test_a_manifest_without_a_checksum_is_refused_and_can_be_sealed(nano: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = {key: value for key, value in json.loads((nano / MANIFEST).read_text()).items() if key != "checksum"}
    (nano / MANIFEST).write_text(json.dumps(document))
    assert run(["info", "-b", str(nano)]) == 2
    assert "has no checksum; export the bundle again, or add it" in capsys.readouterr().err
    assert seal_bundle(nano)
    assert not seal_bundle(nano)
    assert Bundle.load(nano).manifest.document.keys() - document.keys() == {"checksum"}
    (nano / MANIFEST).write_bytes((nano / MANIFEST).read_bytes().replace(b'"checksum": "', b'"checksum": "0', 1))
    assert not seal_bundle(nano)  # a wrong one is damage
    with pytest.raises(BundleError):
        Bundle.load(nano)


def test_a_seal_is_of_the_rest() -> None:
    data = sealed({"checksum": "of another document", "name": "é"})
    check_seal(data)
    assert json.loads(data)["name"] == "é"
    assert sealed(json.loads(data)) == data


# External data ---------------------------------------------------------------------------------------------------------------------------


def with_location(nano: Path, location: str, place: str = "initializer") -> None:
    """Let a graph take one tensor from another file, and write a manifest that is right about everything else."""
    model = onnx.load(str(nano / "regions.onnx"), load_external_data=False)
    tensor = onnx.TensorProto(name="stolen", data_type=onnx.TensorProto.FLOAT, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="length", value="4")
    tensor.external_data.add(key="location", value=location)
    if place == "initializer":
        model.graph.initializer.append(tensor)
    elif place == "attribute":
        model.graph.node.append(onnx.helper.make_node("Constant", [], ["stolen"], value=tensor))
    elif place == "branch":
        body = onnx.helper.make_graph([onnx.helper.make_node("Constant", [], ["y"], value=tensor)], "body", [], [])
        model.graph.node.append(onnx.helper.make_node("If", ["c"], ["z"], then_branch=body, else_branch=body))
    else:
        constant = onnx.helper.make_node("Constant", [], ["y"], value=tensor)
        model.functions.append(onnx.helper.make_function("own", "F", [], ["y"], [constant], [onnx.helper.make_opsetid("", 17)]))
    (nano / "regions.onnx").write_bytes(model.SerializeToString())
    document = json.loads((nano / MANIFEST).read_text())
    write_manifest(nano, document)


@pytest.mark.parametrize("place", ["initializer", "attribute", "branch", "function"])
@pytest.mark.parametrize(
    "location", ["../secret.bin", "/etc/passwd", "unlisted.bin", "a/../weights.bin", "*/_ORT_MEM_ADDR_/*", "", ".hidden"]
)
def test_weights_from_unlisted_files_are_refused(place: str, location: str, nano: Path) -> None:
    (nano.parent / "secret.bin").write_bytes(b"1234")
    (nano / ".hidden").write_bytes(b"1234")  # not listed: write_manifest leaves such files out
    with_location(nano, location, place)
    with pytest.raises(BundleError, match=r"regions\.onnx: takes weights from .* which the manifest does not list"):
        Bundle.load(nano)


def test_weights_of_the_bundle_itself_are_taken(nano: Path) -> None:
    with_location(nano, "weights.bin")
    assert Bundle.load(nano).name == "nano"


def test_a_link_out_of_the_folder_is_refused(nano: Path) -> None:
    shutil.move(nano / "weights.bin", nano.parent / "weights.bin")
    (nano / "weights.bin").symlink_to(nano.parent / "weights.bin")
    with pytest.raises(BundleError, match="leads outside the bundle's folder"):
        Bundle.load(nano)


@pytest.mark.parametrize("data", [b"location", b"\x3a\xff\xff\xff\xff\x0flocation", b"\x0a" * 500 + b"location"])
def test_a_graph_that_cannot_be_parsed_is_refused(data: bytes) -> None:
    with suppress(BundleError):
        assert external_locations(data) == set()
