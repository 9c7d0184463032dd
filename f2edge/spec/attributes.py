"""Attribute schema: the categorical slots that describe a face.

A *slot* is one question with a closed list of answers ("hair_color": black, brown, …).  Every rendered training picture carries the
slots that can be seen in it (sunglasses hide the eye color), captions and questions are written from them, and ``FacePipeline.analyze``
returns one probability for each value of each slot.  The schema travels inside every bundle's manifest, so a bundle trained on other
slots needs no change here.

This is the *f2edge schema*: our own slots, chosen to cover the 40 appearance labels, 8 emotions and 35 actions of CelebV-HQ
(arXiv 2207.12393).  The list of 46 attribute categories that the UniF²ace paper mentions is unpublished; this is not it.

>>> F2EDGE_SCHEMA["eyewear"].values
('none', 'eyeglasses', 'sunglasses')
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from f2edge.errors import InputError, UnknownAttributeError


@dataclass(frozen=True)
class Slot:
    """One categorical attribute.

    Attributes:
        name: identifier, ``snake_case``.
        values: allowed answers, ``snake_case``, at least two, distinct; the first is the unremarkable default.
        question: the question that ``analyze`` asks; the model was trained on it verbatim, and answers with one of ``answers``.
        group: heading under which a report lists the slot.
        sensitive: a trait that people may not want guessed (age, gender presentation, emotion …); camera and server leave it out
            unless asked.
    """

    name: str
    values: tuple[str, ...]
    question: str
    group: str
    sensitive: bool = False

    def __post_init__(self) -> None:
        if len(self.values) < 2 or len(set(self.values)) != len(self.values):
            raise InputError(f"slot {self.name!r}: needs at least two values and no repetition, got {self.values}")

    @property
    def answers(self) -> tuple[str, ...]:
        """Values as the model writes them (``"light_brown"`` → ``"light brown"``), in the order of ``values``."""
        return tuple(value.replace("_", " ") for value in self.values)

    def index(self, value: str) -> int:
        """Return the position of ``value`` in ``values``; raises :class:`UnknownAttributeError` with the allowed list."""
        if value not in self.values:
            raise UnknownAttributeError(f"attribute {self.name!r} has no value {value!r}; choose one of: {', '.join(self.values)}")
        return self.values.index(value)


class AttributeSchema(Mapping[str, Slot]):
    """Ordered, immutable mapping of slots by name."""

    def __init__(self, slots: Iterable[Slot]) -> None:
        table: dict[str, Slot] = {}
        for slot in slots:
            if slot.name in table:
                raise InputError(f"attribute schema: slot {slot.name!r} is given twice")
            table[slot.name] = slot
        self._slots = MappingProxyType(table)

    def __getitem__(self, name: str) -> Slot:
        return self._slots[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._slots)

    def __len__(self) -> int:
        return len(self._slots)

    def select(self, names: Iterable[str]) -> AttributeSchema:
        """Return the schema of ``names``, in that order; an unknown name raises :class:`UnknownAttributeError` listing the known ones."""
        chosen = []
        for name in names:
            if name not in self._slots:
                raise UnknownAttributeError(f"unknown attribute {name!r}; known: {', '.join(self._slots)}")
            chosen.append(self._slots[name])
        return AttributeSchema(chosen)

    def to_json(self) -> list[dict[str, Any]]:
        """Return the form stored in a bundle's manifest."""
        return [
            {"name": s.name, "values": list(s.values), "question": s.question, "group": s.group, "sensitive": s.sensitive}
            for s in self._slots.values()
        ]

    @classmethod
    def from_json(cls, rows: Iterable[Mapping[str, Any]]) -> AttributeSchema:
        """Build a schema from the form of :meth:`to_json`."""
        return cls(
            Slot(str(r["name"]), tuple(str(v) for v in r["values"]), str(r["question"]), str(r["group"]), bool(r["sensitive"]))
            for r in rows
        )


#: Visible actions: the 35 of CelebV-HQ ("weep" is drawn as streams, "cry" as single tears) plus "none".
ACTIONS = (
    "none", "smile", "laugh", "frown", "talk", "shout", "sing", "whisper", "yawn", "sigh", "kiss", "blow", "chew", "eat", "drink",
    "smoke", "cough", "sneeze", "sniff", "sneer", "make_a_face", "cry", "weep", "close_eyes", "sleep", "wink", "gaze", "glare",
    "look_around", "read", "listen_to_music", "play_instrument", "nod", "shake_head", "head_wagging", "turn",
)  # fmt: skip

EMOTIONS = ("neutral", "happy", "sad", "angry", "afraid", "surprised", "disgusted", "contemptuous")

