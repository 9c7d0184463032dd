"""The quality bench: metrics against slow references, sections with a perfect and with a poor model."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console

from bench import cli
from bench.quality import quality, scores
from bench.quality.contact_sheet import contact_sheet, wrapped
from bench.quality.edit import KINDS, edit, plan_edits
from bench.quality.faces import HeldOutFaces, held_out_prompts
from bench.quality.frechet import frechet_distance, gaussian_distance
from bench.quality.quality import Bench, Question, Texts
from bench.quality.report import SECTIONS, chosen_sections, print_results, run_sections
from bench.quality.telephone import telephone
from bench.quality.words import unsaid
from export.data.slots import SPLIT_SLOTS, sample_slots, visible
from export.data.text.captions import describe_text, mentioned_in
from f2edge.errors import InputError
from f2edge.spec.attributes import F2EDGE_SCHEMA, AttributeSchema, Slot

SMALL = AttributeSchema([Slot("a", ("x", "y", "z"), "a?", "test"), Slot("b", ("no", "yes"), "b?", "test")])


# --- metrics -------------------------------------------------------------------------------------------------------------------------


def test_distance_of_gaussians_in_closed_form() -> None:
    one = gaussian_distance(np.array([1.0]), np.array([[4.0]]), np.array([4.0]), np.array([[1.0]]))
    assert one == pytest.approx(3**2 + (2 - 1) ** 2)
    diagonal = gaussian_distance(np.zeros(3), np.diag([1.0, 4.0, 9.0]), np.ones(3), np.diag([4.0, 4.0, 1.0]))
    assert diagonal == pytest.approx(3 + 1 + 0 + 4)


def test_distance_of_gaussians_against_the_matrix_square_root() -> None:
    rng = np.random.default_rng(0)
    a, b = (m @ m.T + np.eye(5) for m in rng.normal(size=(2, 5, 5)))
    mean_a, mean_b = rng.normal(size=(2, 5))
    root = scipy.linalg.sqrtm(a @ b).real
    slow = np.sum((mean_a - mean_b) ** 2) + np.trace(a + b - 2 * root)
    assert gaussian_distance(mean_a, a, mean_b, b) == pytest.approx(slow, rel=1e-6)


def test_frechet_distance_of_samples() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(4000, 3)), rng.normal(loc=[2, 0, 0], size=(4000, 3))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(a, b) == pytest.approx(4, rel=0.1)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-6)
    few = rng.normal(size=(4, 30))
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-4)
    with pytest.raises(InputError, match="Fréchet"):
        frechet_distance(a[:1], b)


TABLES = arrays(np.int64, (12, 2), elements=st.integers(-1, 1))


@given(arrays(np.int64, 20, elements=st.integers(-1, 3)), arrays(np.int64, 20, elements=st.integers(0, 3)))
def test_balanced_accuracy_is_the_mean_recall(truth: np.ndarray, answers: np.ndarray) -> None:
    recalls = []
    for value in sorted({int(t) for t in truth if t >= 0}):
        found = [int(a) == value for t, a in zip(truth, answers, strict=True) if t == value]
        recalls.append(sum(found) / len(found))
    result = scores.balanced_accuracy(answers, truth)
    assert np.isnan(result) if not recalls else result == pytest.approx(sum(recalls) / len(recalls))


@given(TABLES, TABLES)
def test_slot_shares_count_given_slots_only(truth: np.ndarray, answers: np.ndarray) -> None:
    shares = scores.slot_shares(answers, truth, SMALL)
    pairs = [(int(t), int(a)) for t, a in zip(truth.ravel(), answers.ravel(), strict=True) if t >= 0]
    assert shares.overall == pytest.approx(sum(t == a for t, a in pairs) / max(len(pairs), 1))
    assert sum(shares.count.values()) == len(pairs)
    assert sum(shares.by_slot[name] * shares.count[name] for name in shares.count) == pytest.approx(sum(t == a for t, a in pairs))


@given(TABLES)
def test_no_constant_guess_beats_the_majority(truth: np.ndarray) -> None:
    best = scores.slot_shares(scores.majority_answers(truth), truth, SMALL).overall
    for guess in ((0, 0), (0, 1), (1, 0), (1, 1)):
        assert scores.slot_shares(np.broadcast_to(guess, truth.shape), truth, SMALL).overall <= best + 1e-12


def test_descriptions_are_marked_by_what_can_be_seen() -> None:
    truth = np.array([[2, 1], [0, -1], [1, 0]])
    said = np.array([[2, -1], [0, 1], [2, 0]])
    precision, recall = scores.description_scores(said, truth)
    assert precision == pytest.approx(3 / 5)  # right: z, x, no; wrong: b of a face that hides it, z instead of y
    assert recall == pytest.approx(1 / 3)  # remarkable and visible: z, yes, y; said: z


def test_exact_match_by_kind() -> None:
    table = scores.exact_match(["Yes.", "red  hair", "no"], ["yes", "Red hair", "yes"], ["yes_no", "open", "yes_no"])
    assert table == {"open": 1.0, "yes_no": 0.5, "all": pytest.approx(2 / 3)}


def test_mention_table_refuses_unknown_values() -> None:
    np.testing.assert_array_equal(scores.mention_table([{"b": "yes"}, {}], SMALL), [[-1, 1], [-1, -1]])
    with pytest.raises(InputError, match="no value"):
        scores.mention_table([{"b": "perhaps"}], SMALL)


# --- pages ---------------------------------------------------------------------------------------------------------------------------


@given(st.lists(st.text("abcdefgh", min_size=1, max_size=9), min_size=1, max_size=30), st.integers(1, 4))
def test_wrapped_lines_fit_and_lose_nothing_but_the_end(words: list[str], lines: int) -> None:
    draw, font = ImageDraw.Draw(Image.new("RGB", (8, 8))), ImageFont.load_default(12)
    result = wrapped(" ".join(words), draw, font, 90, lines)
    assert 1 <= len(result) <= lines
    assert all(draw.textlength(line, font=font) <= 90 for line in result)
    if result[-1].endswith("…"):
        assert " ".join(words).startswith(" ".join(result)[:-1])
    else:
        assert " ".join(result).split() == words


def test_contact_sheet_shows_every_picture_in_its_place() -> None:
    colors = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    sheet = contact_sheet([Image.new("RGB", (32, 32), c) for c in colors], ["one", "two", "three"], columns=2, size=96, lines=2)
    assert sheet.width == 8 + 2 * (96 + 8)
    found = [sheet.getpixel((56, 56)), sheet.getpixel((160, 56)), sheet.getpixel((56, sheet.height // 2 + 56))]
    assert found == colors
    with pytest.raises(InputError, match="as many captions"):
        contact_sheet([], [])


# --- sections ------------------------------------------------------------------------------------------------------------------------

NAMES = list(F2EDGE_SCHEMA)


def written(slots: Mapping[str, str]) -> np.ndarray:
    """Return a picture that encodes its slots in its first row of pixels: red is the value's index plus one."""
    picture = np.full((128, 128, 3), 128, np.uint8)
    picture[0] = 0
    for k, name in enumerate(NAMES):
        picture[0, k, 0] = F2EDGE_SCHEMA[name].index(slots[name]) + 1 if name in slots else 0
    return picture


