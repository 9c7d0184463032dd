"""Captions of a face from its visible slots: sentences and tags in many wordings, and one fixed form for ``describe``.

>>> caption({"gender_presentation": "feminine", "hair_color": "red"}, np.random.default_rng(0), attributes=2).text
'woman with red hair'

What is said is drawn slot by slot, remarkable values more often than "none"; how it is said is drawn from ``phrases``.
Every phrase can be read back: ``mentioned_in(caption.text)`` is exactly what the caption mentions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from export.data.text.mentions import mentioned_in
from export.data.text.phrases import (
    BEFORE_NOUN,
    EVERYDAY,
    HAIR_NOUNS,
    KINDS,
    LACKING,
    NEGATABLE,
    NOUN_GROUPS,
    OPENINGS,
    PERSON_NOUNS,
    PHRASES,
    PICTURES,
    SHARPNESS,
)
from export.data.text.wording import (
    Dice,
    Parts,
    bare,
    listed,
    one_sentence,
    place_groups,
    pronoun,
    sentence_case,
    several_sentences,
    subject_of,
    terse,
)
from f2edge.errors import InputError
from f2edge.spec.attributes import F2EDGE_SCHEMA

__all__ = ["Caption", "caption", "describe_text", "full_caption", "mentioned_in"]

Slots = Mapping[str, str]

MOST_ATTRIBUTES = 18
_TAGS_SHARE = 0.25
_SHORT_SHARE = 0.15  # of 1 to 3 attributes, the way people type prompts
_SENTENCE_CASE_SHARE = 0.1
_TERSE_SHARE = 0.15  # without articles: "old man with beard and hat"
_OPENING_SHARE = 0.06
_EXCLUSION_SHARE = 0.06
_EVERYDAY_SHARE = 0.4
_PERSON_NOUN_SHARE = 0.15
_BALD_SHARE = 0.6  # the others have "no hair" or "a shaved head"

#: How likely a slot is named, relative to 1; times ``_PLAIN`` for its unremarkable value when that means "nothing there".
_WEIGHTS = {"gender_presentation": 6.0, "age": 2.5, "hair_color": 2.5, "hair_length": 1.8, "eye_color": 1.5, "eyewear": 1.8, "hat": 1.8,
            "emotion": 1.8, "action": 1.8, "beard": 1.5, "background": 1.3, "clothing_color": 1.3, "skin_tone": 1.3}  # fmt: skip
_PLAIN = 0.3
#: The same for what is absent: a noun must not be heard more often behind "no" than alone, or it comes to mean its absence.
_ABSENT = 0.2
#: Lower where faces seldom have what the noun names.
_ABSENT_RARE = {"sideburns": 0.1, "lipstick": 0.1, "eye_bags": 0.1}
#: A mask hides half of the face: a person who sees one says so, and so a prompt that is silent about it means a face without.
_HIDING = {("face_mask", "worn"): 60.0}
#: Slots where no value is "nothing there": all of them are worth a word.
_ALWAYS_REMARKABLE = frozenset((
    "gender_presentation", "age", "skin_tone", "face_shape", "build", "hair_color", "hair_length", "hair_texture", "eye_color", "eye_shape",
    "eyebrow_shape", "eyebrow_thickness", "nose_size", "nose_shape", "lips", "clothing_color", "background",
))  # fmt: skip
_FACIAL_HAIR = frozenset(("beard", "mustache", "sideburns"))
_HAIR_SLOTS_OF_THE_BALD = frozenset(("hair_color", "hair_texture", "hairline", "bangs"))

#: Order in which ``describe`` fills its places; remarkable values first, then the plain ones in the same order.
_DESCRIBE_ORDER = (
    "gender_presentation", "age", "hair_color", "hair_length", "eyewear", "hat", "beard", "emotion", "action", "hair_texture", "eye_color",
    "mustache", "face_mask", "skin_tone", "clothing_color", "background", "lipstick", "earrings", "necklace", "necktie", "bangs",
    "head_pose", "lighting", "sharpness", "face_shape", "skin_texture", "makeup", "hairline", "build", "chin", "cheeks", "sideburns",
    "eyebrow_thickness", "eyebrow_shape", "nose_size", "nose_shape", "lips", "eye_shape", "eye_bags", "cheekbones",
)  # fmt: skip
_FEMININE = frozenset((*PHRASES["gender_presentation"]["feminine"], *PERSON_NOUNS["feminine", "young"], *PERSON_NOUNS["feminine", "old"]))
_DESCRIBE_MOST, _DESCRIBE_LEAST = 20, 12


@dataclass(frozen=True)
class Caption:
    """A text and the slots it speaks of, in schema order."""

    text: str
    mentioned: tuple[str, ...]


def is_plain(slot: str, value: str) -> bool:
    """Whether ``value`` says that nothing remarkable is there: no hat, smooth skin, even light."""
    return slot not in _ALWAYS_REMARKABLE and value == F2EDGE_SCHEMA[slot].values[0]


def _goes_without_saying(slot: str, slots: Slots) -> bool:
    """Return whether a value needs no mention: of a woman, that she has no beard."""
    return slot in _FACIAL_HAIR and slots[slot] == "none" and slots.get("gender_presentation") == "feminine"


def _checked(slots: Slots) -> dict[str, str]:
    for slot, value in slots.items():
        if slot not in F2EDGE_SCHEMA:
            raise InputError(f"caption: unknown slot {slot!r}; slots come from the f2edge schema")
        if value not in F2EDGE_SCHEMA[slot].values:
            F2EDGE_SCHEMA[slot].index(value)
    if slots.get("hair_length") == "bald":
        return {slot: value for slot, value in slots.items() if slot not in _HAIR_SLOTS_OF_THE_BALD}
    return dict(slots)


def _draw_count(dice: Dice) -> int:
    if dice.chance(_SHORT_SHARE):
        return 1 + int(dice.roll() * 3)
    return 4 + int(dice.roll() ** 1.3 * (MOST_ATTRIBUTES - 3))


def _choose(slots: Slots, dice: Dice, count: int, *, even: bool) -> dict[str, str]:
    """Draw ``count`` slots without replacement, each in proportion to its weight (Efraimidis & Spirakis 2006)."""
    keyed = []
    for slot, value in slots.items():
        absent = value == "none" and slot in NEGATABLE
        unsaid = _ABSENT_RARE.get(slot, _ABSENT)
        weight = 2 * unsaid if even and absent else 1.0
        if not even:
            weight = _WEIGHTS.get(slot, 1.0) * (unsaid if absent else _PLAIN if is_plain(slot, value) else 1.0)
            weight *= 0.2 if _goes_without_saying(slot, slots) else 1.0
        weight = _HIDING.get((slot, value), weight)
        keyed.append((math.log(dice.roll() + 1e-12) / weight, slot))
    keyed.sort(reverse=True)
    return {slot: slots[slot] for _, slot in keyed[:count]}


def _take_before_noun(left: dict[str, str], dice: Dice, most: int, share: float) -> list[str]:
    """Adjectives before the noun, taken out of ``left``; age first in chance, at most ``most``."""
    taken: list[str] = []
    for slot, values in BEFORE_NOUN.items():
        words = values.get(left.get(slot, ""))
        alone = slot == "age" or (left.get(slot) == "bald" and dice.chance(_BALD_SHARE))
        if slot == "hair_color" and any(word.endswith("-haired") for word in taken):
            continue  # "short-haired red-haired"
        if words and len(taken) < most and (alone or dice.chance(share)) and not (slot == "action" and taken):
            taken.append(dice.pick(words))
            del left[slot]
    return taken


def _take_subject(left: dict[str, str], dice: Dice, parts: Parts, share: float) -> None:
    gender = left.pop("gender_presentation", None)
    whole = PERSON_NOUNS.get((gender or "", left.get("age", "")))
    if gender is None:
        parts.noun = _hair_noun(left, dice) or "person"
    elif whole is not None and dice.chance(_PERSON_NOUN_SHARE):
        parts.noun = dice.pick(whole)
        del left["age"]
    else:
        nouns = PHRASES["gender_presentation"][gender]
        parts.noun = dice.pick(nouns[1:]) if dice.chance(0.25) else nouns[0]
    parts.before = _take_before_noun(left, dice, 3, share)
    if "age" in left:
        parts.before.insert(0, dice.pick(BEFORE_NOUN["age"][left.pop("age")]))
    sharpness = left.get("sharpness")
    if sharpness is not None and not dice.chance(0.25):
        parts.picture = f"{dice.pick(SHARPNESS[sharpness])} {dice.pick(PICTURES)}"
        del left["sharpness"]
    elif dice.chance(0.15):
        parts.picture = dice.pick(PICTURES)


def _hair_noun(left: dict[str, str], dice: Dice) -> str | None:
    """A noun for a person by the color of the hair ("a redhead"), now and then."""
    nouns = HAIR_NOUNS.get(left.get("hair_color", ""))
    if nouns is None or left.get("hair_length") == "bald" or not dice.chance(0.2):
        return None
    del left["hair_color"]
    return dice.pick(nouns)


def _add_lacking(slot: str, dice: Dice, parts: Parts) -> None:
    """Say that something is not there, in one of the ways in which people say it."""
    noun = dice.pick(NEGATABLE[slot])
    if slot in LACKING and dice.chance(0.15):
        parts.do.append(LACKING[slot])
    elif dice.chance(0.5) or slot not in KINDS:
        parts.lacking.append(f"no {noun.removeprefix('a ')}")
    elif KINDS[slot] == "wear" and dice.chance(0.6):
        parts.do.append(f"not wearing {noun}")
    else:
        parts.do.append(f"without {noun}")


def _exclusion(slots: Slots, chosen: Slots, dice: Dice) -> str | None:
    """A value that the face does not have ("not blonde"), of a slot that is visible and not spoken of."""
    slot = dice.pick(("hair_color", "eye_color", "skin_tone", "emotion", "age"))
    if slot in chosen or slot not in slots:
        return None
    others = [words for value, words in BEFORE_NOUN[slot].items() if value != slots[slot]]
    return f"not {dice.pick(dice.pick(others))}"


def _take_phrases(left: dict[str, str], dice: Dice, parts: Parts) -> None:
    """Everything that is said after the noun."""
    if left.get("beard") == "none" and left.get("mustache") == "none" and parts.noun not in _FEMININE and not dice.chance(0.3):
        parts.before.append("clean-shaven")
        del left["beard"], left["mustache"]
    for group in dice.shuffled(NOUN_GROUPS):
        words = []
        for slot, values in group.adjectives.items():
            value = left.get(slot, "")
            if value in values and not (value in PHRASES.get(slot, {}) and dice.chance(0.4)):
                words.append(dice.pick(values[value]))
                del left[slot]
        if words:
            parts.groups.append((group, words))
    for slot, value in left.items():
        if value in PHRASES.get(slot, {}):
            everyday = EVERYDAY.get((slot, value))
            phrase = everyday if everyday is not None and dice.chance(_EVERYDAY_SHARE) else dice.pick(PHRASES[slot][value])
            parts.add("have" if phrase.startswith("with ") else KINDS[slot], phrase.removeprefix("with "))
        else:
            _add_lacking(slot, dice, parts)
    parts.have.extend(parts.lacking)  # "a goatee and no mask" reads better than the other way round


def _tags(left: dict[str, str], dice: Dice) -> str:
    """Comma-separated key words."""
    parts = Parts()
    subject = []
    _take_subject(left, dice, parts, 0.25)
    if parts.noun != "person" or not parts.before:
        subject.append(parts.noun)
    if parts.picture:
        subject.append(parts.picture)
    _take_phrases(left, dice, parts)
    tags = [*parts.have, *parts.wear, *parts.do, *parts.scene]
    for group, words in parts.groups:
        head = dice.pick(group.heads)
        tags.extend([f"{word} {head}" for word in words] if dice.chance(0.3) else [f"{' '.join(words)} {head}"])
    tags = [bare(tag) for tag in tags]
    return ", ".join([*dice.shuffled([*subject, *parts.before]), *dice.shuffled(tags)])


def caption(slots: Slots, rng: np.random.Generator, *, attributes: int | None = None, even: bool = False) -> Caption:
    """One caption of a face.

    Args:
        slots: visible slots, name → value of the f2edge schema.
        rng: draws what is said and how; the same state gives the same caption.
        attributes: how many slots to mention (fewer if fewer are visible); drawn from 1 to 18 when None.
        even: every slot is as likely to be named as any other, plain values too; otherwise what people are likely to say.

    Raises:
        InputError: a slot or value outside the schema, or ``attributes`` below 1.
    """
    if attributes is not None and attributes < 1:
        raise InputError(f"caption: attributes must be at least 1, got {attributes}")
    dice = Dice(rng)
    visible = _checked(slots)
    chosen = _choose(visible, dice, attributes or _draw_count(dice), even=even)
    mentioned = _in_schema_order(chosen)
    excluded = _exclusion(visible, chosen, dice) if dice.chance(_EXCLUSION_SHARE) else None
    if dice.chance(_TAGS_SHARE):
        text = _tags(chosen, dice)
        return Caption(f"{text}, {excluded}" if excluded else text, mentioned)
    parts = Parts()
    _take_subject(chosen, dice, parts, 0.3)
    _take_phrases(chosen, dice, parts)
    if excluded:
        parts.do.append(excluded)
    text = several_sentences(parts, dice) if len(mentioned) > 6 and dice.chance(0.5) else one_sentence(parts, dice)
    if dice.chance(_OPENING_SHARE):
        text = f"{dice.pick(OPENINGS)} {text}"
    if dice.chance(_TERSE_SHARE):
        return Caption(terse(text), mentioned)
    return Caption(sentence_case(text) if dice.chance(_SENTENCE_CASE_SHARE) else text, mentioned)


def _in_schema_order(chosen: Slots) -> tuple[str, ...]:
    return tuple(slot for slot in F2EDGE_SCHEMA if slot in chosen)


def full_caption(slots: Slots, rng: np.random.Generator | None = None, *, attributes: int) -> Caption:
    """A caption in the fixed form of :func:`describe_text` that mentions the first ``attributes`` slots, remarkable values first."""
    visible = _checked(slots)
    order = [slot for slot in _DESCRIBE_ORDER if slot in visible]
    order.sort(key=lambda slot: (is_plain(slot, visible[slot]), _goes_without_saying(slot, visible)))  # stable within each part
    return _fixed_form({slot: visible[slot] for slot in order[:attributes]}, Dice(rng))


def describe_text(slots: Slots, rng: np.random.Generator | None = None) -> Caption:
    """The answer to "describe the face": 12 to 20 visible slots in a fixed order, remarkable values first.

    The choice of slots depends on the picture alone, so that a small model can learn it; ``rng`` only varies the wording of a few phrases
    (None: the commonest everywhere).
    """
    visible = _checked(slots)
    remarkable = sum(not is_plain(slot, value) for slot, value in visible.items())
    return full_caption(slots, rng, attributes=min(max(remarkable, _DESCRIBE_LEAST), _DESCRIBE_MOST))


def _fixed_form(chosen: dict[str, str], dice: Dice) -> Caption:
    """Write "a happy young woman with …. she is wearing …. she is smiling and facing left. the background is blue. …"."""
    mentioned = _in_schema_order(chosen)
    left, parts, plain = dict(chosen), Parts(), Dice(None)
    gender = left.pop("gender_presentation", None)
    parts.noun = "person" if gender is None else PHRASES["gender_presentation"][gender][0]
    for slot in ("emotion", "build", "age", "skin_tone"):
        words = BEFORE_NOUN[slot].get(left.get(slot, ""))
        if words:
            parts.before.append(words[0])
            del left[slot]
    if left.get("hair_length") == "bald":
        parts.before.append("bald")
        del left["hair_length"]
    if "sharpness" in left:
        parts.picture = f"{SHARPNESS[left.pop('sharpness')][0]} portrait"
    _take_phrases(left, plain, parts)
    background = [words for group, words in parts.groups if group.kind == "scene"]
    parts.groups = [(group, words) for group, words in reversed(parts.groups) if group.kind != "scene"]
    place_groups(parts, plain)
    who, _ = pronoun(parts.noun)
    text = subject_of(parts) + (f" with {listed(parts.have)}" if parts.have else "")
    sentences = [text]
    if parts.wear:
        sentences.append(f"{who} {dice.pick(('is wearing', 'is wearing', 'wears'))} {listed(parts.wear)}")
    if parts.do:
        sentences.append(f"{who} is {listed(parts.do)}")
    if background:
        sentences.append(f"the background is {background[0][0]}")
    if parts.scene:
        sentences.append(f"the picture is {parts.scene[0]}")
    return Caption(f"{'. '.join(sentences)}.", mentioned)
