"""Recipes on whole bundles: the same bundle by another recipe, batch mates, sensitivity, and what is refused."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import save_file

from bench.quality.recipes import chance, chosen_recipes, losses, print_table, recipes, shares
from export import bundle_writer
from export.graph.lower import Array
from export.model.magvit2 import build_tokenizer
from export.model.transformer import UnifiedTransformer
from export.onnx_export import load_models
from export.quantize import requantize as requantizing
from export.quantize.calibration import Calibrator, valid_columns
from export.quantize.recipes import RECIPES, recipe_named
from export.quantize.requantize import calibrate, fp32_graphs, requantize
from export.quantize.sensitivity import compare, sensitivity
from export.verify.parity import SampleInputs, generate
from f2edge.backends.base import host
from f2edge.backends.onnxruntime import OnnxRuntimeBackend
from f2edge.bundle.bundle import Bundle
from f2edge.decoding.schedule import Schedule
from f2edge.errors import InputError, OutputError
from f2edge.spec.configuration import NANO
from f2edge.spec.layout import left_pad


def inputs_of(bundle: Path, steps: int = 4, prompts: int = 3) -> SampleInputs:
    rng, layout = np.random.default_rng(0), Bundle.load(bundle).layout

    def sentence(least: int, most: int) -> list[int]:
        return [int(i) for i in rng.integers(2, layout.text_vocabulary, rng.integers(least, most))]

    return SampleInputs(
        prompts=[sentence(1, 30) for _ in range(prompts)],
        questions=[sentence(3, 12) for _ in range(3)],
        pixels=rng.uniform(-1, 1, (1, 3, 128, 128)).astype(np.float32),
        seeds=list(range(11, 11 + prompts)),
        schedule=Schedule(steps=steps, guidance=2.0, temperature=1.0),
    )


@pytest.fixture(scope="module")
def inputs(tiny_bundle: Path) -> SampleInputs:
    return inputs_of(tiny_bundle)


@pytest.fixture(scope="module")
def by_recipe(tiny_bundle: Path, inputs: SampleInputs, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The tiny bundle by any recipe, each made once."""
    folder, made = tmp_path_factory.mktemp("recipes"), dict[str, Path]()

    def get(recipe: str) -> Path:
        if recipe not in made:
            made[recipe] = requantize(tiny_bundle, folder / recipe / "tiny", recipe, inputs)
        return made[recipe]

    return get


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_tokens_do_not_depend_on_batch_mates(recipe: str, by_recipe: Callable[[str], Path], inputs: SampleInputs) -> None:
    bundle = Bundle.load(by_recipe(recipe))
    assert {name: graph.precision for name, graph in bundle.manifest.graphs.items()} == {
        name: RECIPES[recipe].of(name).label for name in bundle.manifest.graphs
    }
    engine = OnnxRuntimeBackend(bundle.path)
    together = generate(engine, bundle.layout, inputs)
    assert np.array_equal(together, generate(engine, bundle.layout, inputs, rows=1))
    answers = [answer(engine, bundle, inputs, rows) for rows in ([0, 1, 2], [2], [0])]
    assert answers[0][2] == answers[1][0]
    assert answers[0][0] == answers[2][0]


def answer(engine: OnnxRuntimeBackend, bundle: Bundle, inputs: SampleInputs, rows: list[int], tokens: int = 4) -> list[list[int]]:
    """Greedy answers to some of the questions about one picture, asked together."""
    pixels = inputs.pixels[:1]
    features = {name: engine.run(name, {"pixels": pixels})["features"] for name in ("semantic", "identity")}
    image = engine.run("mmu_prefill", {"codes": engine.run("image_encode", {"pixels": pixels})["codes"], **features})
    # as wide as the longest question of all, whoever is asked along: another width is another sum
    longest = max(len(bundle.layout.question(question)) for question in inputs.questions)
    ids, lengths = left_pad([bundle.layout.question(inputs.questions[row]) for row in rows], bundle.layout.pad, longest)
    L, _, H, _, W = host(image["image_key"]).shape
    key = value = np.zeros((L, len(rows), H, 0, W), dtype=np.float32)
    said: list[list[int]] = [[] for _ in rows]
    for _ in range(tokens):
        found = engine.run("mmu_extend", {"text_ids": ids, "text_lengths": lengths, **image, "text_key": key, "text_value": value})
        ids, lengths = host(found["logits"]).argmax(-1)[:, None], lengths + 1
        key, value = host(found["next_text_key"]), host(found["next_text_value"])
        for row, token in zip(said, ids[:, 0].tolist(), strict=True):
            row.append(token)
    return said


