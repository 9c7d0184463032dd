"""Hand-written prompts are well-formed, and a picture counts only where it shows what was asked."""

from __future__ import annotations

import numpy as np

from bench.quality.words import EVERYDAY, TypedPrompt, right, typed_prompts
from export.data.text.mentions import LEXICON
from f2edge.spec.attributes import F2EDGE_SCHEMA


def test_every_wanted_value_is_one_of_the_schema() -> None:
    prompts = [*typed_prompts(), *EVERYDAY.values()]
    assert len(prompts) >= 60 + 12
    assert len({prompt.text for prompt in typed_prompts()}) >= 60
    for prompt in prompts:
        assert prompt.wanted
        for slot, values in prompt.wanted.items():
            assert set(values) <= set(F2EDGE_SCHEMA[slot].values)


def test_the_lexicon_reads_most_of_what_people_type() -> None:
    wanted = [(prompt.text, slot, values) for prompt in typed_prompts() for slot, values in prompt.wanted.items()]
    read = [LEXICON.read(text).claims.get(slot) in values for text, slot, values in wanted]
    assert np.mean(read) > 0.95
    assert all(LEXICON.read(p.text).claims.get(slot) in values for p in EVERYDAY.values() for slot, values in p.wanted.items())


def test_a_picture_is_right_where_it_shows_one_of_the_wanted_values() -> None:
    prompt = TypedPrompt("a man in a hat, no glasses", {"hat": ("cap", "beanie"), "eyewear": ("none",)})
    answers = [0] * len(F2EDGE_SCHEMA)
    slots = list(F2EDGE_SCHEMA)
    assert right(prompt, answers, F2EDGE_SCHEMA) == {"hat": False, "eyewear": True}
    answers[slots.index("hat")] = F2EDGE_SCHEMA["hat"].values.index("beanie")
    assert right(prompt, answers, F2EDGE_SCHEMA) == {"hat": True, "eyewear": True}
