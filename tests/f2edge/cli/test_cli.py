"""The command line as a person and a script use it: pictures and words out, one JSON document, and one line for every bad input."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from f2edge.bundle.bundle import MANIFEST, Bundle, embedded_folder, list_bundles, write_manifest
from f2edge.cli import options
from f2edge.cli.main import run
from f2edge.errors import BackendError
from f2edge.imaging.images import load_image
from f2edge.provenance.label import EDITED, GENERATED, read_label

pytestmark = pytest.mark.runtime
PROMPT = "a smiling woman with long red hair"


@pytest.fixture(scope="session")
def bundle(request: pytest.FixtureRequest) -> str:
    """The embedded model or, in a checkout that has not trained one yet, random weights."""
    if "nano" in [found.name for found in list_bundles()]:
        return "nano"
    return str(request.getfixturevalue("tiny_bundle"))


@pytest.fixture(scope="session")
def face(tmp_path_factory: pytest.TempPathFactory, bundle: str) -> Path:
    """A generated face, on which edit and the words are tried."""
    path = tmp_path_factory.mktemp("face") / "face.png"
    assert run(["generate", PROMPT, "-o", str(path), "--seed", "7", "--bundle", bundle, "--quiet"]) == 0
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def document(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """What a command prints with ``--json``: one document, nothing else on either stream."""
    code = run([*arguments, "--json"])
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    assert out.count("\n") == 1
    table: dict[str, Any] = json.loads(out)
    return table


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Pictures --------------------------------------------------------------------------------------------------------------------------------


def test_generate_writes_a_labelled_face(here: Path, bundle: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["generate", PROMPT, "--seed", "7", "-b", bundle]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("face.png  seed 7, ")
    assert err == ""
    assert names(here) == ["face.png"]
    label = read_label("face.png")
    assert label is not None
    assert (label.source_type, label.seed, label.prompt, label.bundle) == (GENERATED, 7, PROMPT, Bundle.load(bundle).name)
    side = Bundle.load(bundle).configuration.tokenizer.image_size
    assert load_image("face.png").size == (side, side)


def test_a_seed_is_a_face(here: Path, bundle: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The same request gives the same bytes, and every face of a sheet is the face of its own seed."""
    sheet = document(capsys, "generate", PROMPT, "--seed", "7", "--grid", "4", "-o", "sheet.png", "-b", bundle)
    files = document(capsys, "generate", PROMPT, "--seed", "7", "--count", "3", "-o", "face.png", "-b", bundle)
    alone = document(capsys, "generate", PROMPT, "--seed", "8", "-o", "alone.png", "-b", bundle)
    assert [row["seed"] for row in sheet["faces"]] == [7, 8, 9, 10]
    assert files["files"] == ["face-1.png", "face-2.png", "face-3.png"]
    assert sheet["faces"][:3] == files["faces"]
    assert alone["faces"][0] == sheet["faces"][1]
    assert Path("alone.png").read_bytes() == Path("face-2.png").read_bytes()
    assert names(here) == ["alone.png", "face-1.png", "face-2.png", "face-3.png", "sheet.png"]
    side = load_image("alone.png").width
    whole = load_image("sheet.png")
    assert whole.size == (2 * side, 2 * side)
    np.testing.assert_array_equal(np.asarray(whole.crop((side, 0, 2 * side, side))), np.asarray(load_image("alone.png")))


