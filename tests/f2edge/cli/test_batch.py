"""Many prompts and many pictures on one command line: files, folders, patterns, pipes, and going on after a stop."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from f2edge.cli.inputs import picture_files, prompt_rows
from f2edge.cli.main import run
from f2edge.errors import ImageError, InputError
from f2edge.imaging.images import load_image
from f2edge.pipeline import FacePipeline
from f2edge.provenance.inspection import find_marks
from f2edge.results import GenerateOptions

pytestmark = pytest.mark.runtime


def f2edge(*arguments: str, given: bytes | None = None, redirected: str = "") -> subprocess.CompletedProcess[bytes]:
    command = ["bash", "-c", f'set -o pipefail; "$@" {redirected}', "bash", sys.executable, "-m", "f2edge", *arguments]
    return subprocess.run(command, input=given, capture_output=True, check=False, timeout=200)


def rows_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three faces, one of them deeper, and a file that is none."""
    folder = tmp_path_factory.mktemp("faces")
    (folder / "deeper").mkdir()
    pipeline = FacePipeline.load("nano", threads=1)
    generated = pipeline.generate(["an old man", "a young woman", "a man with a hat"], seeds=[1, 2, 3], options=GenerateOptions(steps=2))
    for name, face in zip(("a.png", "b.png", "deeper/c.jpg"), generated, strict=True):
        face.save(folder / name)
    (folder / "bad.webp").write_bytes(b"not a picture")
    (folder / "notes.txt").write_text("no picture at all")
    return folder


# Prompts --------------------------------------------------------------------------------------------------------------------------------


def test_rows_of_every_kind() -> None:
    texts = ["\n", "an old man\n", "  a woman  \n"]
    assert [(row.number, row.prompt) for row in prompt_rows(texts)] == [(1, "an old man"), (2, "a woman")]
    table = ["prompt,seed,name,steps\n", '"a man, old",7,first,5\n', "a woman,,,\n"]
    first, second = prompt_rows(table)
    assert (first.prompt, first.seed, first.name, first.options) == ("a man, old", 7, "first", {"steps": 5})
    assert (second.seed, second.name, second.options) == (None, None, {})
    lines = ['{"prompt": "a man", "guidance": 2}', "[1]", '{"prompt": 3}', '{"prompt": "a", "seed": 1.5}', '{"prmpt": "a"}', "{"]
    good, *bad = prompt_rows(lines)
    assert (good.prompt, good.options, good.problem) == ("a man", {"guidance": 2.0}, "")
    assert [bool(row.problem) for row in bad] == [True] * 5
    assert list(prompt_rows([])) == []
    with pytest.raises(InputError, match="unknown column sed"):
        list(prompt_rows(["prompt,sed\n"]))


def test_a_pipe_of_prompts_gives_the_faces_that_each_gives_alone(tmp_path: Path) -> None:
    prompts = [
        {"prompt": "an old man", "seed": 5, "name": "one", "steps": 3},
        {"prompt": ""},
        {"prompt": "a woman with galsses", "seed": 6, "name": "two.jpg"},
        {"prompt": "a man", "seed": 7, "name": "../up"},
        {"prompt": "a man", "seed": 8, "name": "ONE"},
        {"prompt": "a man"},
    ]
    given = "".join(json.dumps(row) + "\n" for row in prompts).encode()
    done = f2edge("generate", "-", "--out-dir", str(tmp_path / "x"), "--jsonl", "--steps", "2", "--seed", "40", given=given)
    assert done.returncode == 2
    found = rows_of(done.stdout.decode())
    assert [row["row"] for row in found] == [1, 2, 3, 4, 5, 6]
    assert ["error" in row for row in found] == [False, True, False, True, True, False]
    assert done.stderr.count(b"\n") == 3
    assert sorted(path.name for path in (tmp_path / "x").iterdir()) == ["face-0006.png", "one.png", "two.jpg"]
    assert (found[0]["options"]["steps"], found[2]["options"]["steps"], found[5]["seed"]) == (3, 2, 45)
    assert found[2]["corrected"] == {"galsses": "glasses"}
    assert all(find_marks(row["file"]).names == ("xmp", "watermark") for row in found if "file" in row)
    alone = FacePipeline.load("nano").generate("an old man", seeds=5, options=GenerateOptions(steps=3))[0]
    np.testing.assert_array_equal(np.asarray(load_image(tmp_path / "x" / "one.png")), np.asarray(alone.image))


