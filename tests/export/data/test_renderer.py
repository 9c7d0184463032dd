"""The renderer: deterministic, every value visible, nothing claimed that is hidden, and the split keeps its promise."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.data.render.renderer import REGIONS, Face, render, sample_face
from export.data.slots import SPLIT_SLOTS, held_out_triples, is_held_out, sample_person, sample_slots, visible
from f2edge.errors import InputError
from f2edge.spec.attributes import F2EDGE_SCHEMA

PLAIN = {name: slot.values[0] for name, slot in F2EDGE_SCHEMA.items()}
SEEDS = st.integers(0, 2**40)


def face_of(slots: Mapping[str, str] | None = None, size: int = 128) -> Face:
    return render({**PLAIN, **(slots or {})}, identity=5, seed=6, size=size)


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, split=st.sampled_from(["train", "heldout"]))
def test_the_same_seed_gives_the_same_face(seed: int, split: str) -> None:
    first, second = sample_face(seed, split), sample_face(seed, split)
    assert np.array_equal(first.image, second.image)
    assert first.slots == second.slots
    assert first.identity == second.identity
    assert first.image.shape == (128, 128, 3)
    assert first.image.dtype == np.uint8
    assert set(first.regions) == set(REGIONS)
    assert np.all((first.landmarks > 0) & (first.landmarks < 128))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**30))
def test_two_seeds_show_one_person(seed: int) -> None:
    one, two = sample_face(2 * seed, with_regions=False), sample_face(2 * seed + 1, with_regions=False)
    assert one.identity == two.identity
    assert not np.array_equal(one.image, two.image)
    for name in sample_person(np.random.default_rng(0)):
        if name in one.slots and name in two.slots:
            assert one.slots[name] == two.slots[name]


@settings(max_examples=200, deadline=None)
@given(seed=SEEDS, split=st.sampled_from(["train", "heldout"]))
def test_sampled_slots_obey_the_rules(seed: int, split: str) -> None:
    slots = sample_slots(np.random.default_rng(seed), split)
    assert list(slots) == list(F2EDGE_SCHEMA)
    assert is_held_out(slots) == (split == "heldout")
    assert slots["action"] == "none" or slots["emotion"] == "neutral"
    if slots["gender_presentation"] == "feminine":
        assert slots["beard"] == slots["mustache"] == slots["sideburns"] == "none"
    shown = visible(slots)
    assert shown.items() <= slots.items()
    if slots["face_mask"] == "worn":
        assert not {"lips", "lipstick", "beard", "mustache", "chin", "nose_shape", "emotion"} & set(shown)
    if slots["eyewear"] == "sunglasses":
        assert not {"eye_color", "eye_shape", "eye_bags", "makeup"} & set(shown)
    if split == "heldout":
        assert set(SPLIT_SLOTS) - {"clothing_color"} <= set(shown)


def test_training_keeps_every_pair_of_the_split_slots() -> None:
    triples = set(itertools.product(*(F2EDGE_SCHEMA[name].values for name in SPLIT_SLOTS)))
    kept = triples - held_out_triples()
    assert 0.08 <= len(held_out_triples()) / len(triples) <= 0.12
    for a, b in itertools.combinations(range(3), 2):
        assert {(t[a], t[b]) for t in kept} == {(t[a], t[b]) for t in triples}


def test_every_value_is_seen_often_enough() -> None:
    rng = np.random.default_rng(1)
    total = 4000
    seen = Counter(pair for _ in range(total) for pair in visible(sample_slots(rng)).items())
    for name, slot in F2EDGE_SCHEMA.items():
        floor = {"action": 0.009, "emotion": 0.03}.get(name, 0.04)
        for value in slot.values:
            assert seen[name, value] / total >= floor, (name, value)


#: What each value needs beside it to be visible.
CONTEXT = {"beard": "masculine", "mustache": "masculine", "sideburns": "masculine"}


@pytest.mark.parametrize("name", list(F2EDGE_SCHEMA))
def test_values_of_a_slot_differ_in_the_picture(name: str) -> None:
    around = {"gender_presentation": CONTEXT[name]} if name in CONTEXT else {}
    pictures = [face_of({**around, name: value}).image.astype(np.int16) for value in F2EDGE_SCHEMA[name].values]
    for one, two in itertools.combinations(pictures, 2):
        changed = np.abs(one - two).max(2) > 24
        assert changed.sum() >= 40, f"{changed.sum()} pixels"


@pytest.mark.parametrize(
    ("worn", "hidden"),
    [
        ({"eyewear": "sunglasses"}, {"eye_color": "green"}),
        ({"face_mask": "worn"}, {"lipstick": "purple"}),
        ({"hair_length": "bald"}, {"hair_texture": "curly"}),
        ({"hat": "beanie"}, {"bangs": "straight"}),
        ({"action": "sleep"}, {"eye_color": "blue"}),
    ],
)
def test_what_is_hidden_does_not_change_the_picture_much(worn: dict[str, str], hidden: dict[str, str]) -> None:
    name = next(iter(hidden))
    one, two = face_of(worn), face_of({**worn, **hidden})
    assert name not in two.slots
    assert (np.abs(one.image.astype(np.int16) - two.image).max(2) > 24).mean() < 0.004


def test_regions_lie_where_they_should() -> None:
    face = face_of()
    left, right, nose, mouth_left, mouth_right = face.landmarks.round().astype(int)
    assert left[0] < right[0]
    assert mouth_left[0] < mouth_right[0]
    for point, region in ((left, "eyes"), (right, "eyes"), (nose, "nose"), ((mouth_left + mouth_right) // 2, "mouth")):
        assert face.regions[region][point[1], point[0]], region
    assert face.regions["background"][5, 5]
    assert not face.regions["background"][left[1], left[0]]
    assert not (face.regions["background"] & face.regions["skin"]).any()
    recolored = face_of({"hair_color": "blue"})
    changed = np.abs(face.image.astype(np.int16) - recolored.image).max(2) > 40
    allowed = face.regions["hair"] | face.regions["brows"] | face.regions["eyes"]
    assert (changed & allowed).sum() > 0.97 * changed.sum()


def test_left_is_the_viewers_left() -> None:
    front, left = face_of(), face_of({"head_pose": "left"})
    assert left.landmarks[2, 0] < front.landmarks[2, 0] - 5
    lit = face_of({"lighting": "left"}).image.mean(2)[50:90]
    assert lit[:, 28:50].mean() > lit[:, 78:100].mean() + 30


def test_size_scales_the_picture() -> None:
    small, big = face_of(size=64), face_of(size=256)
    assert big.image.shape == (256, 256, 3)
    assert np.allclose(big.landmarks, small.landmarks * 4, atol=1e-3)
    shrunk = big.image.reshape(64, 4, 64, 4, 3).mean((1, 3))
    assert np.abs(shrunk - small.image).mean() < 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 8}, "size"),
        ({"seed": -1}, "negative"),
        ({"slots": {"age": "young"}}, "missing"),
        ({"slots": {**PLAIN, "age": "x"}}, "age"),
    ],
)
def test_bad_arguments_are_refused(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"slots": PLAIN, "identity": 1, "seed": 1, **change}
    with pytest.raises(InputError, match=message):
        render(**arguments)  # type: ignore[arg-type]


def test_unknown_split_is_refused() -> None:
    with pytest.raises(InputError, match="split"):
        sample_face(0, "test")
