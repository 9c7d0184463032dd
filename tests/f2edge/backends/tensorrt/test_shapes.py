"""Choice of profile and shapes: remembered for requests of the same sizes, and right for every other one."""

from __future__ import annotations

import numpy as np
import pytest

from f2edge.backends.base import Array
from f2edge.backends.tensorrt import shapes
from f2edge.backends.tensorrt.plans import GraphPlan
from f2edge.backends.tensorrt.shapes import FITS_KEPT, fit
from f2edge.errors import BackendError
from f2edge.spec.graph_checks import Port

L, H, C, W = 2, 3, 5, 4


def cache(name: str, rows: str, columns: int | str) -> Port:
    return Port(name, "float16", (L, rows, H, columns, W))


def answers() -> GraphPlan:
    """A plan of ``mmu_extend`` for questions and for single tokens."""
    inputs = (
        Port("text_ids", "int64", ("B", "S")),
        Port("text_lengths", "int64", ("B",)),
        *(cache(f"image_{part}", "I", C) for part in ("key", "value")),
        *(cache(f"text_{part}", "B", "T") for part in ("key", "value")),
    )
    common = {"B": (1, 1, 8), "I": (1, 1, 8)}
    profiles = ({**common, "S": (1, 32, 64), "T": (16, 16, 256)}, {**common, "S": (1, 1, 1), "T": (16, 64, 256)})
    return GraphPlan("mmu_extend", "plan", "", 1, "key", inputs, (), profiles, {"S": (16, 32, 64), "T": (16, 32, 64, 128, 256)})


def token(length: int, columns: int, rows: int = 1) -> dict[str, Array]:
    """One more token behind ``length`` - 1 others, in a state of so many columns."""
    image, text = np.zeros((L, 1, H, C, W), np.float16), np.zeros((L, rows, H, columns, W), np.float16)
    ids, lengths = np.zeros((rows, 1), np.int64), np.full(rows, length)
    return {"text_ids": ids, "text_lengths": lengths, "image_key": image, "image_value": image, "text_key": text, "text_value": text}


def test_a_request_of_known_sizes_is_not_fitted_again() -> None:
    plan = answers()
    first = fit(plan, token(20, 32))
    assert fit(plan, token(20, 32)) is first
    assert first.profile == 1


def test_what_a_request_needs_is_part_of_what_is_remembered() -> None:
    plan = answers()
    columns = {length: fit(plan, token(length, 128)).shapes["text_key"][3] for length in (2, 17, 18, 33, 34, 100)}
    assert columns == {2: 16, 17: 16, 18: 32, 33: 32, 34: 64, 100: 128}
    assert fit(plan, token(20, 32, rows=2)).shapes["text_ids"] == (2, 1)


def test_plans_of_equal_ports_do_not_share_what_is_remembered() -> None:
    plan, other = answers(), answers()
    assert fit(plan, token(20, 32)) is not fit(other, token(20, 32))


def test_a_refusal_is_no_answer_to_remember() -> None:
    plan = answers()
    for _ in range(2):
        with pytest.raises(BackendError, match="axis B is 9"):
            fit(plan, token(20, 32, rows=9))


def test_memory_stays_flat() -> None:
    plan = answers()
    for columns in range(1, FITS_KEPT + 200):
        fit(plan, token(1, columns))
    assert len(shapes._KNOWN[id(plan)][1]) <= FITS_KEPT
