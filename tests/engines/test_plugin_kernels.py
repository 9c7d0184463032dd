"""The fused experts' Triton kernels, interpreted on the CPU, against the slow reference."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest

from engines.plugins import reference
from engines.plugins.fused_moe import LARGE, SMALL, KernelPlan, MoEShape, Tile, choose_tile
from tests.support.tensorrt.plugin_cases import random_rows, random_weights, row_errors
from tests.support.tensorrt.plugin_interpreter import Array, Interpreter, interpreter, run

pytest.importorskip(
    "triton", reason="the plug-in's kernels are written in Triton, which exists for Linux only: pip install f2edge[plugins]"
)

#: Of fp16: two roundings on the way (hidden values and parts) and one of the output.
TOLERANCE = 1e-3
#: Sizes (D, I, gated) that no tile divides, taken in turn; the second needs several column blocks and several steps of each sum.
ODD = ((50, 36, False), (130, 70, False), (33, 17, True), (64, 48, True))


@pytest.fixture(scope="module")
def interpreted() -> Iterator[Interpreter]:
    with interpreter() as process:
        yield process


def check(interpreted: Interpreter, shape: MoEShape, x: Array, weights: dict[str, Array], tile: Tile) -> dict[str, Array]:
    """Run, compare with the reference, and return what the kernels wrote."""
    written = interpreted(run, shape, x, weights, tile)
    experts, gates = reference.route(x, weights["router_weight"], weights["router_bias"], shape.active)
    assert np.array_equal(written["experts"], experts)
    assert np.abs(written["gates"] - gates).max() < 2e-6
    exact = reference.fused_moe(x, weights, shape.active, gated=shape.gated)
    assert row_errors(written["y"], exact).max() < TOLERANCE
    return written


def cases() -> list[Any]:
    """Every (T, E, K), numbered; of the large ones, which the interpreter takes seconds for, one each is run every time."""
    found = []
    for number, case in enumerate(product((1, 7, 64, 258, 516), (4, 8), (1, 2, 4))):
        marks = [pytest.mark.long] if case[0] > 64 and case not in {(258, 4, 2), (516, 8, 4)} else []
        found.append(pytest.param(number, case, id="-".join(map(str, case)), marks=marks))
    return found


@pytest.mark.parametrize(("number", "case"), cases())
def test_kernels_equal_the_reference(interpreted: Interpreter, number: int, case: tuple[int, int, int]) -> None:
    tokens, experts, active = case
    width, expert_width, gated = ODD[number % 4] if tokens <= 64 else ((50, 36, False), (33, 17, True))[number % 2]
    shape = MoEShape(width, experts, expert_width, active, gated)
    check(interpreted, shape, random_rows(tokens, width), random_weights(shape, seed=number), choose_tile(shape, tokens))


@pytest.mark.parametrize("tile", [SMALL, LARGE], ids=lambda tile: tile.name)
@pytest.mark.parametrize(
    "shape",
    [MoEShape(40, 5, 24, 3), MoEShape(24, 1, 8, 1), MoEShape(20, 37, 8, 8), MoEShape(16, 6, 1, 6, gated=True)],
    ids=lambda s: s.label,
)
def test_any_number_of_experts(interpreted: Interpreter, shape: MoEShape, tile: Tile) -> None:
    check(interpreted, shape, random_rows(11, shape.width), random_weights(shape), tile)


def test_x_in_fp16_is_routed_as_it_is(interpreted: Interpreter) -> None:
    shape = MoEShape(48, 4, 40, 2)
    check(interpreted, shape, random_rows(21, 48).astype(np.float16), random_weights(shape), SMALL)


@pytest.mark.parametrize("tile", [SMALL, LARGE], ids=lambda tile: tile.name)
@pytest.mark.parametrize("favourites", [(2,), (0, 3)])
def test_experts_without_tokens(interpreted: Interpreter, tile: Tile, favourites: tuple[int, ...]) -> None:
    shape = MoEShape(32, 4, 16, len(favourites))
    weights = random_weights(shape)
    weights["router_bias"][list(favourites)] = 100
    for expert in set(range(4)) - set(favourites):  # what nobody chose must not be read into any sum
        weights["up_weight"][expert] = weights["down_weight"][expert] = weights["down_bias"][expert] = np.nan
    rows = 40
    written = interpreted(run, shape, random_rows(rows, 32), weights, tile)
    assert set(written["experts"].ravel()) == set(favourites)
    for expert in set(range(4)) - set(favourites):
        weights["up_weight"][expert] = weights["down_weight"][expert] = weights["down_bias"][expert] = 0
    assert row_errors(written["y"], reference.fused_moe(random_rows(rows, 32), weights, shape.active)).max() < TOLERANCE


def test_of_equal_experts_the_first_are_chosen(interpreted: Interpreter) -> None:
    shape = MoEShape(16, 8, 8, 3)
    weights = random_weights(shape)
    weights["router_weight"][:] = 0
    weights["router_bias"][:] = [0, 1, 0, 1, 0, 0, 2, 0]
    written = check(interpreted, shape, random_rows(9, 16), weights, SMALL)
    assert (written["experts"] == [6, 1, 3]).all()


@pytest.mark.parametrize("tile", [SMALL, LARGE], ids=lambda tile: tile.name)
def test_order_is_a_stable_sort_and_blocks_cover_it(interpreted: Interpreter, tile: Tile) -> None:
    shape = MoEShape(16, 6, 8, 2)
    written = interpreted(run, shape, random_rows(101, 16), random_weights(shape, seed=5), tile)
    experts = written["experts"].ravel()
    assert np.array_equal(written["order"], np.argsort(experts, kind="stable"))
    used = written["blocks"][written["blocks"][:, 0] >= 0]
    rest = written["blocks"][len(used) :]
    assert (rest[:, 0] == -1).all()
    at = 0
    for expert, first, rows, _ in used:
        assert first == at
        assert 1 <= rows <= tile.rows
        assert (experts[written["order"][first : first + rows]] == expert).all()
        at += rows
    assert at == len(experts)


@pytest.mark.parametrize("tile", [SMALL, LARGE], ids=lambda tile: tile.name)
def test_the_order_of_programs_changes_no_bit(interpreted: Interpreter, tile: Tile) -> None:
    shape = MoEShape(80, 4, 70, 2)
    x, weights = random_rows(35, 80), random_weights(shape)
    forwards = interpreted(run, shape, x, weights, tile)
    backwards = interpreted(run, shape, x, weights, tile, reverse=True)
    for name in ("experts", "gates", "order", "blocks", "hidden", "parts", "y"):
        used = slice(None) if name != "blocks" else forwards["blocks"][:, 0] >= 0
        assert np.array_equal(forwards[name][used], backwards[name][used]), name


def test_a_row_is_the_same_alone_and_in_company(interpreted: Interpreter) -> None:
    shape = MoEShape(48, 4, 40, 2)
    x, weights = random_rows(40, 48), random_weights(shape)
    together = interpreted(run, shape, x, weights, LARGE)["y"]
    for row in (0, 17, 39):
        alone = interpreted(run, shape, x[row : row + 1].copy(), weights, LARGE)["y"]
        assert np.array_equal(alone[0], together[row])


def test_a_broken_row_stays_in_its_row(interpreted: Interpreter) -> None:
    shape = MoEShape(32, 5, 16, 2)
    x, weights = random_rows(20, 32), random_weights(shape)
    clean = interpreted(run, shape, x, weights, SMALL)["y"]
    x[3, 7], x[11, 0] = np.nan, np.inf
    written = interpreted(run, shape, x, weights, SMALL)
    assert ((written["experts"] >= 0) & (written["experts"] < 5)).all()
    broken = np.isin(np.arange(20), (3, 11))
    assert np.isnan(written["y"][broken]).all()
    assert np.array_equal(written["y"][~broken], clean[~broken])


def test_large_scores_and_hidden_values_do_not_overflow(interpreted: Interpreter) -> None:
    shape = MoEShape(32, 4, 16, 2)
    weights = random_weights(shape)
    weights["router_weight"] *= 1000
    weights["up_weight"] *= np.float16(100)
    check(interpreted, shape, random_rows(12, 32), weights, SMALL)


def test_the_reference_is_the_model(interpreted: Interpreter) -> None:
    torch = pytest.importorskip("torch")
    from export.model.experts import TokenExpertLayer
    from f2edge.spec.configuration import TokenExperts

    torch.manual_seed(4)
    form = TokenExperts(shared_width=20, routed=4, routed_width=24, active=2)
    layer = TokenExpertLayer(36, form)
    rows = [layer.slice_of(expert) for expert in range(4)]
    shared = slice(0, form.shared_width)
    weights = {
        "router_weight": layer.router.weight.T,
        "router_bias": torch.zeros(4),
        "up_weight": torch.stack([layer.up.weight[r].T for r in rows]).half(),
        "up_bias": torch.stack([layer.up.bias[r] for r in rows]).half(),
        "down_weight": torch.stack([layer.down.weight[:, r].T for r in rows]).half(),
        "down_bias": torch.zeros(4, 36).half(),
    }
    arrays = {name: tensor.detach().contiguous().numpy() for name, tensor in weights.items()}
    x = torch.randn(1, 30, 36)
    with torch.no_grad():
        whole, _, _ = layer(x, x)
        first = torch.nn.functional.gelu(x @ layer.up.weight[shared].T + layer.up.bias[shared], approximate="tanh")
        routed = (whole - first @ layer.down.weight[:, shared].T - layer.down.bias)[0].double().numpy()
    shape = MoEShape(36, 4, 24, 2)
    written = check(interpreted, shape, x[0].numpy(), arrays, SMALL)
    assert row_errors(written["y"], routed).max() < TOLERANCE


def test_launches_name_known_tensors() -> None:
    shape = MoEShape(2048, 8, 512, 4)
    for tile in (SMALL, LARGE):
        plan = KernelPlan(shape, "fp32", tile)
        for tokens in (1, 516):
            offsets, size = plan.workspace(tokens)
            known = {*offsets, "x", "y", *random_weights(MoEShape(2, 1, 2, 1))}
            assert {a for launch in plan.launches(tokens) for a in launch.arguments if isinstance(a, str)} == known
            assert size < 2**31
            assert all(offset % 256 == 0 for offset in offsets.values())
