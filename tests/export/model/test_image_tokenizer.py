"""The image tokenizer, its training task, and the workstation's command line around it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from export.cli import run as command
from export.model.discriminator import PatchDiscriminator, critic_loss, generator_loss
from export.model.image_tokenizer import ImageTokenizer, bit_statistics, bits_of, codes_of
from export.training.loop import TrainOptions
from export.training.tokenizer import (
    FINE_TUNING,
    LossWeights,
    TokenizerTask,
    code_metrics,
    edge_loss,
    finish,
    load_tokenizer,
    perceptual_loss,
    psnr,
)
from f2edge.errors import InputError
from f2edge.spec.configuration import NANO, NANO_2, SHIPPED, SHOW_O, ImageTokenizerConfiguration
from f2edge.spec.layout import tokens_of_cells

PAIRED = ImageTokenizerConfiguration(image_size=32, bits=6, channels=(8, 16, 32), blocks=1, codes_per_cell=2)
BLOCKS = ImageTokenizerConfiguration(image_size=32, bits=6, channels=(8, 16, 32), blocks=1, codes_per_cell=2, block=2, patch=4, mixing=True)
SMALL = ImageTokenizerConfiguration(image_size=32, bits=6, channels=(8, 16, 32), blocks=1)


class Discs:
    """Pictures of one colored disc each on a colored ground."""

    def __init__(self, count: int = 64, size: int = 32) -> None:
        self.count, self.size = count, size

    def __len__(self) -> int:
        return self.count

    def images(self, rows: Any) -> NDArray[np.uint8]:
        y, x = np.mgrid[: self.size, : self.size]
        pictures = []
        for row in rows:
            generator = np.random.default_rng(int(row))
            cx, cy = generator.uniform(10, 22, 2)
            radius = generator.uniform(4, 10)
            inside = ((x - cx) ** 2 + (y - cy) ** 2 < radius**2)[..., None]
            pictures.append(np.where(inside, generator.integers(0, 256, 3), generator.integers(0, 256, 3)))
        return np.stack(pictures).astype(np.uint8)


def trained_options(out: Path, steps: int) -> TrainOptions:
    return TrainOptions(
        out=out, steps=steps, batch=8, learning_rate=3e-3, warmup=5, optimizer="muon", ema=0.9, bf16=False, save_every=0, device="cpu"
    )


@settings(deadline=None)
@given(st.integers(1, 18), st.data())
def test_codes_and_bits_are_one_to_one(bits: int, data: st.DataObject) -> None:
    codes = torch.tensor(data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=1, max_size=20)))
    vectors = bits_of(codes, bits)
    assert vectors.shape == (len(codes), bits)
    assert set(vectors.flatten().tolist()) <= {-1.0, 1.0}
    assert torch.equal(codes_of(vectors), codes)
    # most significant bit first: the written-out binary number
    assert ["".join("1" if b > 0 else "0" for b in row) for row in vectors.tolist()] == [f"{c:0{bits}b}" for c in codes.tolist()]


@pytest.mark.parametrize(
    "configuration", [SMALL, PAIRED, BLOCKS, NANO.tokenizer, NANO_2.tokenizer, replace(NANO.tokenizer, image_size=192)]
)
def test_shapes_and_ranges(configuration: ImageTokenizerConfiguration) -> None:
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(configuration).eval()
    size, grid = configuration.image_size, configuration.grid
    pixels = torch.rand(2, 3, size, size) * 2 - 1
    with torch.no_grad():
        result = tokenizer(pixels)
        codes = tokenizer.encode(pixels)
        decoded = tokenizer.decode(codes)
    assert result.pixels.shape == decoded.shape == pixels.shape
    assert result.latent.shape == result.quantized.shape == (2, configuration.codes_per_cell * configuration.bits, grid, grid)
    assert codes.shape == (2, configuration.tokens)
    assert codes.dtype == torch.int64
    assert 0 <= int(codes.min()) <= int(codes.max()) < configuration.codes
    torch.testing.assert_close(decoded, result.pixels.clamp(-1, 1), rtol=1e-4, atol=1e-5)  # encode and decode are the two halves of forward
    assert decoded.abs().max() <= 1


@pytest.mark.parametrize("configuration", [SMALL, PAIRED, BLOCKS])
def test_codes_run_column_by_column_and_those_of_a_cell_side_by_side(configuration: ImageTokenizerConfiguration) -> None:
    torch.manual_seed(0)
    tokenizer, count = ImageTokenizer(configuration).eval(), configuration.codes_per_cell
    pixels = torch.rand(1, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        codes = tokenizer.encode(pixels)[0]
        latent = tokenizer(pixels).latent[0]
    cells = tokens_of_cells(np.arange(64).reshape(8, 8), configuration).tolist()
    assert cells[: 4 * count] == ([0, 0, 1, 1, 8, 8, 9, 9] if configuration.block == 2 else [k // count for k in range(4 * count)])
    for row, column in ((0, 0), (0, 5), (5, 0), (7, 7)):
        first = cells.index(row * 8 + column)
        for code in range(count):
            wanted = codes_of(latent[code * 6 : code * 6 + 6, row, column])
            assert int(codes[first + code]) == int(wanted)


def test_gradient_passes_straight_through() -> None:
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(SMALL)
    result = tokenizer(torch.rand(2, 3, 32, 32) * 2 - 1)
    assert set(result.quantized.detach().flatten().tolist()) == {-1.0, 1.0}
    upstream = torch.randn_like(result.quantized)
    (gradient,) = torch.autograd.grad(result.quantized, result.latent, upstream)
    assert torch.equal(gradient, upstream)
    torch.autograd.backward(result.pixels.square().mean())
    first = next(tokenizer.encoder.parameters())
    assert first.grad is not None
    assert first.grad.abs().sum() > 0


@settings(deadline=None)
@given(st.integers(2, 8), st.integers(0, 10_000))
def test_entropies_equal_the_sum_over_all_codes(bits: int, seed: int) -> None:
    latent = torch.randn(3, bits, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 0.5
    found = bit_statistics(latent, temperature=0.25)
    cells = latent.permute(0, 2, 3, 1).reshape(-1, bits)
    p = torch.sigmoid(cells / 0.25)
    probabilities = torch.ones(len(cells), 2**bits, dtype=torch.float64)
    for code in range(2**bits):
        for k in range(bits):
            probabilities[:, code] *= p[:, k] if code >> (bits - 1 - k) & 1 else 1 - p[:, k]
    torch.testing.assert_close(found.confidence, torch.special.entr(probabilities).sum(1).mean())
    torch.testing.assert_close(found.usage, torch.special.entr(probabilities.mean(0)).sum())
    torch.testing.assert_close(found.commitment, ((cells.abs() - 1) ** 2).mean())


def test_entropies_of_several_codes_are_their_means() -> None:
    latent = torch.randn(4, 12, 3, 3, generator=torch.Generator().manual_seed(0))
    both = bit_statistics(latent, codes_per_cell=2)
    parts = [bit_statistics(part) for part in latent.chunk(2, dim=1)]
    for name in ("confidence", "usage", "commitment"):
        torch.testing.assert_close(getattr(both, name), sum(getattr(part, name) for part in parts) / 2)


def test_usage_is_highest_when_every_code_is_met_once() -> None:
    every = bits_of(torch.arange(64), 6).T.reshape(1, 6, 8, 8) * 5
    assert float(bit_statistics(every).usage) == pytest.approx(math.log(64), abs=1e-3)
    assert float(bit_statistics(torch.full((1, 6, 8, 8), 5.0)).usage) == pytest.approx(0, abs=1e-3)
    metrics = code_metrics(torch.arange(64), 6)
    assert metrics == pytest.approx({"bit_entropy": 6.0, "worst_bit": 1.0, "codes_seen": 64.0, "perplexity": 64.0})


def test_foreign_families_and_sizes_are_refused() -> None:
    with pytest.raises(InputError, match="'magvit2'"):
        ImageTokenizer(SHOW_O.tokenizer)
    with pytest.raises(InputError, match="not a multiple"):
        ImageTokenizer(replace(SMALL, image_size=30))


def test_losses_of_equal_pictures_are_zero_and_edges_ignore_brightness() -> None:
    torch.manual_seed(0)
    pixels = torch.rand(2, 3, 32, 32)
    assert float(edge_loss(pixels, pixels)) == 0
    assert float(edge_loss(pixels + 0.3, pixels)) == pytest.approx(0, abs=1e-6)
    assert float(edge_loss(pixels.flip(3), pixels)) > 0.1
    assert float(psnr(pixels * 2 - 1, pixels * 2 - 0.8).mean()) == pytest.approx(20, abs=0.5)

    def features(x: torch.Tensor) -> list[torch.Tensor]:
        return [x, x.mean(1)]

    assert float(perceptual_loss(features, pixels, pixels)) == 0
    assert float(perceptual_loss(features, 2 * pixels, pixels)) == pytest.approx(1, abs=1e-4)


def test_critic_learns_to_tell_noise_from_discs() -> None:
    torch.manual_seed(0)
    critic = PatchDiscriminator(8)
    optimizer = torch.optim.AdamW(critic.parameters(), 5e-3)
    real = torch.from_numpy(Discs().images(range(16))).permute(0, 3, 1, 2).float() / 127.5 - 1
    fake = torch.rand_like(real) * 2 - 1
    before = critic_loss(critic(real), critic(fake)).item()
    for _ in range(40):
        optimizer.zero_grad()
        torch.autograd.backward(critic_loss(critic(real), critic(fake)))
        optimizer.step()
    assert critic_loss(critic(real), critic(fake)).item() < 0.5 * before
    assert generator_loss(critic(fake)) > generator_loss(critic(real))


@pytest.mark.slow
def test_training_improves_the_picture_and_the_critic_comes_late(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    task = TokenizerTask(Discs(), 8, 120, configuration=SMALL, recipe=LossWeights(critic_from=0.9), held_out=16)
    finish(task, trained_options(tmp_path, 120))
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = {row["step"]: row for row in log if "loss/model" in row}
    assert steps[120]["psnr"] > steps[20]["psnr"] + 2
    assert "loss/critic" not in steps[100]
    assert "loss/critic" in steps[120]
    assert log[-1]["validate/bit_entropy"] > 4
    sheet = Image.open(tmp_path / "samples" / "tokenizer-000120.png")
    assert sheet.size == (8 * 32, 2 * 2 * 32)
    tokenizer = load_tokenizer(tmp_path)
    pixels = torch.from_numpy(Discs().images(range(48, 64))).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        found = float(psnr(tokenizer.decode(tokenizer.encode(pixels)), pixels).mean())
    assert found == pytest.approx(log[-1]["validate/psnr"], abs=0.05)


def test_decoder_trained_further_keeps_the_codes(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    first = TokenizerTask(Discs(), 8, 40, configuration=SMALL, held_out=16)
    finish(first, trained_options(tmp_path / "first", 40))
    old = load_tokenizer(tmp_path / "first")
    assert isinstance(old, ImageTokenizer)
    task = TokenizerTask(Discs(), 8, 40, decoder_of=old, recipe=FINE_TUNING, held_out=16)
    finish(task, trained_options(tmp_path / "second", 40))
    new = load_tokenizer(tmp_path / "second")
    pixels = torch.from_numpy(Discs().images(range(48, 64))).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        codes = old.encode(pixels)
        assert torch.equal(codes, new.encode(pixels))
        assert float(psnr(new.decode(codes), pixels).mean()) > float(psnr(old.decode(codes), pixels).mean())


def test_batches_depend_on_their_arguments_only_and_spare_the_held_out() -> None:
    class Rows(Discs):
        def images(self, rows: Any) -> NDArray[np.uint8]:
            assert int(np.max(rows)) < 48
            return super().images(rows)

    one, other = (TokenizerTask(Rows(), 8, 10, configuration=SMALL, held_out=16, seed=3) for _ in range(2))
    assert torch.equal(one.batch(4, 1)["pixels"], other.batch(4, 1)["pixels"])
    distinct = {one.batch(*key)["pixels"].sum().item() for key in ((4, 1), (5, 1), (4, 0), (4, 2))}
    assert len(distinct) == 4
    with pytest.raises(InputError, match="render more"):
        TokenizerTask(Rows(16), 8, 10, configuration=SMALL, held_out=16)


def test_attributes_are_read_from_the_reconstruction_by_each_reader_in_turn() -> None:
    asked: list[int] = []

    def reader(number: int) -> Callable[[torch.Tensor], torch.Tensor]:
        def read(pixels: torch.Tensor) -> torch.Tensor:
            asked.append(number)
            bright = pixels.mean((1, 2, 3))
            return torch.stack((bright, -bright), -1)[:, None]  # (B, 1 slot, 2 values)

        return read

    def labels(rows: Any) -> NDArray[np.int8]:
        return np.zeros((len(rows), 1), np.int8)

    task = TokenizerTask(Discs(), 8, 10, configuration=SMALL, conditions=None, held_out=16, readers=(reader(0), reader(1)), labels=labels)
    plain = TokenizerTask(Discs(), 8, 10, configuration=SMALL, conditions=None, held_out=16)
    for step in range(2):
        losses, metrics = task.losses(task.batch(step, 0), step)
        without, _ = plain.losses(plain.batch(step, 0), step)
        added = task.recipe.attributes * torch.as_tensor(metrics["attributes"])
        torch.testing.assert_close(losses["model"], without["model"] + added)
    assert asked == [0, 1]
    assert "slots" not in plain.batch(0, 0)
    with pytest.raises(InputError, match="labels"):
        TokenizerTask(Discs(), 8, 10, configuration=SMALL, held_out=16, readers=(reader(0),))


@pytest.mark.slow
def test_a_new_run_begins_with_a_finished_ones_weights(tmp_path: Path) -> None:
    shards, first, second = tmp_path / "shards", tmp_path / "first", tmp_path / "second"
    assert command(["render", "--count", "40", "--out", str(shards)]) == 0
    options = ["train", "tokenizer", "--data", str(shards), "--smoke", "--batch", "4"]
    assert command([*options, "--steps", "2", "--out", str(first)]) == 0
    assert command([*options, "--steps", "1", "--rate", "1e-9", "--out", str(second), "--start-from", str(first)]) == 0
    one, two = load_tokenizer(first).state_dict(), load_tokenizer(second).state_dict()
    assert all(torch.allclose(one[name], two[name], atol=1e-5) for name in one)


def test_command_trains_from_rendered_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards, out = tmp_path / "shards", tmp_path / "run"
    assert command(["render", "--count", "40", "--out", str(shards)]) == 0
    arguments = ["train", "tokenizer", "--data", str(shards), "--out", str(out), "--smoke", "--steps", "3", "--batch", "4"]
    assert command(arguments) == 0
    assert capsys.readouterr().out.strip().splitlines()[-1] == str(out)
    assert load_tokenizer(out).configuration == SHIPPED.tokenizer
    assert command([*arguments, "--rate", "1e-3"]) == 0  # finished: nothing to do, the same answer


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "tokenizer", "--data", "nowhere", "--out", "run"], "nowhere: no meta.json"),
        (["train", "tokenizer", "--out", "run"], "Missing option '--data'"),
        (["train", "tokenizer", "--data", "nowhere", "--out", "run", "--schedule", "steep"], "unknown schedule 'steep'"),
        (["train", "tokenizer", "--data", "nowhere", "--out", "run", "--steps", "0"], "steps must be at least 1"),
        (["render", "--out", "run", "--split", "third"], "split 'third' is unknown"),
        (["dance"], "No such command 'dance'"),
    ],
)
def test_bad_commands_end_with_2_and_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command(arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert len([line for line in printed.err.splitlines() if "faces/s" not in line and line.strip()]) == 1
    assert not printed.out
    assert not list(tmp_path.iterdir())
