"""The words for a face: for each value of each slot, the phrases that say it, one meaning to a phrase.

``captions`` and ``questions`` write from this table and ``mentions`` reads with it, so whatever is written can be read back.

Two forms.  A *noun group* is a noun that several slots describe together (``long`` + ``curly`` + ``red`` + "hair").  A *phrase* stands on
its own ("a goatee", "facing left").  Slots whose first value is "none" also have a noun that can be negated ("no hat", "without a hat").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Words = tuple[str, ...]


@dataclass(frozen=True)
class NounGroup:
    """A noun and the slots that describe it.

    Attributes:
        heads: the noun and its synonyms.
        article: whether the singular noun takes "a".
        adjectives: slot → value → synonyms, slots in speaking order.
        kind: part of the sentence it belongs to, as in :data:`KINDS`.
        plural: whether a predicate says "are".
    """

    heads: Words
    article: bool
    adjectives: Mapping[str, Mapping[str, Words]]
    kind: str = "have"
    plural: bool = False
    slots: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "slots", tuple(self.adjectives))


def _same(*values: str) -> dict[str, Words]:
    return {value: (value,) for value in values}


NOUN_GROUPS = (
    NounGroup(
        ("hair",),
        False,
        {
            "hair_length": {"short": ("short",), "medium": ("medium-length", "shoulder-length"), "long": ("long",)},
            "hair_texture": _same("straight", "wavy", "curly"),
            "hair_color": {"blonde": ("blonde", "blond"), "gray": ("gray", "grey"), **_same("black", "brown", "red", "blue")},
        },
    ),
    NounGroup(
        ("eyes",),
        False,
        {"eye_shape": {"round": ("round",), "narrow": ("narrow",)}, "eye_color": _same("brown", "blue", "green")},
        plural=True,
    ),
    NounGroup(
        ("eyebrows", "brows"),
        False,
        {"eyebrow_thickness": {"thin": ("thin",), "bushy": ("bushy", "thick")}, "eyebrow_shape": _same("straight", "arched")},
        plural=True,
    ),
    NounGroup(
        ("nose",),
        True,
        {
            "nose_size": {"small": ("small",), "big": ("big", "large")},
            "nose_shape": {"round": ("round", "rounded"), "pointy": ("pointy", "pointed")},
        },
    ),
    NounGroup(("lips",), False, {"lips": _same("thin", "full"), "lipstick": _same("red", "pink", "purple")}, plural=True),
    NounGroup(
        ("skin",),
        False,
        {
            "skin_texture": {"smooth": ("smooth", "clear"), "freckled": ("freckled",), "blemished": ("blemished",)},
            "skin_tone": {"light": ("light", "fair"), "pale": ("pale",), "tan": ("tan", "tanned"), **_same("brown", "dark")},
        },
    ),
    NounGroup(
        ("face",),
        True,
        {
            "build": {"slim": ("slim", "slender"), "chubby": ("chubby", "plump")},
            "face_shape": {**_same("oval", "round", "square"), "heart": ("heart-shaped",)},
        },
    ),
    NounGroup(("clothes",), False, {"clothing_color": _same("white", "black", "red", "blue", "green", "yellow")}, kind="wear", plural=True),
    NounGroup(("top", "shirt"), True, {"clothing_color": _same("white", "black", "red", "blue", "green", "yellow")}, kind="wear"),
    NounGroup(
        ("background",),
        True,
        {"background": {"gray": ("gray", "grey"), **_same("blue", "green", "orange", "pink", "dark")}},
        kind="scene",
    ),
)

#: Adjectives of a feeling; used before the noun, after "looking" and before "expression".
EMOTIONS: Mapping[str, Words] = {
    "neutral": ("neutral",),
    "happy": ("happy", "cheerful"),
    "sad": ("sad", "sorrowful"),
    "angry": ("angry", "furious"),
    "afraid": ("scared", "frightened", "fearful"),
    "surprised": ("surprised", "astonished"),
    "disgusted": ("disgusted",),
    "contemptuous": ("contemptuous", "scornful"),
}

#: slot → value → phrases that stand on their own.
PHRASES: Mapping[str, Mapping[str, Words]] = {
    "gender_presentation": {"feminine": ("woman", "lady", "female"), "masculine": ("man", "guy", "gentleman", "male")},
    "age": {"young": ("young",), "middle_aged": ("middle-aged",), "old": ("old", "elderly")},
    "skin_texture": {"freckled": ("freckles",), "blemished": ("skin blemishes", "acne")},
    "cheeks": {"plain": ("plain cheeks",), "rosy": ("rosy cheeks", "flushed cheeks")},
    "cheekbones": {"soft": ("soft cheekbones",), "high": ("high cheekbones", "prominent cheekbones")},
    "chin": {"single": ("a single chin",), "double": ("a double chin",)},
    "hair_length": {"bald": ("a bald head",)},
    "hairline": {"full": ("a full hairline",), "receding": ("a receding hairline",)},
    "bangs": {"straight": ("straight bangs", "blunt bangs", "bangs", "a fringe"), "side_swept": ("side-swept bangs",)},
    "eye_bags": {"visible": ("bags under the eyes", "eye bags")},
    "makeup": {"heavy": ("heavy makeup", "strong makeup", "makeup")},
    "lipstick": {"red": ("red lipstick",), "pink": ("pink lipstick",), "purple": ("purple lipstick",)},
    "beard": {"stubble": ("stubble", "a stubbly beard"), "goatee": ("a goatee",), "full": ("a full beard", "a beard")},
    "mustache": {"present": ("a mustache", "a moustache")},
    "sideburns": {"present": ("sideburns",)},
    "eyewear": {"eyeglasses": ("glasses", "eyeglasses", "spectacles"), "sunglasses": ("sunglasses", "dark glasses", "shades")},
    "hat": {
        "cap": ("a cap", "a baseball cap"),
        "beanie": ("a beanie", "a knit beanie"),
        "brimmed": ("a brimmed hat", "a wide-brimmed hat", "a hat"),
    },
    "earrings": {"studs": ("stud earrings", "ear studs"), "hoops": ("hoop earrings", "hoops", "earrings")},
    "necklace": {"chain": ("a chain necklace", "a chain", "a necklace"), "pearls": ("a pearl necklace", "pearls")},
    "necktie": {"tie": ("a tie", "a necktie"), "bow_tie": ("a bow tie",)},
    "face_mask": {"worn": ("a face mask", "a mask", "a surgical mask")},
    "emotion": {
        value: (
            *(f"looking {word}" for word in words),
            *(f"with {'an' if word[0] in 'aeiou' else 'a'} {word} expression" for word in words),
        )
        for value, words in EMOTIONS.items()
    },
    "action": {
        "none": ("doing nothing", "at rest"),
        "smile": ("smiling", "with a smile"),
        "laugh": ("laughing",),
        "frown": ("frowning", "with a frown"),
        "talk": ("talking", "speaking"),
        "shout": ("shouting", "yelling", "screaming"),
        "sing": ("singing",),
        "whisper": ("whispering",),
        "yawn": ("yawning",),
        "sigh": ("sighing",),
        "kiss": ("kissing", "giving a kiss"),
        "blow": ("blowing", "blowing air"),
        "chew": ("chewing", "chewing gum"),
        "eat": ("eating",),
        "drink": ("drinking",),
        "smoke": ("smoking", "smoking a cigarette"),
        "cough": ("coughing",),
        "sneeze": ("sneezing",),
        "sniff": ("sniffing",),
        "sneer": ("sneering",),
        "make_a_face": ("making a face", "pulling a face"),
        "cry": ("crying", "shedding a tear", "in tears"),
        "weep": ("weeping",),
        "close_eyes": ("keeping the eyes closed", "closing the eyes", "with closed eyes"),
        "sleep": ("sleeping", "asleep"),
        "wink": ("winking",),
        "gaze": ("gazing",),
        "glare": ("glaring",),
        "look_around": ("looking around",),
        "read": ("reading", "reading a book"),
        "listen_to_music": ("listening to music",),
        "play_instrument": ("playing an instrument",),
        "nod": ("nodding",),
        "shake_head": ("shaking the head",),
        "head_wagging": ("wagging the head",),
        "turn": ("turning around", "turning the head"),
    },
    "head_pose": {
        "front": ("facing forward", "facing the camera"),
        "left": ("facing left", "turned to the left"),
        "right": ("facing right", "turned to the right"),
    },
    "lighting": {
        "even": ("evenly lit", "in even light", "in even lighting"),
        "left": ("lit from the left", "in light from the left"),
        "right": ("lit from the right", "in light from the right"),
    },
    "sharpness": {"sharp": ("in sharp focus",), "blurry": ("out of focus",)},
}

#: One word for gender and youth together.
YOUNG_NOUNS = {"feminine": "girl", "masculine": "boy"}

#: Where a slot's own phrases stand in a sentence: "with …", "wearing …", a participle, or about the scene.
KINDS: Mapping[str, str] = {
    **dict.fromkeys(("skin_texture", "cheeks", "cheekbones", "chin", "hair_length", "hairline", "bangs", "eye_bags"), "have"),
    **dict.fromkeys(("beard", "mustache", "sideburns"), "have"),
    **dict.fromkeys(("makeup", "lipstick", "eyewear", "hat", "earrings", "necklace", "necktie", "face_mask"), "wear"),
    **dict.fromkeys(("emotion", "action", "head_pose"), "do"),
    **dict.fromkeys(("lighting", "sharpness"), "scene"),
}

#: Nouns for the "none" of a slot, to follow "no" or "without".
NEGATABLE: Mapping[str, Words] = {
    "bangs": ("bangs",),
    "eye_bags": ("eye bags", "bags under the eyes"),
    "makeup": ("makeup",),
    "lipstick": ("lipstick",),
    "beard": ("a beard",),
    "mustache": ("a mustache",),
    "sideburns": ("sideburns",),
    "eyewear": ("glasses", "eyewear"),
    "hat": ("a hat",),
    "earrings": ("earrings",),
    "necklace": ("a necklace",),
    "necktie": ("a tie",),
    "face_mask": ("a mask",),
}

#: Adjectives that can stand before "woman", "man" or "person": slot → value → words.
BEFORE_NOUN: Mapping[str, Mapping[str, Words]] = {
    "emotion": {value: words for value, words in EMOTIONS.items() if value != "neutral"},
    "action": {
        "smile": ("smiling",), "laugh": ("laughing",), "frown": ("frowning",), "yawn": ("yawning",), "cry": ("crying",),
        "weep": ("weeping",), "sleep": ("sleeping",), "wink": ("winking",), "sneer": ("sneering",), "shout": ("shouting",),
    },
    "build": {"slim": ("slim", "slender"), "chubby": ("chubby", "plump")},
    "skin_texture": {"freckled": ("freckled",)},
    "beard": {"full": ("bearded",)},
    "age": {"young": ("young",), "middle_aged": ("middle-aged",), "old": ("old", "elderly")},
    "hair_length": {"bald": ("bald",), "long": ("long-haired",), "short": ("short-haired",)},
    "skin_tone": {
        "light": ("light-skinned",), "pale": ("pale", "pale-skinned"), "tan": ("tanned",), "brown": ("brown-skinned",),
        "dark": ("dark-skinned",),
    },
    "hair_color": {
        "black": ("black-haired",), "brown": ("brown-haired", "brunette"), "blonde": ("blonde", "blonde-haired"), "red": ("red-haired",),
        "gray": ("gray-haired", "grey-haired"), "blue": ("blue-haired",),
    },
    "eye_color": {"brown": ("brown-eyed",), "blue": ("blue-eyed",), "green": ("green-eyed",)},
}  # fmt: skip

#: How a picture is called, and how its sharpness is said before that word.
PICTURES = ("portrait", "photo", "picture", "image")
SHARPNESS = {"sharp": ("sharp", "crisp"), "blurry": ("blurry", "blurred")}

#: What people also type; read, never written.
ALIASES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "girl": (("gender_presentation", "feminine"), ("age", "young")),
    "boy": (("gender_presentation", "masculine"), ("age", "young")),
    "she": (("gender_presentation", "feminine"),),
    "he": (("gender_presentation", "masculine"),),
    "senior": (("age", "old"),),
    "fair-skinned": (("skin_tone", "light"),),
    "blushing": (("cheeks", "rosy"),),
    "blemishes": (("skin_texture", "blemished"),),
    "tan-skinned": (("skin_tone", "tan"),),
    "redhead": (("hair_color", "red"),),
    "under-eye bags": (("eye_bags", "visible"),),
    "full goatee": (("beard", "goatee"),),
    "short beard": (("beard", "stubble"),),
    "long beard": (("beard", "full"),),
    "afraid": (("emotion", "afraid"),),
    "blowing a kiss": (("action", "kiss"),),
    "eyes closed": (("action", "close_eyes"),),
    "looking left": (("head_pose", "left"),),
    "looking right": (("head_pose", "right"),),
    "looking at the camera": (("head_pose", "front"),),
    "the light comes from the left": (("lighting", "left"),),
    "the light comes from the right": (("lighting", "right"),),
    "light from the left": (("lighting", "left"),),
    "light from the right": (("lighting", "right"),),
    "the light is even": (("lighting", "even"),),
    "even light": (("lighting", "even"),),
    "even lighting": (("lighting", "even"),),
    "sharp": (("sharpness", "sharp"),),
    "crisp": (("sharpness", "sharp"),),
    "blurry": (("sharpness", "blurry"),),
    "blurred": (("sharpness", "blurry"),),
    "clean-shaven": (("beard", "none"), ("mustache", "none")),
}
