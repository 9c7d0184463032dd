"""Sampling of the slots of rendered faces, visibility of slots in the picture, and the split into training and held-out combinations.

"Left" and "right" are the viewer's: ``head_pose`` left means that the nose points to the left edge of the picture.

>>> slots = sample_slots(np.random.default_rng(0))
>>> is_held_out(slots)
False
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np

from f2edge.errors import InputError
from f2edge.spec.attributes import ACTIONS, EMOTIONS, F2EDGE_SCHEMA

SPLITS = ("train", "heldout")

#: The three slots whose combinations are split between training and testing.
SPLIT_SLOTS = ("hair_color", "eyewear", "clothing_color")
_HELD_OUT_TRIPLES = 11

#: Actions with a resting mouth, which a mask can cover.
MASK_ACTIONS = frozenset(
    {"none", "close_eyes", "sleep", "wink", "gaze", "glare", "look_around", "read", "listen_to_music", "nod", "shake_head",
     "head_wagging", "turn", "cry", "weep"}
)  # fmt: skip
#: Actions shown by the eyes, impossible behind sunglasses.
EYE_ACTIONS = frozenset({"close_eyes", "sleep", "wink", "gaze", "glare", "look_around", "read", "cry", "weep"})
#: Actions with closed eyes, which hide the eye color.
CLOSED_EYE_ACTIONS = frozenset({"laugh", "yawn", "sneeze", "sleep", "close_eyes", "cough", "weep", "kiss", "glare", "read", "sigh"})
#: Actions compatible with a neutral emotion.
CALM_ACTIONS = frozenset(
    {"none", "gaze", "look_around", "read", "listen_to_music", "nod", "shake_head", "head_wagging", "turn", "close_eyes"}
)
#: Actions that move the brows.
BROW_ACTIONS = frozenset({"frown", "shout", "yawn", "cough", "sneeze", "sneer", "make_a_face", "cry", "weep", "glare", "laugh"})
#: Actions that keep the thickness of the lips.
LIP_ACTIONS = frozenset(CALM_ACTIONS | {"smile", "frown", "cry", "wink", "glare"})
#: Actions with a prop in front of the mouth.
COVERED_MOUTH_ACTIONS = frozenset({"drink", "cough", "sneeze", "sniff", "play_instrument", "yawn"})

_BELOW_MASK = (
    "lips", "lipstick", "mustache", "beard", "chin", "nose_shape", "nose_size", "cheeks", "cheekbones", "skin_texture", "sideburns",
    "emotion", "face_shape",
)  # fmt: skip

Weights = Mapping[str, float]


def _pick(rng: np.random.Generator, weights: Weights) -> str:
    point = rng.random() * sum(weights.values())
    for value, weight in weights.items():
        point -= weight
        if point < 0:
            return value
    return value


def _rest_first(name: str, rest: float) -> dict[str, float]:
    """Return weights: probability ``rest`` for the slot's first value, equal shares for the others."""
    values = F2EDGE_SCHEMA[name].values
    return {value: rest if i == 0 else (1 - rest) / (len(values) - 1) for i, value in enumerate(values)}


@cache
def held_out_triples() -> frozenset[tuple[str, ...]]:
    """Return the (hair color, eyewear, clothing color) triples that are held out from training.

    Triples are taken in the order of a hash, except those that share two values with one taken before; so every pair of values stays in
    training with all but one of its triples.
    """
    triples = itertools.product(*(F2EDGE_SCHEMA[name].values for name in SPLIT_SLOTS))
    chosen: list[tuple[str, ...]] = []
    for triple in sorted(triples, key=lambda t: hashlib.sha256("/".join(t).encode()).digest()):
        if all(sum(a == b for a, b in zip(triple, other, strict=True)) < 2 for other in chosen):
            chosen.append(triple)
        if len(chosen) == _HELD_OUT_TRIPLES:
            break
    return frozenset(chosen)


def is_held_out(slots: Mapping[str, str]) -> bool:
    """Return whether this combination belongs to the split "heldout"; False if one of its slots is hidden (absent)."""
    return tuple(slots.get(name, "") for name in SPLIT_SLOTS) in held_out_triples()


