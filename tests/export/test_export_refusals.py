"""What the workstation's commands refuse: at once, in one line, with exit code 2, and without leaving anything behind."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import save_file

from export.bundle_writer import layout_of
from export.cli import run
from export.destination import check_destination, replaced_folder
from export.export_request import ExportRequest
from export.graph.trace import Models
from export.onnx_export import export_models, min_bundle_bytes
from export.quantize.calibration import save_scratch
from export.quantize.quantize import quantize
from export.quantize.recipes import recipe_named
from export.training.encoders import load_encoders
from export.training.tokenizer import load_tokenizer
from f2edge.bundle.bundle import embedded_folder
from f2edge.errors import InputError, OutputError
from tests.support.tiny_model import TINY

TEXT = embedded_folder() / "nano" / "tokenizer.json"


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"" for path in sorted(folder.rglob("*"))}


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with things that are not what a command wants."""
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "junk").write_bytes(bytes(range(256)))
    (tmp_path / "folder").mkdir()
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "photo.jpg").write_bytes(b"dear")
    (tmp_path / "nan.json").write_text('{"generate": NaN}')
    (tmp_path / "list.json").write_text("[]")
    return tmp_path


RANDOM = "random-bundle --configuration nano --layers 1 --prompts 1 --faces 1 --out"
ONNX = f"onnx --unified folder --tokenizer folder --encoders folder --text {TEXT} --out"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (f"{RANDOM} file", "a file of that name exists"),
        (f"{RANDOM} file/below", "Not a directory"),
        (f"{RANDOM} holiday", "holds other things"),
        (f"{RANDOM} .", "a bundle takes its folder"),
        (f"{RANDOM} new --text junk", "text tokenizer junk: cannot be read"),
        (f"{RANDOM} new --recipe int3", "choose one of: fp32, int8"),
        (f"{ONNX} holiday", "holds other things"),
        (f"{ONNX} new --quality absent.json", "quality metrics absent.json: cannot be read"),
        (f"{ONNX} new --quality nan.json", "NaN is not a finite number"),
        (f"{ONNX} new --quality list.json", "not a JSON object"),
        (f"{ONNX} new --largest-mb nan", "--largest-mb nan"),
        (f"{ONNX} new --largest-mb -1", "--largest-mb -1"),
        (f"{ONNX} new --recipe int3", "choose one of: fp32, int8"),
        ("random-showo --layers 1 --out file", "Not a directory"),
        ("render --count 1 --out file", "File exists"),
        ("text-tokenizer --out folder", "is a folder"),
        ("text-tokenizer --out absent/tokenizer.json", "create it first"),
        ("cache --data folder --tokenizer folder --encoders folder --out new --device gpu7", "device 'gpu7' cannot be used here"),
        ("cache --data folder --out new", "neither images"),
        ("cache --data junk --out new", "unknown kind of file"),
        ("cache --data absent.jsonl --out new", "no such file"),
        ("cache --data folder --columns image --out new", "write ROLE=COLUMN"),
        ("cache --data folder --schema absent.json --out new", "schema absent.json"),
        ("cache --data folder --features fp8 --out new", "choose fp16, int8 or later"),
        ("cache --data folder --tokenizer absent --out new", "no tokenizer here"),
        ("onnx --unified folder --out new", "give --tokenizer and --text, or --tokens"),
        ("onnx --unified folder --tokens folder --tokenizer folder --out new", "omit --tokenizer"),
        ("train unified --tokens folder --text junk --out new", "text tokenizer junk: cannot be read"),
        ("train encoders --data folder --out new --rate nan", "learning rate"),
        ("train encoders --data folder --out new --rate -1", "learning rate"),
        ("sensitivity --bundle folder --times nan", "--times nan"),
        ("sensitivity --bundle folder --out holiday", "is a folder"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    line: str, words: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(here)
    before = tree(here)
    assert run(line.split()) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert words in said.err
    assert tree(here) == before


_HOLD = """
import signal, sys, time
from pathlib import Path
from export import cli
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs in the background inherits that it is ignored
from export.destination import replaced_folder

@cli.app.command("hold")
def hold(out: Path) -> None:
    with replaced_folder(out) as folder:
        (folder / "half").write_text("half")
        print("ready", flush=True)
        time.sleep(60)

sys.argv = ["export", "hold", sys.argv[1]]
cli.main()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_command_that_is_told_to_end_leaves_nothing_half_written(number: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _HOLD, str(tmp_path / "bundle")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.wait(30) == 130
        assert "Traceback" not in process.stderr.read()
    assert not list(tmp_path.iterdir())


def test_a_bundle_whose_place_cannot_be_taken_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, rename = tmp_path / "bundle", Path.rename
    out.mkdir()
    (out / "manifest.json").write_text("{}")

    def failing(path: Path, target: Path) -> Path:
        if target == out and (path / "new").exists():
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OutputError, match="Input/output error"), replaced_folder(out) as folder:
        (folder / "new").write_text("")
    assert tree(tmp_path) == {"bundle": b"", "bundle/manifest.json": b"{}"}


def test_a_disk_that_is_too_small_is_said_before_tracing(tmp_path: Path, tiny_models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tiny_models.transformer is not None
    values = sum(p.numel() for p in tiny_models.transformer.parameters())
    assert min_bundle_bytes(tiny_models, ["fp32"]) > 4 * values
    assert min_bundle_bytes(tiny_models, ["int8", "int4"]) == min_bundle_bytes(tiny_models, ["fp32"]) // 8

    def traced(*_arguments: object) -> None:
        raise AssertionError("traced")

    monkeypatch.setattr("export.onnx_export.trace_all", traced)
    monkeypatch.setattr("shutil.disk_usage", lambda _place: shutil._ntuple_diskusage(100, 99, 1))
    with pytest.raises(OutputError, match=r"takes at least \d+ MiB, the disk has 0 MiB free"):
        export_models(tiny_models, ExportRequest(tmp_path / "bundle", TEXT, prompts=1, faces=1))
    assert not list(tmp_path.iterdir())


def test_the_draw_of_a_configuration_is_exported(tmp_path: Path, tiny_models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    class Traced(Exception):  # noqa: N818  not an error: it ends the export where the rest takes a minute
        pass

    def traced(models: Models, _progress: object) -> None:
        raise Traced(models.configuration.draw)

    monkeypatch.setattr("export.onnx_export.trace_all", traced)
    monkeypatch.setattr("export.onnx_export._LANDMARK_FACES", 1)
    blocks = replace(tiny_models, configuration=replace(tiny_models.configuration, draw="blocks"))
    with pytest.raises(Traced, match="blocks"):
        export_models(blocks, ExportRequest(tmp_path / "bundle", TEXT, prompts=1, faces=1))


def test_a_full_temporary_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("onnx_ir.save", full)
    with pytest.raises(OutputError, match=r"No space left on device.*TMPDIR"):
        save_scratch(linear(), tmp_path / "graph.onnx")


def linear() -> ir.Model:
    """One linear layer."""
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.ones((64, 64), dtype=np.float32), "w")
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 64]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", ports[:1], ports[1:], [weight])
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))


def test_a_layer_that_calibration_never_saw_is_not_quietly_left_without_smoothing() -> None:
    with pytest.raises(InputError, match="no calibration statistics for g/w of graph 'g'"):
        quantize(linear(), recipe_named("int8-smooth"), {"g/another": np.ones(64, dtype=np.float32)})


def test_a_text_tokenizer_with_more_ids_than_the_model_is_refused() -> None:
    assert layout_of(TINY, TEXT).text_vocabulary == TINY.text_vocabulary
    with pytest.raises(InputError, match="has ids up to 1023, model 'tiny' has 512 of text"):
        layout_of(replace(TINY, text_vocabulary=512), TEXT)


def test_an_existing_bundle_and_an_empty_folder_may_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "manifest.json").write_text("{}")
    for name in ("empty", "bundle", "new", "deep/new"):
        before = tree(tmp_path)
        check_destination(tmp_path / name)
        assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "stored", [{}, {"configuration": "nano"}, {"configuration": "[1]"}, {"configuration": '{"a": 1, "channels": [1]}'}]
)
def test_weights_of_another_part_are_refused_by_name(stored: dict[str, str], tmp_path: Path) -> None:
    save_file({"x": torch.zeros(2)}, str(tmp_path / "tokenizer.safetensors"), stored)
    with pytest.raises(InputError, match=r"tokenizer\.safetensors: .* image tokenizer"):
        load_tokenizer(tmp_path)
    save_file({"x": torch.zeros(2)}, str(tmp_path / "regions.safetensors"), stored)
    with pytest.raises(InputError, match=r"regions\.safetensors: not weights of the encoders' region parser"):
        load_encoders(tmp_path)
