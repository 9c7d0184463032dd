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


TOPS = ("top", "shirt", "t-shirt", "sweater", "jacket", "blouse")

NOUN_GROUPS = (
    NounGroup(
        ("hair",),
        False,
        {
            "hair_length": {"short": ("short", "cropped"), "medium": ("medium-length", "shoulder-length", "medium"), "long": ("long",)},
            "hair_texture": _same("straight", "wavy", "curly"),
            "hair_color": {
                "black": ("black", "jet-black"),
                "brown": ("brown", "chestnut"),
                "blonde": ("blonde", "blond", "golden"),
                "red": ("red", "ginger"),
                "gray": ("gray", "grey", "silver"),
                "blue": ("blue",),
            },
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
            "skin_texture": {"smooth": ("smooth", "clear"), "freckled": ("freckled", "freckly"), "blemished": ("blemished", "spotty")},
            "skin_tone": {"light": ("light", "fair"), "pale": ("pale",), "tan": ("tan", "tanned"), **_same("brown", "dark")},
        },
    ),
    NounGroup(
        ("face",),
        True,
        {
            "build": {"slim": ("slim", "slender", "thin"), "chubby": ("chubby", "plump", "fat")},
            "face_shape": {**_same("oval", "round", "square"), "heart": ("heart-shaped",)},
        },
    ),
    NounGroup(
        ("clothes", "clothing"),
        False,
        {"clothing_color": _same("white", "black", "red", "blue", "green", "yellow")},
        kind="wear",
        plural=True,
    ),
    NounGroup(TOPS, True, {"clothing_color": _same("white", "black", "red", "blue", "green", "yellow")}, kind="wear"),
    NounGroup(
        ("background", "backdrop", "wall"),
        True,
        {"background": {"gray": ("gray", "grey"), **_same("blue", "green", "orange", "pink", "dark")}},
        kind="scene",
    ),
)

#: Adjectives of a feeling; used before the noun, after "looking" and before "expression".
EMOTIONS: Mapping[str, Words] = {
    "neutral": ("neutral", "expressionless"),
    "happy": ("happy", "cheerful", "joyful"),
    "sad": ("sad", "sorrowful", "unhappy"),
    "angry": ("angry", "furious", "mad"),
    "afraid": ("scared", "frightened", "fearful", "afraid"),
    "surprised": ("surprised", "astonished", "shocked", "amazed"),
    "disgusted": ("disgusted",),
    "contemptuous": ("contemptuous", "scornful"),
}