def sample_person(rng: np.random.Generator) -> dict[str, str]:
    """Sample the slots of a new person, which are constant over all pictures of that person."""
    masculine = rng.random() < 0.5
    person = {"gender_presentation": "masculine" if masculine else "feminine"}
    person["age"] = _pick(rng, {"young": 0.42, "middle_aged": 0.3, "old": 0.28})
    for name in ("skin_tone", "face_shape", "eye_color"):
        person[name] = _pick(rng, dict.fromkeys(F2EDGE_SCHEMA[name].values, 1.0))
    person["skin_texture"] = _pick(rng, _rest_first("skin_texture", 0.54))
    person["build"] = _pick(rng, _rest_first("build", 0.58))
    person["chin"] = _pick(rng, _rest_first("chin", 0.5 if person["build"] == "chubby" else 0.68))
    person["cheekbones"] = _pick(rng, _rest_first("cheekbones", 0.58))
    person["hairline"] = _pick(rng, _rest_first("hairline", 0.55 if masculine else 0.75))
    person["eyebrow_thickness"] = _pick(rng, _rest_first("eyebrow_thickness", 0.42 if masculine else 0.58))
    person["eye_bags"] = _pick(rng, _rest_first("eye_bags", 0.5 if person["age"] == "old" else 0.65))
    person["lips"] = _pick(rng, _rest_first("lips", 0.58 if masculine else 0.42))
    for name in ("eyebrow_shape", "eye_shape", "nose_size", "nose_shape"):
        person[name] = _pick(rng, _rest_first(name, 0.5))
    return person


def _sample_hair(rng: np.random.Generator, slots: dict[str, str]) -> None:
    masculine = slots["gender_presentation"] == "masculine"
    old = slots["age"] == "old"
    lengths = (0.44, 0.2, 0.14, 0.22) if masculine else (0.24, 0.32, 0.38, 0.06)
    slots["hair_length"] = _pick(rng, dict(zip(F2EDGE_SCHEMA["hair_length"].values, lengths, strict=True)))
    slots["hair_color"] = _pick(rng, {c: 2.2 if old and c == "gray" else 1.0 for c in F2EDGE_SCHEMA["hair_color"].values})
    slots["hair_texture"] = _pick(rng, _rest_first("hair_texture", 0.36))
    slots["bangs"] = _pick(rng, _rest_first("bangs", 0.48))
    slots["beard"] = _pick(rng, _rest_first("beard", 0.31)) if masculine else "none"
    slots["mustache"] = _pick(rng, _rest_first("mustache", 0.55)) if masculine else "none"
    slots["sideburns"] = _pick(rng, _rest_first("sideburns", 0.45)) if masculine else "none"


def _sample_worn(rng: np.random.Generator, slots: dict[str, str]) -> None:
    masculine = slots["gender_presentation"] == "masculine"
    slots["cheeks"] = _pick(rng, _rest_first("cheeks", 0.62))
    slots["makeup"] = _pick(rng, _rest_first("makeup", 0.85 if masculine else 0.5))
    slots["lipstick"] = _pick(rng, _rest_first("lipstick", 0.8 if masculine else 0.37))
    slots["eyewear"] = _pick(rng, _rest_first("eyewear", 0.5))
    slots["hat"] = _pick(rng, _rest_first("hat", 0.55))
    slots["earrings"] = _pick(rng, _rest_first("earrings", 0.6 if masculine else 0.4))
    slots["necktie"] = _pick(rng, _rest_first("necktie", 0.62))
    slots["necklace"] = _pick(rng, _rest_first("necklace", 0.35)) if slots["necktie"] == "none" else "none"
    slots["clothing_color"] = _pick(rng, dict.fromkeys(F2EDGE_SCHEMA["clothing_color"].values, 1.0))


def _sample_mood(rng: np.random.Generator, slots: dict[str, str]) -> None:
    slots["face_mask"] = "worn" if rng.random() < 0.1 else "none"
    masked, shaded = slots["face_mask"] == "worn", slots["eyewear"] == "sunglasses"
    allowed = [a for a in ACTIONS[1:] if (not masked or a in MASK_ACTIONS) and not (shaded and a in EYE_ACTIONS)]
    slots["action"] = "none" if rng.random() < 0.4 else allowed[int(rng.integers(len(allowed)))]
    slots["emotion"] = "neutral"
    if slots["action"] == "none" and not masked and rng.random() < 0.72:
        slots["emotion"] = EMOTIONS[1 + int(rng.integers(len(EMOTIONS) - 1))]


def _sample_scene(rng: np.random.Generator, slots: dict[str, str]) -> None:
    for name, rest in (("head_pose", 0.48), ("lighting", 0.5), ("sharpness", 0.85)):
        slots[name] = _pick(rng, _rest_first(name, rest))
    slots["background"] = _pick(rng, dict.fromkeys(F2EDGE_SCHEMA["background"].values, 1.0))


