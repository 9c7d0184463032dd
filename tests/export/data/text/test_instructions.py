"""Instructions for edits: each asks for what it says and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from export.data.text.instructions import EDITED_REGIONS, can_instruct, instruction
from export.data.text.mentions import LEXICON
from f2edge.errors import InputError
from f2edge.spec.attributes import F2EDGE_SCHEMA


@pytest.mark.parametrize("slot", list(EDITED_REGIONS))
def test_an_instruction_is_read_as_the_one_change_it_asks_for(slot: str) -> None:
    values = [value for value in F2EDGE_SCHEMA[slot].values if can_instruct(slot, value)]
    assert values
    rng = np.random.default_rng(0)
    for value in values:
        said = {instruction(slot, value, rng) for _ in range(80)}
        assert len(said) > 3
        for text in said:
            reading = LEXICON.read(text)
            assert {name: v for name, v in reading.claims.items() if name != "gender_presentation"} == {slot: value}, text
            assert not reading.unmatched, text


@pytest.mark.parametrize(("slot", "value"), [("nose_size", "big"), ("action", "nod"), ("action", "none"), ("hair_color", "none")])
def test_what_an_edit_cannot_ask_for_is_refused(slot: str, value: str) -> None:
    with pytest.raises(InputError, match="cannot be asked for"):
        instruction(slot, value, np.random.default_rng(0))