#: slot → value → phrases that stand on their own.  The first one is what ``describe`` says.
PHRASES: Mapping[str, Mapping[str, Words]] = {
    "gender_presentation": {
        "feminine": ("woman", "lady", "female", "gal"),
        "masculine": ("man", "guy", "gentleman", "male", "bloke", "dude", "chap", "fella"),
    },
    "age": {"young": ("young", "youthful"), "middle_aged": ("middle-aged",), "old": ("old", "elderly", "aged", "senior")},
    "skin_texture": {"freckled": ("freckles",), "blemished": ("skin blemishes", "acne", "pimples", "blemishes")},
    "cheeks": {"plain": ("plain cheeks",), "rosy": ("rosy cheeks", "flushed cheeks", "red cheeks", "pink cheeks")},
    "cheekbones": {"soft": ("soft cheekbones",), "high": ("high cheekbones", "prominent cheekbones")},
    "chin": {"single": ("a single chin",), "double": ("a double chin",)},
    "hair_length": {"bald": ("a bald head", "no hair", "a shaved head")},
    "hairline": {"full": ("a full hairline",), "receding": ("a receding hairline", "thinning hair")},
    "bangs": {
        "straight": ("straight bangs", "blunt bangs", "bangs", "a fringe"),
        "side_swept": ("side-swept bangs", "side bangs", "a side fringe"),
    },
    "eye_bags": {"visible": ("bags under the eyes", "eye bags", "under-eye bags", "dark circles under the eyes")},
    "makeup": {"heavy": ("heavy makeup", "strong makeup", "makeup", "lots of makeup", "make-up")},
    "lipstick": {"red": ("red lipstick", "lipstick"), "pink": ("pink lipstick",), "purple": ("purple lipstick",)},
    "beard": {
        "stubble": ("stubble", "a stubbly beard", "a short beard", "a five o'clock shadow"),
        "goatee": ("a goatee", "a chin beard", "a goatee beard"),
        "full": ("a full beard", "a beard", "a long beard", "a bushy beard", "a thick beard"),
    },
    "mustache": {"present": ("a mustache", "a moustache")},
    "sideburns": {"present": ("sideburns", "side whiskers")},
    "eyewear": {
        "eyeglasses": ("glasses", "eyeglasses", "spectacles", "specs", "reading glasses"),
        "sunglasses": ("sunglasses", "dark glasses", "shades"),
    },
    "hat": {
        "cap": ("a cap", "a baseball cap", "a ball cap"),
        "beanie": ("a beanie", "a knit beanie", "a woolly hat", "a knit hat"),
        "brimmed": ("a brimmed hat", "a wide-brimmed hat", "a hat", "a fedora", "a sun hat"),
    },
    "earrings": {
        "studs": ("stud earrings", "ear studs", "studs", "small earrings"),
        "hoops": ("hoop earrings", "hoops", "earrings", "big earrings", "an earring"),
    },
    "necklace": {"chain": ("a chain necklace", "a chain", "a necklace", "a gold chain"), "pearls": ("a pearl necklace", "pearls")},
    "necktie": {"tie": ("a tie", "a necktie"), "bow_tie": ("a bow tie", "a bowtie")},
    "face_mask": {"worn": ("a face mask", "a mask", "a surgical mask", "a medical mask")},
    "emotion": {
        value: (
            *(f"looking {word}" for word in words),
            *(f"with {'an' if word[0] in 'aeiou' else 'a'} {word} expression" for word in words),
        )
        for value, words in EMOTIONS.items()
    },
    "action": {
        "none": ("doing nothing", "at rest"),
        "smile": ("smiling", "with a smile", "grinning", "with a grin", "with a big smile"),
        "laugh": ("laughing", "giggling"),
        "frown": ("frowning", "with a frown"),
        "talk": ("talking", "speaking"),
        "shout": ("shouting", "yelling", "screaming"),
        "sing": ("singing",),
        "whisper": ("whispering",),
        "yawn": ("yawning",),
        "sigh": ("sighing",),
        "kiss": ("kissing", "giving a kiss", "blowing a kiss"),
        "blow": ("blowing", "blowing air"),
        "chew": ("chewing", "chewing gum"),
        "eat": ("eating",),
        "drink": ("drinking",),
        "smoke": ("smoking", "smoking a cigarette", "with a cigarette"),
        "cough": ("coughing",),
        "sneeze": ("sneezing",),
        "sniff": ("sniffing",),
        "sneer": ("sneering", "with a sneer"),
        "make_a_face": ("making a face", "pulling a face"),
        "cry": ("crying", "shedding a tear", "in tears"),
        "weep": ("weeping", "sobbing"),
        "close_eyes": ("keeping the eyes closed", "closing the eyes", "with closed eyes", "with eyes closed"),
        "sleep": ("sleeping", "asleep"),
        "wink": ("winking", "with a wink"),
        "gaze": ("gazing", "staring"),
        "glare": ("glaring",),
        "look_around": ("looking around",),
        "read": ("reading", "reading a book"),
        "listen_to_music": ("listening to music", "with headphones"),
        "play_instrument": ("playing an instrument",),
        "nod": ("nodding",),
        "shake_head": ("shaking the head",),
        "head_wagging": ("wagging the head",),
        "turn": ("turning around", "turning the head"),
    },
    "head_pose": {
        "front": ("facing forward", "facing the camera", "looking at the camera"),
        "left": ("facing left", "turned to the left", "looking left", "looking to the left"),
        "right": ("facing right", "turned to the right", "looking right", "looking to the right"),
    },
    "lighting": {
        "even": ("evenly lit", "in even light", "in even lighting"),
        "left": ("lit from the left", "in light from the left", "with light from the left"),
        "right": ("lit from the right", "in light from the right", "with light from the right"),
    },
    "sharpness": {"sharp": ("in sharp focus",), "blurry": ("out of focus",)},
}

