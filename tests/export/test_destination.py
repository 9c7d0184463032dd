"""Exports that are killed: nothing half-written is taken for a bundle, nothing stays behind, and the next export gives the same bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from export.data.text.tokenizer import train_text_tokenizer
from export.destination import replaced_folder
from export.training.checkpoint import save_weights
from tests.support.tiny_model import TINY, random_models

ROOT = Path(__file__).parents[2]

_HOLD = """
import sys, time
from pathlib import Path
from export.destination import replaced_folder

with replaced_folder(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("half")
    print(folder, flush=True)
    time.sleep(60)
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def held(out: Path) -> subprocess.Popen[str]:
    """A process in the middle of writing ``out``."""
    return subprocess.Popen([sys.executable, "-c", _HOLD, str(out)], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def building(process: subprocess.Popen[str]) -> Path:
    assert process.stdout is not None
    return Path(process.stdout.readline().strip())


@pytest.mark.skipif(sys.platform == "win32", reason="folders cannot be locked there")
def test_what_a_killed_command_left_is_removed_and_what_a_running_one_writes_stays(tmp_path: Path) -> None:
    out, personal = tmp_path / "bundle", tmp_path / ".bundle-personal"
    personal.mkdir()
    with held(out) as killed, held(out) as running:
        left, live = building(killed), building(running)
        killed.kill()
        killed.wait()
        assert (left / "half").exists()
        with replaced_folder(out) as folder:
            (folder / "manifest.json").write_text("{}")
        assert (live / "half").exists()
        running.kill()
    with replaced_folder(out) as folder:
        (folder / "manifest.json").write_text("[]")
    assert sorted(tmp_path.iterdir()) == sorted([out, personal])


@pytest.mark.skipif(sys.platform == "win32", reason="folders cannot be locked there")
def test_a_bundle_comes_back_whose_replacement_was_killed_between_two_renames(tmp_path: Path) -> None:
    out, old = tmp_path / "bundle", tmp_path / ".bundle-building-abcd1234-old"
    for folder in (old, tmp_path / ".bundle-building-abcd1234"):
        folder.mkdir()
        (folder / "manifest.json").write_text(folder.name)
    with pytest.raises(RuntimeError), replaced_folder(out):
        raise RuntimeError("this one fails too")
    assert contents(tmp_path) == {"bundle/manifest.json": old.name.encode()}


def write_run(folder: Path) -> list[str]:
    """Write a tiny model as a training leaves it; return the command that exports it to ``bundle``."""
    configuration = replace(TINY, name="nano")  # a configuration that is stored must have a known name
    models = random_models(configuration)
    shape = {"configuration": json.dumps(asdict(configuration.tokenizer))}
    names = {"region_names": json.dumps(list(models.regions)), "grid": str(configuration.tokenizer.grid)}
    for name, module, about in (
        ("unified", models.transformer, {"configuration": json.dumps(configuration.to_json())}),
        ("tokenizer", models.image_tokenizer, shape),
        ("semantic", models.semantic, {}),
        ("identity", models.identity, {}),
        ("regions", models.parser, names),
    ):
        assert module is not None
        save_weights(folder / f"{name}.safetensors", module, about)
    train_text_tokenizer(folder / "tokenizer.json", vocabulary=configuration.text_vocabulary)
    parts = f"--unified {folder} --tokenizer {folder} --encoders {folder} --text {folder}/tokenizer.json"
    parts += " --prompts 1 --faces 1 --reading 0 --recipe fp32 --out"
    return [sys.executable, "-m", "export", "onnx", *parts.split()]


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_an_export_killed_at_any_moment_starts_again_with_the_same_bytes(tmp_path: Path) -> None:
    command = write_run(tmp_path / "run")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([*command, "first/bundle"], cwd=tmp_path, env=environment, check=True)
    out = tmp_path / "second" / "bundle"
    out.parent.mkdir()
    for last in ("tokenizer.json", "t2i_step.onnx", "mmu_extend.onnx", "manifest.json"):  # the newest file when it is killed
        with subprocess.Popen([*command, "second/bundle"], cwd=tmp_path, env=environment) as process:
            while not list(out.parent.glob(f".*/{last}")):
                assert process.poll() is None
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
        assert [path.name.startswith(".") for path in out.parent.iterdir()] == [True]  # no bundle; what the one before left is gone
    subprocess.run([*command, "second/bundle"], cwd=tmp_path, env=environment, check=True)
    assert list(out.parent.iterdir()) == [out]
    assert contents(out) == contents(tmp_path / "first" / "bundle")