def read(picture: np.ndarray) -> dict[str, str]:
    return {name: F2EDGE_SCHEMA[name].values[picture[0, k, 0] - 1] for k, name in enumerate(NAMES) if picture[0, k, 0]}


def rendered(count: int, seed: int) -> HeldOutFaces:
    shown = [visible(sample_slots(np.random.default_rng([seed, i]), "heldout")) for i in range(count)]
    return HeldOutFaces(np.stack([written(s) for s in shown]), tuple(shown))


class ReadingJudge:
    schema = F2EDGE_SCHEMA

    def predict(self, images: np.ndarray) -> np.ndarray:
        return images[:, 0, : len(NAMES), 0].astype(np.int64) - 1

    def features(self, images: np.ndarray) -> np.ndarray:
        return images[:, 0, : len(NAMES), 0].astype(np.float32)


class Model:
    """Fake of a perfect model; with ``lazy`` it draws first values only and answers everything wrong."""

    bundle = SimpleNamespace(regions=("hair", "eyes", "mouth", "chin", "clothing", "background"))

    def __init__(self, *, lazy: bool = False) -> None:
        self.lazy = lazy
        self.seeds: list[int] = []

    def generate(self, prompts: Sequence[str], *, seeds: Sequence[int], options: Any, check: int = 0) -> list[Any]:
        self.seeds += [] if check else seeds
        first = {name: slot.values[0] for name, slot in F2EDGE_SCHEMA.items()}
        drawn = [first | ({} if self.lazy else mentioned_in(prompt)) for prompt in prompts]
        return [SimpleNamespace(image=Image.fromarray(written(d)), check=SimpleNamespace(score=1.0)) for d in drawn]

    def encode(self, images: Sequence[Image.Image]) -> np.ndarray:
        return np.stack([np.asarray(image)[0, :64, 0] for image in images])

    def decode(self, codes: np.ndarray) -> list[Image.Image]:
        pictures = np.full((len(codes), 128, 128, 3), 128, np.uint8)
        pictures[:, 0] = 0
        pictures[:, 0, :64, 0] = np.minimum(codes, 1) if self.lazy else codes
        return [Image.fromarray(p) for p in pictures]

    def analyze(self, image: Image.Image) -> list[Any]:
        unfamiliar = float(np.asarray(image)[1:].std() > 0)
        slots = {} if unfamiliar else read(np.asarray(image))
        best = {n: s.values[0] if self.lazy else slots.get(n, s.values[-1]) for n, s in F2EDGE_SCHEMA.items()}
        probabilities = {n: {best[n]: 1.0} for n in best}
        return [SimpleNamespace(best=best, probabilities=probabilities, unfamiliar=unfamiliar)]

    def pixels(self, image: Image.Image) -> np.ndarray:
        return np.asarray(image)

    def cells(self, _region: str, _size: tuple[int, int], _pixels: np.ndarray) -> np.ndarray:
        return np.zeros((8, 8), dtype=bool)

    def ask(self, image: Image.Image, question: str) -> Any:
        return SimpleNamespace(text="perhaps" if self.lazy else f"{read(np.asarray(image))[question].capitalize()}.")

    def describe(self, image: Image.Image) -> Any:
        return SimpleNamespace(text="a person with brown hair" if self.lazy else describe_text(read(np.asarray(image))).text)

    def token_mask(self, cells: np.ndarray) -> np.ndarray:
        return cells.ravel()

    def edit(self, image: Image.Image, prompt: str, region: str, *, seed: int, options: Any, check: int = 0) -> Any:
        wanted = mentioned_in(prompt)
        codes, cells = np.arange(64), np.zeros((8, 8), dtype=bool)
        cells[2:4, 2:5] = True
        changed = np.where(cells.ravel(), 99, codes)
        if self.lazy:
            changed[0] = 98
        slots = read(np.asarray(image)) | ({} if self.lazy else wanted)
        return SimpleNamespace(image=Image.fromarray(written(slots)), codes=changed, original_codes=codes, region=cells)