#: What people say first for a value, said as often as all its other phrases together.  These are the nouns that captions also negate.
EVERYDAY: Mapping[tuple[str, str], str] = {
    ("eyewear", "eyeglasses"): "glasses",
    ("hat", "brimmed"): "a hat",
    ("earrings", "hoops"): "earrings",
    ("necklace", "chain"): "a necklace",
    ("makeup", "heavy"): "makeup",
    ("beard", "full"): "a beard",
    ("mustache", "present"): "a mustache",
    ("lipstick", "red"): "lipstick",
    ("bangs", "straight"): "bangs",
    ("hair_length", "bald"): "no hair",
    ("face_mask", "worn"): "a mask",
    ("necktie", "tie"): "a tie",
}

#: One word for gender and age together.
PERSON_NOUNS: Mapping[tuple[str, str], Words] = {
    ("feminine", "young"): ("girl", "lass"),
    ("masculine", "young"): ("boy", "lad"),
    ("feminine", "old"): ("grandma", "granny", "grandmother"),
    ("masculine", "old"): ("grandpa", "grandfather", "granddad"),
}
#: One word for a person and the color of the hair.
HAIR_NOUNS: Mapping[str, Words] = {"red": ("redhead", "ginger"), "blonde": ("blonde",), "brown": ("brunette",)}

#: Where a slot's own phrases stand in a sentence: "with …", "wearing …", a participle, or about the scene.
KINDS: Mapping[str, str] = {
    **dict.fromkeys(("skin_texture", "cheeks", "cheekbones", "chin", "hair_length", "hairline", "bangs", "eye_bags"), "have"),
    **dict.fromkeys(("beard", "mustache", "sideburns"), "have"),
    **dict.fromkeys(("makeup", "lipstick", "eyewear", "hat", "earrings", "necklace", "necktie", "face_mask"), "wear"),
    **dict.fromkeys(("emotion", "action", "head_pose"), "do"),
    **dict.fromkeys(("lighting", "sharpness"), "scene"),
}

#: Nouns for the "none" of a slot, to follow "no", "without" or "not wearing".  Each of them is also said of faces that have it.
NEGATABLE: Mapping[str, Words] = {
    "bangs": ("bangs", "a fringe"),
    "eye_bags": ("eye bags", "bags under the eyes"),
    "makeup": ("makeup", "make-up"),
    "lipstick": ("lipstick",),
    "beard": ("a beard",),
    "mustache": ("a mustache", "a moustache"),
    "sideburns": ("sideburns",),
    "eyewear": ("glasses", "eyewear", "eyeglasses", "spectacles"),
    "hat": ("a hat", "headwear"),
    "earrings": ("earrings",),
    "necklace": ("a necklace",),
    "necktie": ("a tie", "a necktie"),
    "face_mask": ("a mask", "a face mask"),
}
#: One word for the "none" of a slot, before the noun.
LACKING: Mapping[str, str] = {"hat": "hatless", "beard": "beardless"}