def test_without_a_seed_each_face_is_another(here: Path, bundle: str, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (document(capsys, "generate", PROMPT, "-b", bundle) for _ in range(2))
    assert first["faces"][0]["seed"] != second["faces"][0]["seed"]
    assert names(here) == ["face.png"]


def test_options_reach_the_decoder(here: Path, bundle: str, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = {"steps": 5, "guidance": 0.5, "order": "halton", "temperature": 0.25, "temperature_law": "show-o"}
    flags = [part for key, value in wanted.items() for part in (f"--{key.replace('_', '-')}", str(value))]
    table = document(capsys, "generate", PROMPT, *flags, "--size", "200", "-o", "face.webp", "-b", bundle)
    assert {key: table["options"][key] for key in wanted} == wanted
    assert len(table["step_ms"]) == 5
    assert load_image("face.webp").size == (200, 200)
    assert table["synthetic"] is True


def test_previews_of_every_step_end_in_the_picture(here: Path, bundle: str, capsys: pytest.CaptureFixture[str]) -> None:
    document(capsys, "generate", PROMPT, "--seed", "3", "--steps", "4", "--save-steps", "steps", "-b", bundle)
    assert names(here / "steps") == [f"step-0{step}.png" for step in (1, 2, 3, 4)]
    np.testing.assert_array_equal(np.asarray(load_image("steps/step-04.png")), np.asarray(load_image("face.png")))
    assert read_label("steps/step-01.png") is not None


def test_quiet_prints_nothing(here: Path, bundle: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["generate", PROMPT, "-b", bundle, "-q"]) == 0
    assert capsys.readouterr() == ("", "")


def test_edit_keeps_every_token_outside_the_region(here: Path, bundle: str, face: Path, capsys: pytest.CaptureFixture[str]) -> None:
    request = ("edit", str(face), "a man with blue hair", "-r", "0,0,1,0.5", "--seed", "5", "-o", "out.png", "-b", bundle)
    table = document(capsys, *request, "--no-watermark")
    region = np.array(table["region"], dtype=bool).ravel()  # a cell for each of the rows below
    before, after = (np.array(table[key]).reshape(region.size, -1) for key in ("original_tokens", "tokens"))
    assert region.sum() == region.size // 2
    np.testing.assert_array_equal(after[~region], before[~region])
    assert (after != before).any()
    side = load_image(face).height
    original, edited = np.asarray(load_image(face)), np.asarray(load_image("out.png"))
    np.testing.assert_array_equal(edited[side // 2 :], original[side // 2 :])
    assert (edited != original).any()
    label = read_label("out.png")
    assert label is not None
    assert label.source_type == EDITED
    assert names(here) == ["out.png"]


def test_edit_with_a_mask(here: Path, bundle: str, face: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mask = np.zeros((64, 64), dtype=np.uint8)
    mask[:, 48:] = 255
    Image.fromarray(mask).save(here / "mask.png")
    table = document(capsys, "edit", str(face), PROMPT, "-r", "mask.png", "-b", bundle)
    region = np.array(table["region"], dtype=bool)
    assert region[:, -region.shape[1] // 4 :].all()
    assert region.sum() == region.size // 4


# Words -----------------------------------------------------------------------------------------------------------------------------------


def test_describe_and_ask(bundle: str, face: Path, capsys: pytest.CaptureFixture[str]) -> None:
    described = document(capsys, "describe", str(face), "-b", bundle)
    assert described["answer"]
    assert described["tokens"] >= 1
    assert described["first_token_ms"] > 0
    asked = document(capsys, "ask", str(face), "what color is the hair?", "-b", bundle)
    assert asked["question"] == "what color is the hair?"
    assert run(["ask", str(face), "what color is the hair?", "-b", bundle]) == 0
    assert capsys.readouterr() == (asked["answer"] + "\n", "")


def test_analyze_gives_every_attribute_its_probabilities(bundle: str, face: Path, capsys: pytest.CaptureFixture[str]) -> None:
    schema = Bundle.load(bundle).schema
    table = document(capsys, "analyze", str(face), "-b", bundle)["attributes"]
    assert list(table) == list(schema) != []
    for name, row in table.items():
        assert list(row["probabilities"]) == list(schema[name].values)
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-4)
        assert row["probability"] == max(row["probabilities"].values()) == row["probabilities"][row["value"]]
    asked = document(capsys, "analyze", str(face), "--attributes", "eyewear, age", "-b", bundle)["attributes"]
    assert list(asked) == ["eyewear", "age"]
    assert asked["eyewear"]["value"] == table["eyewear"]["value"]


def test_analyze_prints_a_table_with_bars(bundle: str, face: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["analyze", str(face), "-b", bundle]) == 0
    out, err = capsys.readouterr()
    assert "hair color" in out
    assert "█" in out
    assert err == ""


# Models ----------------------------------------------------------------------------------------------------------------------------------


def test_info_and_verify_and_bundles(bundle: str, capsys: pytest.CaptureFixture[str]) -> None:
    opened = Bundle.load(bundle)
    table = document(capsys, "info", "-b", bundle)
    assert table["bundle"]["name"] == opened.name
    assert "CPUExecutionProvider" in table["providers"]
    assert table["bundle"]["presets"].keys() == {"fast", "balanced", "best"}
    assert table["bundle"]["graphs"].keys() == opened.manifest.graphs.keys()
    verified = document(capsys, "verify", bundle)
    assert verified["ok"] is True
    assert verified["checks"].keys() == {"manifest", "files", "tokens", "graphs"}
    listed = document(capsys, "bundles")["bundles"]
    assert [row["name"] for row in listed] == [found.name for found in list_bundles()]
    for command in (["info", "-b", bundle], ["verify", bundle], ["bundles"]):
        assert run(command) == 0
        assert capsys.readouterr().err == ""


def test_verify_compares_with_the_exporting_machine(here: Path, bundle: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With its own tokens a copy passes, with others it fails: the machine then computes something else."""
    folder = here / "copy"
    shutil.copytree(Bundle.load(bundle).folder, folder)
    table = json.loads((folder / MANIFEST).read_text())
    own = document(capsys, "generate", PROMPT, "--seed", "11", "-b", str(folder))["faces"][0]["tokens"]
    write_manifest(folder, table | {"smoke": {"prompt": PROMPT, "seed": 11, "codes": own, "agreement": 1.0}})
    assert document(capsys, "verify", str(folder))["checks"]["tokens"].startswith(f"{len(own)} of {len(own)} agree")
    others = [(code + 1) % table["layout"]["codes"] for code in own]
    write_manifest(folder, table | {"smoke": {"prompt": PROMPT, "seed": 11, "codes": others, "agreement": 0.1}})
    assert run(["verify", str(folder)]) == 1
    assert f"0 of {len(own)} tokens agree" in capsys.readouterr().err


# Bad input: one line, exit code 2, nothing written ---------------------------------------------------------------------------------------


def flipped(folder: Path) -> None:
    path = folder / "t2i_step.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncated(folder: Path) -> None:
    path = max((path for path in folder.iterdir() if path.name != MANIFEST), key=lambda path: path.stat().st_size)
    os.truncate(path, path.stat().st_size - 1)


def unknown_version(folder: Path) -> None:
    table = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(table | {"format_version": 99}))


def damaged_bundle(damage: Callable[[Path], None]) -> Callable[[Path, str], list[str]]:
    def arguments(away: Path, bundle: str) -> list[str]:
        shutil.copytree(Bundle.load(bundle).folder, away / "damaged")
        damage(away / "damaged")
        return ["generate", PROMPT, "--bundle", str(away / "damaged")]

    return arguments


def picture(make: Callable[[Path], object], *command: str) -> Callable[[Path, str], list[str]]:
    def arguments(away: Path, _bundle: str) -> list[str]:
        make(away / "face.png")
        return [part if part != "IMAGE" else str(away / "face.png") for part in command]

    return arguments


def corrupt(path: Path) -> None:
    Image.new("RGB", (64, 64), (1, 2, 3)).save(path)
    path.write_bytes(path.read_bytes()[:-30])


def huge(path: Path) -> None:
    Image.new("1", (40000, 9000)).save(path)


def animated(path: Path) -> None:
    frames = [Image.new("RGB", (64, 64), (value, 0, 0)) for value in (1, 200)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def good(path: Path) -> None:
    Image.new("RGB", (64, 64), (200, 150, 120)).save(path)


def absent(path: Path) -> None:
    assert not path.exists()


def made_folder(away: Path) -> str:
    (away / "folder.png").mkdir()
    return str(away / "folder.png")


def made_file(away: Path) -> str:
    (away / "file").write_text("x")
    return str(away / "file")


EDIT = ("edit", "IMAGE", PROMPT, "--region")
BAD_INPUT: dict[str, tuple[Callable[[Path, str], list[str]], str]] = {
    "missing image": (picture(absent, "describe", "IMAGE"), "face.png: no such file"),
    "missing image to edit": (picture(absent, *EDIT, "hair"), "face.png: no such file"),
    "corrupt image": (picture(corrupt, "analyze", "IMAGE"), "face.png is damaged"),
    "huge image": (picture(huge, "ask", "IMAGE", "what color is the hair?"), "is 40000 x 9000 pixels"),
    "animated image": (picture(animated, "describe", "IMAGE"), "is animated"),
    "a text file": (picture(lambda path: path.write_text("hello"), "analyze", "IMAGE"), "is not a JPEG, PNG or WebP"),
    "a folder": (picture(lambda path: path.mkdir(), "analyze", "IMAGE"), "has no JPEG, PNG or WebP in it"),
    "empty prompt": (lambda _a, _b: ["generate", ""], "the prompt is empty"),
    "blank prompt": (lambda _a, _b: ["generate", " \n "], "the prompt is empty"),
    "10,000 characters": (lambda _a, _b: ["generate", "face " * 2000], "has 10000 characters"),
    "too many tokens": (lambda _a, b: ["generate", "zq" * 900, "-b", b], "tokens, the model reads"),
    "control character": (lambda _a, _b: ["generate", "a\x1b[2Jface"], "control character (U+001B) at position 2"),
    "empty question": (picture(good, "ask", "IMAGE", ""), "the question is empty"),
    "long question": (picture(good, "ask", "IMAGE", "a" * 10_000), "the question has 10000 characters"),
    "unknown region": (picture(good, *EDIT, "elbows"), "unknown region 'elbows'; known: "),
    "box outside": (picture(good, *EDIT, "900,900,10,10"), "no part in the centred square"),
    "box without area": (picture(good, *EDIT, "0,0,0,0"), "a box is"),
    "missing mask": (picture(good, *EDIT, "nowhere.png"), "nowhere.png: no such file"),
    "unknown attribute": (
        picture(good, "analyze", "IMAGE", "--attributes", "hair_color,shoe_size"),
        "unknown attribute 'shoe_size'; known: ",
    ),
    "empty attribute": (picture(good, "analyze", "IMAGE", "--attributes", ""), "unknown attribute ''"),
    "steps 0": (lambda _a, _b: ["generate", PROMPT, "--steps", "0"], "steps must lie in 1"),
    "steps that are no number": (lambda _a, _b: ["generate", PROMPT, "--steps", "many"], "--steps"),
    "negative guidance": (lambda _a, _b: ["generate", PROMPT, "--guidance", "-1"], "guidance must lie in 0"),
    "guidance nan": (lambda _a, _b: ["generate", PROMPT, "--guidance", "nan"], "guidance must lie in 0"),
    "unknown order": (lambda _a, _b: ["generate", PROMPT, "--order", "spiral"], "unknown order 'spiral'; choose one of: maskgit"),
    "unknown law": (lambda _a, _b: ["generate", PROMPT, "--temperature-law", "warm"], "unknown temperature_law 'warm'"),
    "negative seed": (lambda _a, _b: ["generate", PROMPT, "--seed", "-1"], "--seed -1"),
    "size 0": (lambda _a, _b: ["generate", PROMPT, "--size", "0"], "--size 0"),
    "grid 0": (lambda _a, _b: ["generate", PROMPT, "--grid", "0"], "--grid 0"),
    "count and grid": (lambda _a, _b: ["generate", PROMPT, "--grid", "4", "--count", "4"], "give one of the two"),
    "threads 0": (lambda _a, _b: ["generate", PROMPT, "--threads", "0"], "--threads 0"),
    "unknown backend": (lambda _a, _b: ["generate", PROMPT, "--backend", "abacus"], "'abacus': unknown; choose one of: auto, onnxruntime"),
    "unknown bundle": (lambda _a, _b: ["generate", PROMPT, "--bundle", "nowhere"], "no bundle 'nowhere'"),
    "unknown bundle to verify": (lambda _a, _b: ["verify", "nowhere"], "no bundle 'nowhere'"),
    "flipped byte": (damaged_bundle(flipped), "SHA-256 differs"),
    "truncated weights": (damaged_bundle(truncated), "the manifest says"),
    "unknown version": (damaged_bundle(unknown_version), "format_version 99 is unknown; this f2edge reads 1"),
    "output folder not writable": (lambda _a, _b: ["generate", PROMPT, "-o", "/proc/face.png"], "cannot be written"),
    "output folder missing": (lambda _a, _b: ["generate", PROMPT, "-o", "none/face.png"], "create it first"),
    "output is a folder": (lambda away, _b: ["generate", PROMPT, "-o", made_folder(away)], "is a folder"),
    "unknown suffix": (lambda _a, _b: ["generate", PROMPT, "-o", "face.gif"], "face.gif: cannot write a picture of kind .gif"),
    "edit to an unwritable place": (picture(good, *EDIT, "hair", "-o", "none/face.png"), "create it first"),
    "steps folder that cannot be": (lambda _a, _b: ["generate", PROMPT, "--save-steps", "none/steps"], "create it first"),
    "steps folder that is a file": (lambda away, _b: ["generate", PROMPT, "--save-steps", made_file(away)], "is a file; give"),
    "no command like that": (lambda _a, _b: ["paint"], "paint"),
    "no option like that": (lambda _a, _b: ["generate", PROMPT, "--colour"], "--colour"),
    "no prompt": (lambda _a, _b: ["generate"], "the prompt is empty"),
    "no region": (picture(good, "edit", "IMAGE", PROMPT), "--region"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
@pytest.mark.parametrize("as_json", [False, True], ids=["words", "json"])
def test_bad_input(case: str, as_json: bool, here: Path, bundle: str, capsys: pytest.CaptureFixture[str]) -> None:
    make, message = BAD_INPUT[case]
    away = here.parent / "away"
    away.mkdir()
    arguments = make(away, bundle)
    if bundle != "nano" and not {"--bundle", "-b"} & set(arguments) and arguments[0] in {"generate", "edit", "describe", "ask", "analyze"}:
        arguments += ["--bundle", bundle]
    before = names(away)
    code = run([*arguments, *(["--json"] if as_json else [])])
    out, err = capsys.readouterr()
    assert code == 2
    assert out == ""
    assert err.startswith("f2edge: error: ")
    assert message in err
    assert err.count("\n") == 1
    assert len(err) < 1000
    assert names(here) == []
    assert names(away) == before


# Failures that are nobody's input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (BackendError("the engine\nhas stopped"), "the engine has stopped"),
        (RuntimeError("odd"), "unexpected RuntimeError: odd; F2EDGE_DEBUG=1"),
    ],
)
def test_other_failures_exit_with_1(
    error: Exception, message: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_arguments: object) -> None:
        raise error

    monkeypatch.setattr("f2edge.cli.options.open_description", broken)
    assert run(["generate", PROMPT]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"f2edge: error: {message}")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    monkeypatch.setenv("F2EDGE_DEBUG", "1")
    assert run(["generate", PROMPT]) == 1
    assert "Traceback" in capsys.readouterr().err
    assert names(here) == []


def test_an_interrupt_leaves_nothing(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stopped(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("f2edge.cli.options.open_description", stopped)
    assert run(["generate", PROMPT]) == 130
    assert capsys.readouterr().err == "f2edge: error: interrupted\n"
    assert names(here) == []


# As a process ----------------------------------------------------------------------------------------------------------------------------


def process(*arguments: str, redirected: str = "", **options: Any) -> subprocess.CompletedProcess[str]:
    """The command from anywhere, of the package under test, installed or not; ``redirected`` as a shell writes it."""
    environment = os.environ | {"PYTHONPATH": str(embedded_folder().parent.parent)}
    shell = ["sh", "-c", f'exec "$@" {redirected}', "sh"]
    command = [*shell, sys.executable, "-m", "f2edge", *arguments]
    return subprocess.run(command, text=True, check=False, timeout=120, env=environment, **options)


def test_version_help_and_exit_codes() -> None:
    assert process("--version", capture_output=True).stdout.startswith("f2edge 0.")
    helped = process("--help", capture_output=True)
    assert helped.returncode == 0
    for command in ("generate", "edit", "describe", "ask", "analyze", "info", "verify", "bundles"):
        assert command in helped.stdout
    bad = process("generate", "", capture_output=True)
    assert (bad.returncode, bad.stdout) == (2, "")


@pytest.mark.parametrize(
    ("arguments", "redirected", "code", "line"),
    [
        (["bundles"], ">&-", 1, "f2edge: error: standard output cannot be written (it is closed); the result is incomplete\n"),
        (["bundles"], ">&- 2>&-", 1, ""),
        (
            ["bundles"],
            ">/dev/full",
            1,
            "f2edge: error: standard output cannot be written (No space left on device); the result is incomplete\n",
        ),
        (
            ["bundles", "--json"],
            ">/dev/full",
            1,
            "f2edge: error: standard output cannot be written (No space left on device); the result is incomplete\n",
        ),
        (
            ["--version"],
            ">/dev/full",
            1,
            "f2edge: error: standard output cannot be written (No space left on device); the result is incomplete\n",
        ),
        (["describe", "missing.png"], "2>&-", 2, ""),
    ],
)
def test_a_standard_output_that_takes_nothing_is_one_line_and_no_success(
    arguments: list[str], redirected: str, code: int, line: str
) -> None:
    done = process(*arguments, redirected=redirected, capture_output=True)
    assert (done.returncode, done.stderr) == (code, line)


def test_a_result_in_a_file_needs_no_standard_output(here: Path, bundle: str) -> None:
    done = process("generate", PROMPT, "-b", bundle, "-q", redirected=">&-", capture_output=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert names(here) == ["face.png"]


def test_a_bar_appears_on_a_terminal_only_and_never_on_stdout(here: Path, bundle: str) -> None:
    master, slave = pty.openpty()
    seen: list[bytes] = []

    def drain() -> None:  # a terminal that is not read blocks its writer after a few KB
        with suppress(OSError):  # the other side has closed
            while data := os.read(master, 1 << 16):
                seen.append(data)

    reader = threading.Thread(target=drain)
    reader.start()
    done = process("generate", PROMPT, "-b", bundle, stdout=subprocess.PIPE, stderr=slave)
    os.close(slave)
    reader.join(10)
    os.close(master)
    assert done.returncode == 0
    assert b"decoding" in b"".join(seen)
    assert done.stdout.startswith("face.png  seed ")
    assert "decoding" not in done.stdout
    assert names(here) == ["face.png"]


def test_seeds_are_random_but_small_enough_to_type() -> None:
    drawn = {options.chosen_seed(None) for _ in range(100)}
    assert len(drawn) > 90
    assert all(0 <= seed < 2**31 for seed in drawn)