def questions(shown: Mapping[str, str], seed: int, count: int) -> list[Question]:
    names = sorted(shown)[seed % 5 :][:count]
    return [Question(name, shown[name], "slot") for name in names]


def bench_of(model: Model, out: Path | None = None, images: int = 40) -> Bench:
    return Bench(model, ReadingJudge(), images, seed=3, out=out, texts=Texts(questions=questions), render=rendered)  # type: ignore[arg-type]


def test_a_perfect_model_scores_full_marks(tmp_path: Path) -> None:
    results = run_sections(
        bench_of(Model(), tmp_path), [name for name in SECTIONS if name not in {"realism", "robustness", "layout"}]
    )  # need faces
    assert results["generate"]["accuracy"] == results["generate"]["judge_on_renders"] == 1
    assert results["generate"]["chance"] < 0.8
    assert results["tokenizer"]["accuracy"] == results["tokenizer"]["judge_on_renders"] == 1
    assert results["analyze"]["balanced_accuracy"] == results["analyze"]["accuracy"] == 1
    assert results["ask"]["exact_match"] == results["ask"]["by_kind"]["slot"] == 1
    assert results["describe"]["precision"] == 1
    assert results["describe"]["recall"] > 0.7
    assert results["edit"]["accuracy"] == results["edit"]["tokens_outside_identical"] == results["edit"]["other_slots_unchanged"] == 1
    assert results["everyday"]["weakest"] == 1
    assert results["typed"]["accuracy"] > 0.95
    assert results["instruct"]["accuracy"] == results["instruct"]["other_slots_unchanged"] == 1
    assert results["telephone"]["after_all"] > 0.9  # a description leaves out what is ordinary
    assert results["domain"]["weakest"] == 1
    assert results["check"]["generate"]["accuracy_without"] == results["check"]["generate"]["rounds"]["2"]["accuracy"] == 1
    assert results["check"]["edit"]["accuracy"] == 1
    sheets = {"generate", "tokenizer", "describe", "edit", "everyday", "typed", "instruct", "telephone", "unsaid"}
    assert {p.stem for p in tmp_path.glob("*.png")} == sheets
    assert all(Image.open(tmp_path / f"{name}.png").width > 1000 for name in sheets)


