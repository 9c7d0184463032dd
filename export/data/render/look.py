"""Attributes of one face for all painters: slots, measures, colors, and the expression of its action or emotion."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from export.data.render.brush import RGB, dark, mix, shift
from export.data.render.geometry import Geometry

SKIN: dict[str, RGB] = {
    "light": (248, 198, 158), "pale": (253, 234, 229), "tan": (216, 150, 86), "brown": (160, 98, 56), "dark": (94, 58, 42),
}  # fmt: skip
HAIR: dict[str, RGB] = {
    "black": (36, 33, 44), "brown": (112, 62, 30), "blonde": (246, 212, 98), "red": (214, 74, 26), "gray": (196, 200, 208),
    "blue": (44, 96, 226),
}  # fmt: skip
IRIS: dict[str, RGB] = {"brown": (104, 54, 18), "blue": (40, 128, 238), "green": (52, 168, 60)}
CLOTH: dict[str, RGB] = {
    "white": (244, 245, 247), "black": (34, 35, 40), "red": (206, 34, 40), "blue": (32, 76, 190), "green": (30, 142, 66),
    "yellow": (250, 208, 36),
}  # fmt: skip
BACKGROUND: dict[str, RGB] = {
    "gray": (164, 168, 174), "blue": (110, 180, 236), "green": (136, 200, 112), "orange": (246, 156, 62), "pink": (248, 164, 200),
    "dark": (44, 46, 66),
}  # fmt: skip
LIPSTICK: dict[str, RGB] = {"red": (206, 14, 40), "pink": (255, 88, 164), "purple": (112, 34, 150)}


@dataclass(frozen=True)
class Expression:
    """How mouth, eyes and brows stand, and which comic mark stands beside the head ("" for none)."""

    mouth: str
    eyes: str = "open"
    brows: str = "rest"
    mark: str = ""


ACTION_LOOKS: dict[str, Expression] = {
    "smile": Expression("smile"),
    "laugh": Expression("laugh", "happy", "high", "haha"),
    "frown": Expression("frown", "half", "knit", "scribble"),
    "talk": Expression("talk", mark="bubble"),
    "shout": Expression("shout", "open", "angry", "burst"),
    "sing": Expression("round", "happy", "high", "notes"),
    "whisper": Expression("small_open", "side", "rest", "hand_side"),
    "yawn": Expression("tall", "closed", "high", "hand_yawn"),
    "sigh": Expression("small_open", "half", "sad", "puff"),
    "kiss": Expression("pucker", "closed", "rest", "heart"),
    "blow": Expression("pucker", "open", "rest", "wind"),
    "chew": Expression("chew", "open", "rest", "chew"),
    "eat": Expression("talk", "open", "rest", "cookie"),
    "drink": Expression("flat", "open", "rest", "cup"),
    "smoke": Expression("flat", "half", "rest", "cigarette"),
    "cough": Expression("flat", "squeezed", "sad", "fist"),
    "sneeze": Expression("flat", "squeezed", "knit", "tissue"),
    "sniff": Expression("flat", "closed", "rest", "flower"),
    "sneer": Expression("sneer", "half", "knit", ""),
    "make_a_face": Expression("tongue", "crossed", "one_up", ""),
    "cry": Expression("sad", "open", "sad", "tear"),
    "weep": Expression("wail", "closed", "sad", "streams"),
    "close_eyes": Expression("rest", "closed"),
    "sleep": Expression("small_open", "closed", "rest", "zzz"),
    "wink": Expression("smile", "wink", "rest", "twinkle"),
    "gaze": Expression("rest", "up", "high", "sparkle"),
    "glare": Expression("flat", "narrow", "angry", "rays"),
    "look_around": Expression("rest", "side", "rest", "arrows"),
    "read": Expression("rest", "down", "rest", "book"),
    "listen_to_music": Expression("rest", "open", "rest", "headphones"),
    "play_instrument": Expression("flat", "open", "high", "trumpet"),
    "nod": Expression("rest", mark="nod"),
    "shake_head": Expression("rest", mark="shake"),
    "head_wagging": Expression("rest", mark="wag"),
    "turn": Expression("rest", mark="turn"),
}
EMOTION_LOOKS: dict[str, Expression] = {
    "neutral": Expression("rest"),
    "happy": Expression("grin", "open", "high", "joy"),
    "sad": Expression("sad", "half", "sad", "gloom"),
    "angry": Expression("gritted", "open", "angry", "vein"),
    "afraid": Expression("wobbly", "tiny", "sad", "sweat"),
    "surprised": Expression("gasp", "wide", "high", "exclaim"),
    "disgusted": Expression("disgust", "squeezed", "knit", "nausea"),
    "contemptuous": Expression("smirk", "bored", "one_up", "tilde"),
}


@dataclass(frozen=True)
class Look:
    """One face about to be painted.

    ``slots`` is the full assignment, hidden slots included; ``sticker`` tells whether the comic mark is drawn where the face alone shows
    the expression (:data:`export.data.render.marks.OPTIONAL_MARKS`).
    """

    slots: Mapping[str, str]
    g: Geometry
    expression: Expression
    skin: RGB
    hair: RGB
    cloth: RGB
    backdrop: RGB
    lip: RGB
    sticker: bool = True

    def is_(self, slot: str, value: str) -> bool:
        return self.slots[slot] == value

    @property
    def feminine(self) -> bool:
        return self.is_("gender_presentation", "feminine")

    @property
    def brow(self) -> RGB:
        """Brows and beard: the hair, darker."""
        return dark(self.hair, 0.38 if self.is_("hair_color", "blonde") else 0.3)

    @property
    def line(self) -> RGB:
        """Outline of skin."""
        return dark(self.skin, 0.5 if not self.is_("skin_tone", "dark") else 0.62)

    def dice(self, salt: int) -> random.Random:
        """A source of decorative variation, the same for the same picture."""
        return random.Random(self.g.phase * 31 + salt)  # noqa: S311 (decoration, no secret)


def look_at(slots: Mapping[str, str], g: Geometry) -> Look:
    """Colors and expression of ``slots``."""
    if slots["hat"] != "none":  # what a hat covers must not peek out
        slots = {**slots, "bangs": "none", "hairline": "full"}
    skin = shift(SKIN[slots["skin_tone"]], g.tint[0])
    if slots["age"] == "old":
        skin = mix(skin, (150, 145, 145), 0.1)
    expression = EMOTION_LOOKS[slots["emotion"]] if slots["action"] == "none" else ACTION_LOOKS[slots["action"]]
    lipstick = LIPSTICK.get(slots["lipstick"])
    natural = mix(skin, (176, 70, 66), 0.42) if slots["skin_tone"] != "dark" else mix(skin, (150, 70, 70), 0.55)
    return Look(
        slots=slots,
        g=g,
        expression=expression,
        skin=skin,
        hair=shift(HAIR[slots["hair_color"]], g.tint[1]),
        cloth=shift(CLOTH[slots["clothing_color"]], g.tint[2]),
        backdrop=shift(BACKGROUND[slots["background"]], g.tint[3]),
        lip=lipstick if lipstick is not None else natural,
        sticker=bool(g.choice[5] >> 10 & 1),
    )