def test_a_bundle_by_another_recipe_is_the_one_that_export_writes(tiny_bundles: dict[str, Path], by_recipe: Callable[[str], Path]) -> None:
    ours, theirs = Bundle.load(by_recipe("int8")), Bundle.load(tiny_bundles["int8"])
    rng = np.random.default_rng(3)
    feeds: dict[str, Array] = {"pixels": rng.uniform(-1, 1, (2, 3, 128, 128)).astype(np.float32)}
    for graph in ("semantic", "image_encode", "regions"):
        here, there = (OnnxRuntimeBackend(bundle.path).run(graph, feeds) for bundle in (ours, theirs))
        assert all(np.array_equal(host(here[name]), host(there[name])) for name in here)
    sizes = [{name: entry.size for name, entry in bundle.manifest.files.items()} for bundle in (ours, theirs)]
    assert sizes[0]["weights.bin"] == sizes[1]["weights.bin"]
    assert json.loads((by_recipe("int8") / "manifest.json").read_text(encoding="utf-8")).get("parity") is None  # measured on another


def test_a_decoder_in_int8_leaves_the_codes_of_pictures_alone(by_recipe: Callable[[str], Path], inputs: SampleInputs) -> None:
    plain, computed = (OnnxRuntimeBackend(Bundle.load(by_recipe(recipe)).path) for recipe in ("int8", "int8-decoder"))
    codes = [host(backend.run("image_encode", {"pixels": inputs.pixels})["codes"]) for backend in (plain, computed)]
    assert np.array_equal(codes[0], codes[1])
    pictures = [host(backend.run("image_decode", {"codes": codes[0]})["pixels"]) for backend in (plain, computed)]
    assert 0 < np.abs(pictures[0] - pictures[1]).mean() < 0.1 * np.abs(pictures[0]).mean() + 0.05


def test_four_bits_are_smaller_and_stay_close(tiny_bundle: Path, by_recipe: Callable[[str], Path], inputs: SampleInputs) -> None:
    size, right = {}, {}
    wanted = generate(OnnxRuntimeBackend(Bundle.load(tiny_bundle).path), Bundle.load(tiny_bundle).layout, inputs)
    for recipe in ("int8", "int4", "int4-gptq"):
        bundle = Bundle.load(by_recipe(recipe))
        size[recipe] = bundle.manifest.files["weights.bin"].size
        right[recipe] = float((generate(OnnxRuntimeBackend(bundle.path), bundle.layout, inputs) == wanted).mean())
    assert size["int4-gptq"] <= size["int4"] < size["int8"]
    assert right["int8"] > 0.3  # random weights: a token that differs changes all later ones
    chance = 1 / Bundle.load(tiny_bundle).layout.codes
    assert min(right.values()) > 10 * chance


def test_calibration_leaves_padding_out_and_wants_whole_guided_decodings(tiny_bundle: Path) -> None:
    valid = valid_columns("t2i_prefill", {"prompt_ids": np.zeros((2, 5)), "prompt_lengths": np.array([2, 5])})
    assert valid is not None
    assert valid.tolist() == [[False] * 3 + [True] * 2, [True] * 5]
    assert valid_columns("t2i_step", {}) is None
    bundle, graphs = Bundle.load(tiny_bundle), fp32_graphs(tiny_bundle)
    one_step = inputs_of(tiny_bundle, steps=1, prompts=1)
    with pytest.raises(InputError, match=r"calibration saw mask ratios 1\.00 to 1\.00"):
        calibrate(graphs, recipe_named("int8-smooth"), bundle.layout, one_step)
    four_steps = inputs_of(tiny_bundle, prompts=1)
    unguided = replace(four_steps, schedule=replace(four_steps.schedule, guidance=0.0))  # as a student draws
    assert calibrate(graphs, recipe_named("int8-smooth"), bundle.layout, unguided)
    with Calibrator(graphs, recipe_named("int4-gptq")) as calibrator:
        generate(calibrator, bundle.layout, four_steps)
    calibrator.check()
    layer = "blocks.0.experts.t2i.down.weight.T"
    products, largest = calibrator.statistics[f"{layer} (products)"], calibrator.statistics[layer]
    assert products.shape == (largest.size, largest.size)
    assert np.allclose(products, products.T, rtol=1e-4, atol=1e-4)
    assert (np.diag(products) >= largest**2 * 0.999).all()


def test_missing_calibration_data_and_quantized_bundles_are_refused(tiny_bundle: Path, tiny_int8_bundle: Path, tmp_path: Path) -> None:
    for recipe in ("int4-gptq", "int8-smooth"):
        with pytest.raises(
            InputError, match=rf"recipe '{recipe}' needs calibration data: prompts, questions and pictures \(got 0, 0 and 0\)"
        ):
            requantize(tiny_bundle, tmp_path / "b", recipe)
    with pytest.raises(InputError, match="export it with --recipe fp32 first"):
        requantize(tiny_int8_bundle, tmp_path / "b", "int4")
    with pytest.raises(InputError, match="unknown quantization recipe 'int5'"):
        requantize(tiny_bundle, tmp_path / "b", "int5")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_said_and_leaves_no_half_bundle(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requantize(tiny_bundle, tmp_path / "tiny", "int8")
    before = (tmp_path / "tiny" / "manifest.json").read_bytes()

    def full(_folder: Path, *_rest: Any) -> dict[str, Any]:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(requantizing, "write_graphs", full)
    monkeypatch.setattr(bundle_writer, "write_graphs", full)
    with pytest.raises(OutputError, match=r"tiny: No space left on device; free some space or choose another folder"):
        requantize(tiny_bundle, tmp_path / "tiny", "int4")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]
    assert (tmp_path / "tiny" / "manifest.json").read_bytes() == before