def test_a_lazy_model_scores_low() -> None:
    bench = bench_of(Model(lazy=True))
    made = quality.generate(bench)
    prompts = held_out_prompts(bench.faces.visible[:40], 3)
    said = [(name, value) for p in prompts for name, value in p.mentioned.items()]
    assert made["mentions"] == len(said)
    assert made["accuracy"] == pytest.approx(sum(F2EDGE_SCHEMA[n].index(v) == 0 for n, v in said) / len(said))
    assert made["accuracy"] <= made["chance"]
    assert made["frechet"] > 3 * made["frechet_of_renders"]
    analysis = quality.analyze(bench)
    assert analysis["by_slot"]["hair_color"] == pytest.approx(1 / 6)
    assert quality.ask(bench)["exact_match"] == 0
    assert quality.describe(bench)["recall"] < 0.1
    edits = edit(bench)
    assert edits["accuracy"] == 0
    assert edits["tokens_outside_identical"] == 0
    assert edits["other_slots_unchanged"] == 1
    assert quality.tokenizer(bench)["accuracy"] < 0.6
    assert telephone(bench)["after_all"] < 0.5
    collapsed = unsaid(bench)
    assert collapsed["distance"] > 2 * collapsed["distance_of_renders"]


def test_runs_are_repeatable_and_every_picture_has_a_distinct_seed() -> None:
    models = Model(), Model()
    first, second = (quality.generate(bench_of(m, images=20)) for m in models)
    assert first == second
    assert models[0].seeds == models[1].seeds
    assert len(set(models[0].seeds)) == 20


def test_prompts_name_the_combination_that_training_never_saw() -> None:
    shown = rendered(30, 5).visible
    prompts = held_out_prompts(shown, 5)
    assert prompts == held_out_prompts(shown, 5)
    assert prompts != held_out_prompts(shown, 6)
    assert len(prompts) == 30
    named = [all(s in p.mentioned for s in SPLIT_SLOTS if s in face) for p, face in zip(prompts, shown, strict=True)]
    assert np.mean(named) >= 0.9
    for prompt, face in zip(prompts, shown, strict=True):
        assert prompt.mentioned.items() <= face.items()
        assert mentioned_in(prompt.text) == dict(prompt.mentioned)
        assert len(prompt.mentioned) >= min(4, len(face))


def test_planned_edits_ask_for_something_new_on_faces_that_allow_it() -> None:
    faces = rendered(400, 6)
    edits = plan_edits(faces, KINDS, 70, 6)
    assert len({e.row for e in edits}) == len(edits)
    assert {e.kind.slot for e in edits} == {k.slot for k in KINDS}
    assert len(edits) > 50
    for planned in edits:
        face = faces.visible[planned.row]
        assert face[planned.kind.slot] != planned.value
        assert mentioned_in(planned.prompt)[planned.kind.slot] == planned.value
        assert all(face[s] in values for s, values in planned.kind.only.items())


def test_bundle_without_regions_cannot_be_edited() -> None:
    model = Model()
    model.bundle = SimpleNamespace(regions=())
    with pytest.raises(InputError, match="regions"):
        edit(bench_of(model, images=4))


# --- command line --------------------------------------------------------------------------------------------------------------------


def test_sections_are_chosen_by_name() -> None:
    assert chosen_sections("") == list(SECTIONS)
    assert chosen_sections("ask, generate") == ["generate", "ask"]
    with pytest.raises(InputError, match="unknown section nonsense"):
        chosen_sections("ask,nonsense")


def test_results_are_printed_and_written(tmp_path: Path) -> None:
    results = run_sections(bench_of(Model(), tmp_path / "new", images=10), ["ask", "generate"], {"bundle": "paper"})
    assert json.loads((tmp_path / "new" / "quality.json").read_text()) == {"settings": {"bundle": "paper"}, **results}
    text = io.StringIO()
    print_results(results, Console(file=text, width=120))
    assert "exact match" in text.getvalue()
    assert "100.0 %" in text.getvalue()
    assert "hair_color" in text.getvalue()


@pytest.mark.parametrize("arguments", [["--only", "nonsense"], ["--bundle", "/nowhere"]])
def test_bad_input_ends_with_code_2_and_one_line(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["bench", "quality", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    captured = capsys.readouterr()
    assert ended.value.code == 2
    assert captured.out == ""
    assert captured.err.startswith("error: ")