#: Adjectives that can stand before "woman", "man" or "person": slot → value → words.
BEFORE_NOUN: Mapping[str, Mapping[str, Words]] = {
    "emotion": {value: words for value, words in EMOTIONS.items() if value != "neutral"},
    "action": {
        "smile": ("smiling",), "laugh": ("laughing",), "frown": ("frowning",), "yawn": ("yawning",), "cry": ("crying",),
        "weep": ("weeping",), "sleep": ("sleeping",), "wink": ("winking",), "sneer": ("sneering",), "shout": ("shouting",),
    },
    "build": {"slim": ("slim", "slender", "skinny"), "chubby": ("chubby", "plump", "fat")},
    "skin_texture": {"freckled": ("freckled", "freckly"), "blemished": ("spotty",)},
    "beard": {"full": ("bearded",), "stubble": ("unshaven", "stubbly")},
    "eyewear": {"eyeglasses": ("bespectacled",)},
    "age": {
        "young": ("young", "young", "youthful", "20-year-old", "30-year-old"),
        "middle_aged": ("middle-aged", "middle-aged", "40-year-old", "50-year-old"),
        "old": ("old", "elderly", "old", "aged", "60-year-old", "70-year-old", "80-year-old"),
    },
    "hair_length": {"bald": ("bald", "bald-headed"), "long": ("long-haired",), "short": ("short-haired",)},
    "hair_texture": {"curly": ("curly-haired",)},
    "skin_tone": {
        "light": ("light-skinned", "fair-skinned"), "pale": ("pale", "pale-skinned"), "tan": ("tanned", "tan-skinned"),
        "brown": ("brown-skinned",), "dark": ("dark-skinned",),
    },
    "hair_color": {
        "black": ("black-haired",), "brown": ("brown-haired", "brunette"), "blonde": ("blonde", "blonde-haired", "blond"),
        "red": ("red-haired", "ginger", "ginger-haired"), "gray": ("gray-haired", "grey-haired", "silver-haired"), "blue": ("blue-haired",),
    },
    "eye_color": {"brown": ("brown-eyed",), "blue": ("blue-eyed",), "green": ("green-eyed",)},
}  # fmt: skip

#: How a picture is called, and how its sharpness is said before that word.
PICTURES = ("portrait", "photo", "picture", "image")
SHARPNESS = {"sharp": ("sharp", "crisp"), "blurry": ("blurry", "blurred")}

#: What is put before a prompt and says nothing.
OPENINGS = (
    "draw", "please draw", "show me", "i want", "make", "generate", "create", "a face of", "the face of", "please make", "can you draw",
)  # fmt: skip

#: Words that say nothing about a face: asking, pointing, and what every picture here is.
IGNORED: Words = (
    "a", "about", "add", "adult", "after", "against", "all", "also", "am", "and", "anything", "are", "as", "at", "background", "be",
    "beautiful", "big", "bit", "but", "by", "can", "can't", "change", "changed", "character", "closeup", "color", "colored", "could",
    "create", "cute", "doing", "draw", "drawing", "drawn", "dressed", "expression", "face", "facial", "feature", "features", "for",
    "from", "full", "generate", "gets", "give", "given", "giving", "good", "got", "had", "handsome", "has", "have", "having", "he's",
    "head", "headshot", "her", "here", "hers", "him", "his", "human", "i", "i'd", "i'm", "illustration", "image", "in", "instead",
    "into", "is", "it", "its", "just", "kind", "let", "like", "little", "look", "looking", "looks", "lot", "lots", "lovely", "make",
    "makes", "making", "me", "my", "nice", "now", "of", "on", "one", "or", "out", "over", "paint", "people", "person", "photo",
    "photograph", "picture", "picture's", "please", "portrait", "pretty", "put", "quite", "really", "replace", "say", "see", "she's",
    "shot", "show", "showing", "side", "so", "somebody", "someone", "sort", "style", "that", "that's", "the", "their", "them", "then",
    "there", "these", "they", "this", "to", "too", "turn", "up", "us", "want", "wanted", "was", "we", "wear", "wearing", "wears",
    "were", "what", "when", "which", "while", "who", "whose", "will", "with", "would", "you", "your",
)  # fmt: skip
