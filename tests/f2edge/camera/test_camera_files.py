"""Output files: only regular files are replaced, a full one ends whole, and a killed recording plays."""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest

from f2edge.camera.output.events import LineWriter, NewFile
from f2edge.camera.output.record import Recorder, recording_path, save_still
from f2edge.camera.run import ModelInput, Request, run
from f2edge.camera.source.url import parse_source
from f2edge.cli.main import run as cli
from f2edge.errors import OutputError
from f2edge.provenance.saving import check_writable, write_atomically
from f2edge.spec.attributes import F2EDGE_SCHEMA
from tests.support.camera_fake import NAMES, ScriptedModel

FACES = ModelInput(F2EDGE_SCHEMA, None, 128)
PICTURE = np.random.default_rng(0).integers(0, 255, (180, 320, 3), dtype=np.uint8)


def frames_of(path: Path) -> int:
    video, count = cv2.VideoCapture(str(path)), 0
    while video.read()[0]:
        count += 1
    return count


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# What may be replaced --------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """What stands for a device: a node that is neither file nor folder, which root may make, else a pipe."""
    path = tmp_path / "node"
    if os.geteuid() == 0:
        try:
            os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
        except PermissionError:  # a container without CAP_MKNOD
            os.mkfifo(path)
    else:
        os.mkfifo(path)
    return path


@pytest.mark.parametrize("linked", [False, True])
def test_a_device_is_refused_and_stays(node: Path, tmp_path: Path, *, linked: bool) -> None:
    target = node
    if linked:
        target = tmp_path / "link"
        target.symlink_to(node)
    before = node.stat()
    with pytest.raises(OutputError, match="is a device, pipe or socket"):
        check_writable(target)
    with pytest.raises(OutputError, match="is a device, pipe or socket"):
        write_atomically(target, b"data")
    after = node.stat()
    assert (after.st_ino, after.st_mode, after.st_rdev) == (before.st_ino, before.st_mode, before.st_rdev)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({"node", target.name})


@pytest.mark.parametrize("option", ["--stats", "--figures", "--record", "--still"])
def test_the_camera_refuses_devices(option: str, node: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suffix = {"--record": ".avi", "--still": ".png"}.get(option, "")
    target = node.rename(tmp_path / f"node{suffix}")
    inode = target.stat().st_ino
    assert cli(["camera", option, str(target), "--duration", "0.1"]) == 2
    assert "is a device, pipe or socket" in capsys.readouterr().err
    assert (target.stat().st_ino, target.is_file()) == (inode, False)


def test_a_link_is_followed_and_stays(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "real.prom").write_text("old")
    link = tmp_path / "link.prom"
    link.symlink_to(tmp_path / "elsewhere" / "real.prom")
    assert check_writable(link) == link
    write_atomically(link, b"new")
    assert link.is_symlink()
    assert (tmp_path / "elsewhere" / "real.prom").read_bytes() == b"new"
    save_still(PICTURE, tmp_path / "still.png")
    assert (tmp_path / "still.png").is_file()


# Full files ------------------------------------------------------------------------------------------------------------------------------


def test_lines_at_a_size_limit_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    file = NewFile(path)
    writer = LineWriter(file, "--jsonl")

    def write() -> None:
        for number in range(1000):
            writer.write({"number": number, "text": "x" * 100})

    with largest_file(10_000), pytest.raises(OutputError, match="File too large; lines up to here are whole"):
        write()
    file.close()
    data = path.read_bytes()
    assert data.endswith(b"}\n")
    numbers = [json.loads(line)["number"] for line in data.splitlines()]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) > 50


@pytest.mark.parametrize("suffix", [".mkv", ".avi", ".mp4"])
def test_a_recording_at_a_size_limit_ends_with_an_error_and_plays(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"out{suffix}"
    noise = np.random.default_rng(1)
    recorder = Recorder(path, 24)

    def write() -> None:
        for index in range(10_000):
            recorder.write(noise.integers(0, 255, (180, 320, 3), dtype=np.uint8), index / 24)

    with largest_file(4 << 20), pytest.raises(OutputError, match=r"ended at the limit of 4194304 bytes"):
        write()
    assert recorder.closed
    assert path.stat().st_size <= 4 << 20
    assert frames_of(path) >= 0.9 * recorder.written > 9


def test_a_run_at_a_size_limit_ends_its_files_with_events(tmp_path: Path) -> None:
    heard: list[tuple[str, str]] = []
    request = Request(url=parse_source("demo"), detector="given", attributes=NAMES, size_wh=(320, 180), duration_s=4.0)
    limited = Request(**{**request.__dict__, "record": tmp_path / "out.mkv"})
    lines = io.StringIO()
    with largest_file(1_300_000):
        run(limited, ScriptedModel(), FACES, lines, lambda kind, reason: heard.append((kind, reason)))
    assert [kind for kind, _ in heard].count("record") == 1
    assert "ulimit" in next(reason for kind, reason in heard if kind == "record")
    assert frames_of(tmp_path / "out.mkv") > 3
    assert json.loads(lines.getvalue().splitlines()[-1])["type"] == "summary"


def test_a_recording_that_was_removed_is_an_error(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "out.mkv", 24)
    recorder.write(PICTURE, 0.0)
    (tmp_path / "out.mkv").unlink()
    with pytest.raises(OutputError, match="cannot be played"):
        recorder.close()


# Killed ----------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".mkv", ".avi"])
def test_a_killed_recording_plays(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"out{suffix}"
    source = f"""
        import numpy as np, os, signal
        from pathlib import Path
        from f2edge.camera.output.record import Recorder
        noise, recorder = np.random.default_rng(0), Recorder(Path({str(path)!r}), 24)
        for index in range(120):
            recorder.write(noise.integers(0, 255, (180, 320, 3), dtype=np.uint8), index / 24)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(source)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert frames_of(path) > 90


def test_a_recording_without_a_suffix_is_one_that_survives(tmp_path: Path) -> None:
    assert recording_path(tmp_path / "out") == tmp_path / "out.mkv"
    assert recording_path(tmp_path / "out.mp4") == tmp_path / "out.mp4"
