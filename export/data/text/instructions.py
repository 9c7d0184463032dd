"""Instructions for edits, as people type them: "remove the beard", "add glasses", "make her smile", "change the hair to blue".

>>> instruction("eyewear", "none", np.random.default_rng(2))
'take off the glasses'

Each can be read back: ``mentioned_in(instruction(slot, value, rng))[slot] == value``.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from export.data.text.phrases import BEFORE_NOUN, EMOTIONS, EVERYDAY, KINDS, NEGATABLE, NOUN_GROUPS, PHRASES, Words
from export.data.text.wording import Dice
from f2edge.errors import InputError

#: Slots that an instruction changes → the named region that the edit draws anew.
EDITED_REGIONS: Mapping[str, str] = {
    "hair_color": "hair",
    "hair_texture": "hair",
    "hair_length": "hair",
    "eyewear": "eyes",
    "makeup": "eyes",
    "lipstick": "mouth",
    "action": "mouth",
    "beard": "chin",
    "mustache": "mouth",
    "hat": "hat",
    "earrings": "ears",
    "clothing_color": "clothing",
    "background": "background",
}
#: Actions of the mouth that an edit may ask for, as verbs.
VERBS: Mapping[str, Words] = {
    "smile": ("smile", "grin"),
    "laugh": ("laugh",),
    "frown": ("frown",),
    "talk": ("talk",),
    "shout": ("shout",),
    "sing": ("sing",),
    "yawn": ("yawn",),
    "kiss": ("kiss",),
}
_WHOM = ("her", "him", "them", "the person")
_REMOVE = ("remove {the}", "take off {the}", "get rid of {the}", "no {bare}", "without {noun}", "lose {the}")
_REMOVE_HAIR = ("remove {the}", "shave off {the}", "shave {the}", "get rid of {the}", "no {bare}")
_ADD = ("add {words}", "give {whom} {words}", "with {words}", "now with {words}")
_WEAR = (*_ADD, "put on {words}", "wearing {words}", "make {whom} wear {words}")
_COLOR = ("make the {noun} {word}", "change the {noun} to {word}", "{word} {noun}", "turn the {noun} {word}", "give {whom} {word} {noun}")


def can_instruct(slot: str, value: str) -> bool:
    """Whether an instruction can ask for this value."""
    if slot not in EDITED_REGIONS or (slot == "action" and value not in VERBS):
        return False
    return value != "none" or slot in NEGATABLE


def instruction(slot: str, value: str, rng: np.random.Generator) -> str:
    """Return an instruction that asks for ``value`` of ``slot``; raises :class:`InputError` where :func:`can_instruct` says no."""
    if not can_instruct(slot, value):
        raise InputError(f"instruction: {slot}={value} cannot be asked for; slots: {', '.join(EDITED_REGIONS)}")
    dice = Dice(rng)
    whom = dice.pick(_WHOM)
    if slot == "action":
        return f"make {whom} {dice.pick(VERBS[value])}"
    if value == "none":
        noun = dice.pick(NEGATABLE[slot])
        bare = noun.removeprefix("a ")
        return dice.pick(_REMOVE_HAIR if slot in {"beard", "mustache"} else _REMOVE).format(the=f"the {bare}", bare=bare, noun=noun)
    group = next((g for g in NOUN_GROUPS if value in g.adjectives.get(slot, {}) and slot in _BY_ADJECTIVE), None)
    if group is not None:
        word = dice.pick(group.adjectives[slot][value])
        return dice.pick(_COLOR).format(noun=dice.pick(group.heads), word=word, whom=whom)
    if slot == "hair_length":
        return f"make {whom} {dice.pick(BEFORE_NOUN['hair_length']['bald'])}"
    words = EVERYDAY.get((slot, value))
    words = words if words is not None and dice.chance(0.5) else dice.pick(PHRASES[slot][value])
    return dice.pick(_WEAR if KINDS[slot] == "wear" else _ADD).format(words=words, whom=whom)


_BY_ADJECTIVE = frozenset(("hair_color", "hair_texture", "hair_length", "clothing_color", "background"))


def feeling(value: str, rng: np.random.Generator) -> str:
    """Return an instruction that asks for an emotion: "make him look angry"."""
    dice = Dice(rng)
    return f"make {dice.pick(_WHOM)}{dice.pick(('', ' look'))} {dice.pick(EMOTIONS[value])}"