def test_resuming_draws_only_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prompts.csv").write_text("prompt,name\na man,one\na woman,two\n")
    command = ["generate", "--prompts", str(tmp_path / "prompts.csv"), "--out-dir", str(tmp_path / "x"), "--jsonl", "--steps", "2"]
    assert run(command) == 0
    (tmp_path / "x" / "one.png").unlink()
    before = (tmp_path / "x" / "two.png").stat().st_mtime_ns
    capsys.readouterr()
    assert run([*command, "--resume"]) == 0
    assert [row.get("skipped", False) for row in rows_of(capsys.readouterr().out)] == [False, True]
    assert (tmp_path / "x" / "two.png").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["generate", "-"], "--out-dir"),
        (["generate", "--prompts", "missing.csv", "--out-dir", "."], "missing.csv: cannot be read"),
        (["generate", "a man", "--prompts", "x.csv", "--out-dir", "."], "exclude each other"),
        (["generate", "a man", "--jsonl"], "many prompts"),
        (["generate", "-", "--out-dir", ".", "--count", "3"], "--count is for one prompt"),
        (["generate", "a man", "-o", "-", "--json"], "both want standard output"),
        (["analyze", "missing/*.png"], "matches no file"),
        (["analyze", "x.png", "--jsonl", "--csv"], "exclude each other"),
        (["analyze", "x.png", "--jsonl", "--resume"], "--resume needs --out"),
        (["analyze", "x.png", "--out", "y"], "--out is for"),
    ],
)
def test_options_that_do_not_fit(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.count("\n") == 1


# Pictures -------------------------------------------------------------------------------------------------------------------------------


def test_folders_patterns_and_files_each_once(faces: Path) -> None:
    everything = [str(faces / name) for name in ("a.png", "b.png", "bad.webp", "deeper/c.jpg")]
    assert picture_files([str(faces)]) == everything
    assert picture_files([str(faces / "*.png"), str(faces / "a.png"), "-"]) == [*everything[:2], "-"]
    assert picture_files([str(faces / "**" / "*.jpg")]) == everything[3:]
    (faces / "empty").mkdir(exist_ok=True)
    with pytest.raises(ImageError, match="has no JPEG"):
        picture_files([str(faces / "empty")])


def test_a_folder_becomes_lines_and_a_stopped_run_goes_on(faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "faces.jsonl"
    assert run(["analyze", str(faces), "--jsonl"]) == 2
    printed, err = capsys.readouterr()
    rows = rows_of(printed)
    assert [Path(row["image"]).name for row in rows] == ["a.png", "b.png", "bad.webp", "c.jpg"]
    assert ["error" in row for row in rows] == [False, False, True, False]
    assert "bad.webp is not a JPEG" in err
    assert rows[0]["attributes"]["age"]["value"] == "old"
    lines = printed.splitlines(keepends=True)
    out.write_text(lines[0] + lines[1][:50])  # ended within the second line
    assert run(["analyze", str(faces), "--jsonl", "--out", str(out), "--resume"]) == 2
    assert out.read_text() == printed


def test_a_table_for_spreadsheets(faces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["analyze", str(faces / "a.png"), str(faces / "bad.webp"), "--csv", "--attributes", "age,hat"]) == 2
    good, bad = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert list(good) == ["image", "age", "age_probability", "hat", "hat_probability", "unfamiliar", "include_sensitive", "error"]
    assert (good["age"], good["error"]) == ("old", "")
    assert (bad["age"], "is not a JPEG" in bad["error"]) == ("", True)


def test_answers_about_several_pictures(faces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ask", str(faces / "a.png"), str(faces / "b.png"), "what hat is worn?"]) == 0
    assert [line.split(": ")[0] for line in capsys.readouterr().out.splitlines()] == [str(faces / "a.png"), str(faces / "b.png")]
    assert run(["describe", str(faces), "--jsonl"]) == 2
    assert [bool(row.get("answer")) for row in rows_of(capsys.readouterr().out)] == [True, True, False, True]


# Pipes ----------------------------------------------------------------------------------------------------------------------------------


def test_pictures_through_pipes(faces: Path) -> None:
    drawn = f2edge("generate", "an old man", "--seed", "3", "--steps", "2", "-o", "-")
    assert (drawn.returncode, drawn.stderr) == (0, b"")
    assert find_marks(drawn.stdout).names == ("xmp", "watermark")
    edited = f2edge("edit", "-", "an old man with red hair", "-r", "0,0,1,0.5", "--steps", "2", "-o", "-", given=drawn.stdout)
    assert Image.open(io.BytesIO(edited.stdout)).size == Image.open(io.BytesIO(drawn.stdout)).size
    described = f2edge("describe", "-", given=edited.stdout)
    assert (described.returncode, described.stdout.count(b"\n")) == (0, 1)


def test_a_reader_that_leaves_is_no_error(faces: Path) -> None:
    for arguments in (["analyze", str(faces / "a.png")], ["analyze", str(faces / "a.png"), "--json"], ["--help"]):
        done = f2edge(*arguments, redirected="| true")
        assert (done.returncode, done.stderr) == (0, b""), arguments


def test_the_program_alone_shows_its_help() -> None:
    done = f2edge()
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"generate" in done.stdout


def test_help_shows_the_defaults() -> None:
    """Rich took "[default: …]" in a text for markup, and dropped it."""
    text = " ".join(f2edge("generate", "--help").stdout.decode().replace("│", " ").split())
    for said in (
        "(default: the model's)",
        "(default: random, printed)",
        "(default: every usable core)",
        "[default: face.png]",
        "[default: nano]",
    ):
        assert said in text, said


def test_verbose_says_what_quiet_does_not(faces: Path) -> None:
    loud, silent = (f2edge("ask", str(faces / "a.png"), "what hat is worn?", option) for option in ("--verbose", "--quiet"))
    assert loud.stdout == silent.stdout
    assert b"f2edge." in loud.stderr
    assert silent.stderr == b""


@pytest.mark.parametrize(
    ("given", "code", "said"),
    [
        (b"\xef\xbb\xbfprompt,seed\nan old man,3\n", 0, b'"seed": 3'),  # as spreadsheets write UTF-8
        (b"a" * 200_000 + b"\n", 2, b"200000 characters"),
        (b'prompt,seed\n"an old man,3\n', 2, b"are no CSV"),
    ],
)
def test_prompts_of_other_programs(given: bytes, code: int, said: bytes, tmp_path: Path) -> None:
    done = f2edge("generate", "-", "--out-dir", str(tmp_path), "--jsonl", "--steps", "1", given=given)
    assert done.returncode == code
    assert said in (done.stderr if code else done.stdout)
    assert len(list(tmp_path.iterdir())) == (code == 0)


def test_a_name_with_a_line_separator_is_resumed(faces: Path, tmp_path: Path) -> None:
    odd = tmp_path / "a\u2028b\nc.png"
    odd.write_bytes(next(faces.glob("*.png")).read_bytes())
    for option in ("--csv", "--jsonl"):
        out = tmp_path / f"out{option}"
        for _ in range(2):
            assert f2edge("analyze", str(odd), option, "--out", str(out), "--resume", "--attributes", "hat").returncode == 0
        assert out.read_text(encoding="utf-8").count(".png") == 1


def test_completion_knows_the_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")  # whatever shell runs the tests
    done = f2edge("--show-completion", "bash")
    assert b"_F2EDGE_COMPLETE" in done.stdout
