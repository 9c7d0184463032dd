"""What a build writes, and what it looks at before it begins: files whole or not at all, memory, disk, bad input."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from engines import memory_guard
from engines.cli import run
from engines.memory_guard import HostMemory
from f2edge.backends.tensorrt.plans import PlanFolder, find_plans
from f2edge.bundle.bundle import Bundle
from f2edge.errors import InputError, OutputError
from f2edge.provenance.saving import write_atomically
from tests.support.tensorrt.tensorrt_machine import machine, tensorrt_bundle


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return tensorrt_bundle(tiny_bundle, tmp_path / "tiny")


def test_a_folder_that_cannot_be_written_is_not_written(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = machine(monkeypatch, tmp_path)
    denied = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != bundle and denied(path, mode))
    folder = here.build(bundle, graphs=("regions",))
    assert folder.is_relative_to(here.user)
    assert list(find_plans(Bundle.load(bundle))) == [folder]
    assert not (bundle / "plans").exists()


def test_writing_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a" / "plan"
    write_atomically(target, memoryview(b"first"), durable=True)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OutputError, match="No space left"):
            write_atomically(target, b"second", durable=True)
    assert target.read_bytes() == b"first"
    assert list(target.parent.iterdir()) == [target]


MEMORY = "MemTotal: 8000000 kB\nMemAvailable: {} kB\nSwapFree: {} kB\n"


@pytest.mark.parametrize(
    ("available_gb", "swap_gb", "weights_gb", "workspace_gb", "integrated", "fits"),
    [
        (6.5, 0, 0.9, 0.8, True, True),  # an 8 GB board without a desktop, int4 weights
        (4.0, 0, 0.9, 0.8, True, False),
        (4.0, 16, 0.9, 0.8, True, True),
        (6.5, 16, 3.6, 0.8, True, False),  # fp16 weights: the GPU's copy cannot be swapped
        (6.0, 0, 2.0, 4.0, False, True),
    ],
)
def test_memory_is_looked_at_first(
    tmp_path: Path, *, available_gb: float, swap_gb: float, weights_gb: float, workspace_gb: float, integrated: bool, fits: bool
) -> None:
    (tmp_path / "meminfo").write_text(MEMORY.format(int(available_gb * 1e9) >> 10, int(swap_gb * 1e9) >> 10))
    memory = HostMemory.read(tmp_path / "meminfo")
    assert memory is not None
    sizes = int(weights_gb * 1e9), int(workspace_gb * 1e9)
    if fits:
        assert "GB free" in memory_guard.check(memory, *sizes, integrated=integrated)
    else:
        with pytest.raises(InputError, match=r"needs about .* multi-user\.target"):
            memory_guard.check(memory, *sizes, integrated=integrated)


@pytest.mark.parametrize("text", ["", "MemTotal: 1 kB\n", "MemAvailable: much\n", "\x00\xff"])
def test_a_strange_meminfo_is_no_obstacle(tmp_path: Path, text: str) -> None:
    (tmp_path / "meminfo").write_text(text, encoding="latin-1")
    assert HostMemory.read(tmp_path / "meminfo") is None
    assert HostMemory.read(tmp_path / "none") is None


def test_too_little_memory_stops_a_build_before_it_starts(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = machine(monkeypatch, tmp_path, integrated=True)
    monkeypatch.setattr(HostMemory, "read", classmethod(lambda cls: cls(1 << 30, 0)))
    with pytest.raises(InputError, match="building this needs about"):
        here.build(bundle, force=False)
    assert not here.calls("Builder", "create_network")
    here.build(bundle, graphs=("regions",), force=True)


def test_too_little_disk_stops_a_build_before_it_starts(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = machine(monkeypatch, tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _place: SimpleNamespace(free=10))
    with pytest.raises(OutputError, match=r"a plan takes about .* the disk has 0\.0 GB free"):
        here.build(bundle, force=False)
    assert not here.calls("Builder", "create_network")
    assert not (bundle / "plans").exists()


def test_a_timing_cache_that_cannot_be_written_costs_no_plan(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = machine(monkeypatch, tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        here.build(bundle, graphs=("regions",), timing_cache=tmp_path / "folder")
    assert not here.calls("Builder", "create_network")
    monkeypatch.setattr("engines.builder._timing_cache", lambda _machine: bundle / "manifest.json" / "timings")
    folder = here.build(bundle, graphs=("regions",))
    assert list(PlanFolder.load(folder).graphs) == ["regions"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("profiles ./absent", "device profile ./absent: No such file"),
        ("profiles ./folder", "device profile ./folder: Is a directory"),
        ("kernels --model nano --target 87 --out new --table folder", "folder: is a folder"),
        ("aot-nodes absent.onnx --tokens 4", "give a graph of a bundle"),
        ("aot-nodes junk --tokens 4", "is not an ONNX file"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    line: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "junk").write_bytes(bytes(range(256)))
    assert run(line.split()) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert words in error
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["folder", "junk"]