def test_a_folder_that_holds_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    with pytest.raises(InputError, match="tokenizer"):
        load_models(tmp_path / "unified", tmp_path / "tokenizer", None)
    with pytest.raises(InputError, match="unknown configuration 'mini'; choose one of"):
        load_models(tmp_path, tmp_path, None, "mini")


def test_weights_that_name_their_configuration_only_are_loaded(tmp_path: Path) -> None:
    """As a training run writes them; an import writes the whole configuration."""
    (tmp_path / "tokenizer").mkdir()
    for part, name in ((build_tokenizer(NANO.tokenizer), "tokenizer/tokenizer"), (UnifiedTransformer(NANO), "unified")):
        row = {"configuration": json.dumps(asdict(NANO.tokenizer)) if "tokenizer" in name else NANO.name}
        save_file({key: value.contiguous() for key, value in part.state_dict().items()}, tmp_path / f"{name}.safetensors", row)
    with pytest.raises(InputError, match="configuration 'nano' has encoders"):  # so far it comes: both parts are read
        load_models(tmp_path, tmp_path / "tokenizer", None)


def test_sensitivity_ranks_layers_and_raising_the_worst_helps(tiny_bundle: Path, inputs: SampleInputs) -> None:
    report = sensitivity(tiny_bundle, "int4", inputs, only_graphs=("t2i_step",), limit=2, times=1.2, progress=lambda _message: None)
    errors = [row["error"] for row in report["rows"]]
    assert errors == sorted(errors, reverse=True)
    assert min(errors) > 0
    assert all(row["divergence"] >= 0 for row in report["rows"])
    assert {"blocks.0.attention.input.weight.T", "blocks.1.experts.t2i.down.weight.T"} <= {row["layer"] for row in report["rows"]}
    assert report["higher"]
    assert set(report["higher"]) < {row["layer"] for row in report["rows"]}
    assert report["whole"]["t2i_step"]["raised"] < report["whole"]["t2i_step"]["all"]
    with pytest.raises(InputError, match="quantizes no linear layer"):
        sensitivity(tiny_bundle, "fp32", inputs)


def test_comparison_of_logits_is_zero_for_the_same_and_grows() -> None:
    logits = np.random.default_rng(0).normal(size=(2, 3, 7)).astype(np.float32)
    assert compare([logits], [logits], logits=True)[0] == 0
    assert compare([logits], [logits], logits=False) == (0.0, None)
    near, far = (compare([logits], [logits + scale * np.arange(7, dtype=np.float32)], logits=True) for scale in (0.01, 0.1))
    assert 0 < near[0] < far[0]
    assert near[1] is not None
    assert far[1] is not None
    assert 0 < near[1] < far[1]


def quality(share: float) -> dict[str, Any]:
    return {"analyze": {"faces": 100, "balanced_accuracy": share}, "ask": {"questions": 50, "exact_match": 1.0, "by_kind": {}}}


def test_the_table_of_recipes_names_what_is_lost_beyond_its_allowance(capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[dict[str, Any]] = [
        {"recipe": recipe, "bytes": 10**6, "quality": quality(share), "shares": shares(quality(share)), "times": {}}
        for recipe, share in (("fp32", 0.9), ("int8", 0.895), ("mixed", 0.885), ("int4", 0.885), ("int4-128", 0.87))
    ]
    lost = losses(rows)
    assert [line.split(":")[0] for line in lost] == ["mixed", "int4-128"]
    assert lost[0] == "mixed: analyze.balanced_accuracy is 1.5 points below fp32, allowed are 1 (±4.2 by chance)"
    by_chance = chance(rows[0]["quality"])
    assert by_chance["analyze.balanced_accuracy"] == pytest.approx(100 * (2 * 0.9 * 0.1 / 100) ** 0.5)
    assert by_chance["ask.exact_match"] > 0  # of fifty questions, one wrong is always possible
    print_table(rows, lost)
    shown = capsys.readouterr().out
    assert "-1.5" in shown
    assert "90.0" in shown
    assert "±4.2" in shown


def test_recipes_of_the_bench_are_checked_first(tmp_path: Path) -> None:
    assert chosen_recipes("int8, fp32,int4,int8") == ["fp32", "int8", "int4"]
    with pytest.raises(InputError, match="unknown quantization recipe 'int9'"):
        chosen_recipes("int9")
    with pytest.raises(InputError, match="no recipes; give some"):
        chosen_recipes(" ,")
    with pytest.raises(InputError, match="unknown section tidy"):
        recipes(bundle=tmp_path, only="tidy", out=tmp_path / "out")
    assert not list(tmp_path.iterdir())