_PERSON, _HAIR, _BROWS_EYES, _NOSE_MOUTH, _BEARD, _WORN, _MOOD, _SCENE = (
    "person", "hair", "brows and eyes", "nose and mouth", "beard", "worn", "mood and action", "scene",
)  # fmt: skip

F2EDGE_SCHEMA = AttributeSchema(
    [
        Slot("gender_presentation", ("feminine", "masculine"), "does the face look feminine or masculine?", _PERSON, sensitive=True),
        Slot("age", ("young", "middle_aged", "old"), "how old does the person look?", _PERSON, sensitive=True),
        Slot("skin_tone", ("light", "pale", "tan", "brown", "dark"), "what is the skin tone?", _PERSON, sensitive=True),
        Slot("skin_texture", ("smooth", "freckled", "blemished"), "what is the skin like?", _PERSON),
        Slot("cheeks", ("plain", "rosy"), "are the cheeks plain or rosy?", _PERSON),
        Slot("cheekbones", ("soft", "high"), "are the cheekbones soft or high?", _PERSON),
        Slot("face_shape", ("oval", "round", "square", "heart"), "what is the shape of the face?", _PERSON),
        Slot("build", ("slim", "chubby"), "is the face slim or chubby?", _PERSON, sensitive=True),
        Slot("chin", ("single", "double"), "is the chin single or double?", _PERSON),
        Slot("hair_color", ("black", "brown", "blonde", "red", "gray", "blue"), "what color is the hair?", _HAIR),
        Slot("hair_length", ("short", "medium", "long", "bald"), "how long is the hair?", _HAIR),
        Slot("hair_texture", ("straight", "wavy", "curly"), "is the hair straight, wavy or curly?", _HAIR),
        Slot("hairline", ("full", "receding"), "is the hairline full or receding?", _HAIR),
        Slot("bangs", ("none", "straight", "side_swept"), "what kind of bangs are there?", _HAIR),
        Slot("eyebrow_shape", ("straight", "arched"), "are the eyebrows straight or arched?", _BROWS_EYES),
        Slot("eyebrow_thickness", ("thin", "bushy"), "are the eyebrows thin or bushy?", _BROWS_EYES),
        Slot("eye_color", ("brown", "blue", "green"), "what color are the eyes?", _BROWS_EYES),
        Slot("eye_shape", ("round", "narrow"), "are the eyes round or narrow?", _BROWS_EYES),
        Slot("eye_bags", ("none", "visible"), "are there bags under the eyes?", _BROWS_EYES),
        Slot("makeup", ("none", "heavy"), "how much makeup is there?", _BROWS_EYES),
        Slot("nose_size", ("small", "big"), "is the nose small or big?", _NOSE_MOUTH),
        Slot("nose_shape", ("round", "pointy"), "is the nose round or pointy?", _NOSE_MOUTH),
        Slot("lips", ("thin", "full"), "are the lips thin or full?", _NOSE_MOUTH),
        Slot("lipstick", ("none", "red", "pink", "purple"), "what color is the lipstick?", _NOSE_MOUTH),
        Slot("beard", ("none", "stubble", "goatee", "full"), "what kind of beard is there?", _BEARD),
        Slot("mustache", ("none", "present"), "is there a mustache?", _BEARD),
        Slot("sideburns", ("none", "present"), "are there sideburns?", _BEARD),
        Slot("eyewear", ("none", "eyeglasses", "sunglasses"), "what eyewear is worn?", _WORN),
        Slot("hat", ("none", "cap", "beanie", "brimmed"), "what hat is worn?", _WORN),
        Slot("earrings", ("none", "studs", "hoops"), "what earrings are worn?", _WORN),
        Slot("necklace", ("none", "chain", "pearls"), "what necklace is worn?", _WORN),
        Slot("necktie", ("none", "tie", "bow_tie"), "what tie is worn?", _WORN),
        Slot("face_mask", ("none", "worn"), "is a mask worn?", _WORN),
        Slot("clothing_color", ("white", "black", "red", "blue", "green", "yellow"), "what color are the clothes?", _WORN),
        Slot("emotion", EMOTIONS, "what emotion does the face show?", _MOOD, sensitive=True),
        Slot("action", ACTIONS, "what is the person doing?", _MOOD),
        Slot("head_pose", ("front", "left", "right"), "where does the head face?", _SCENE),
        Slot("lighting", ("even", "left", "right"), "from where does the light come?", _SCENE),
        Slot("background", ("gray", "blue", "green", "orange", "pink", "dark"), "what color is the background?", _SCENE),
        Slot("sharpness", ("sharp", "blurry"), "is the picture sharp or blurry?", _SCENE),
    ]
)