def sample_slots(rng: np.random.Generator, split: str = "train", *, person: Mapping[str, str] | None = None) -> dict[str, str]:
    """Sample a plausible assignment of all 40 slots, in schema order.

    Args:
        rng: random generator; the same state gives the same slots.
        split: "train" never yields a held-out combination, "heldout" always does, with visible hair.
        person: fixed values, usually from :func:`sample_person`.

    Raises:
        InputError: for an unknown split.
    """
    if split not in SPLITS:
        raise InputError(f"split {split!r} is unknown; choose one of: {', '.join(SPLITS)}")
    slots = dict(person) if person is not None else sample_person(rng)
    for part in (_sample_hair, _sample_worn):
        part(rng, slots)
    _settle_split(rng, slots, split)
    _sample_mood(rng, slots)
    _sample_scene(rng, slots)
    return {name: slots[name] for name in F2EDGE_SCHEMA}


def _settle_split(rng: np.random.Generator, slots: dict[str, str], split: str) -> None:
    """Draw the three slots of the split again until the combination belongs to ``split``."""
    if split == "heldout":
        triples: Sequence[tuple[str, ...]] = sorted(held_out_triples())
        slots.update(zip(SPLIT_SLOTS, triples[int(rng.integers(len(triples)))], strict=True))
        if slots["hair_length"] == "bald":
            slots["hair_length"] = "short"
        return
    while is_held_out(slots):
        slots["clothing_color"] = _pick(rng, dict.fromkeys(F2EDGE_SCHEMA["clothing_color"].values, 1.0))


#: Slots hidden by values of another slot: (slot, values, hidden slots).
_HIDES: tuple[tuple[str, frozenset[str], tuple[str, ...]], ...] = (
    ("face_mask", frozenset({"worn"}), _BELOW_MASK),
    ("eyewear", frozenset({"sunglasses"}), ("eye_color", "eye_shape", "eye_bags", "makeup")),
    ("action", CLOSED_EYE_ACTIONS, ("eye_color", "eye_shape")),
    ("action", frozenset({"shout", "gaze", "cry", "wink", "sneer", "frown", "smoke", "make_a_face"}), ("eye_shape",)),
    ("action", frozenset({"weep", "cry"}), ("eye_bags",)),
    ("action", BROW_ACTIONS, ("eyebrow_shape",)),
    ("action", COVERED_MOUTH_ACTIONS, ("lips", "lipstick", "nose_shape", "nose_size", "chin", "mustache", "beard")),
    ("action", frozenset({"make_a_face", "shout", "laugh", "sing"}), ("chin",)),
    ("action", frozenset(ACTIONS) - CALM_ACTIONS, ("emotion",)),
    ("action", frozenset(ACTIONS) - LIP_ACTIONS, ("lips",)),
    ("action", frozenset({"listen_to_music"}), ("earrings", "sideburns")),
    ("action", frozenset({"read", "cough", "yawn", "turn"}), ("necklace", "necktie")),
    ("emotion", frozenset({"disgusted"}), ("eye_color",)),
    ("emotion", frozenset(EMOTIONS) - {"neutral"}, ("eye_shape", "eyebrow_shape")),
    ("emotion", frozenset(EMOTIONS) - {"neutral", "sad"}, ("lips",)),
    ("beard", frozenset({"goatee"}), ("chin",)),
    ("beard", frozenset({"full"}), ("chin", "face_shape", "sideburns")),
    ("hair_length", frozenset({"bald"}), ("hair_color", "hair_texture", "bangs", "hairline", "sideburns")),
    ("hair_length", frozenset({"medium", "long"}), ("sideburns",)),
    ("hat", frozenset({"cap", "beanie", "brimmed"}), ("hairline", "bangs")),
    ("bangs", frozenset({"straight", "side_swept"}), ("hairline",)),
)  # fmt: skip


def _hidden(slots: Mapping[str, str]) -> set[str]:
    hidden = {name for slot, values, names in _HIDES if slots[slot] in values for name in names}
    if slots["face_mask"] == "worn" and slots["eyewear"] == "sunglasses":
        hidden |= {"gender_presentation", "age"}
    if slots["action"] == "read" and slots["hair_length"] == "long":
        hidden.add("clothing_color")
    if slots["hat"] != "none" and slots["hair_length"] == "short":
        hidden.add("hair_texture")
    return hidden


def visible(slots: Mapping[str, str]) -> dict[str, str]:
    """Return the slots that a picture shows, in schema order, without hidden and ambiguous ones.

    Raises:
        InputError: a slot is missing or has an unknown value.
    """
    check(slots)
    hidden = _hidden(slots)
    return {name: slots[name] for name in F2EDGE_SCHEMA if name not in hidden}


def check(slots: Mapping[str, str]) -> None:
    """Raise :class:`InputError` unless every slot of the schema has one of its values."""
    missing = [name for name in F2EDGE_SCHEMA if name not in slots]
    if missing:
        raise InputError(f"a full assignment of slots is needed; missing: {', '.join(missing)}")
    for name, slot in F2EDGE_SCHEMA.items():
        slot.index(slots[name])
