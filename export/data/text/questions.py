"""Questions about a face with their short answers, from its visible slots.

>>> questions({"eye_color": "blue"}, np.random.default_rng(1), 1)[0].question
'what color are the eyes?'

Kinds: "slot" (the schema's own question, what ``analyze`` asks), "yes_no", "which" (two choices named), "open" (another wording),
"describe", and "unanswerable" (about what is hidden, or nothing that a face shows), whose answer is :data:`CANNOT_TELL`.  Answers to
"slot", "which" and "open" are words of ``Slot.answers``.  All but "slot" are then worded as people type them (:func:`typed`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from export.data.text.captions import describe_text
from export.data.text.phrases import EMOTIONS, NEGATABLE, PHRASES
from export.data.text.wording import Dice, misspelt
from f2edge.errors import InputError
from f2edge.spec.attributes import F2EDGE_SCHEMA, Slot

DESCRIBE_QUESTION = "describe the face"
DESCRIBE_QUESTIONS = (DESCRIBE_QUESTION, "describe this face", "describe the picture", "what does the face look like?")

#: The answer where the picture does not show what is asked.
CANNOT_TELL = "cannot tell"

_SLOT_SHARE, _YES_NO_SHARE, _WHICH_SHARE = 0.35, 0.3, 0.1  # the rest is "open"
_UNANSWERABLE_SHARE = 0.08
_HIDDEN_SHARE = 0.6  # of the unanswerable ones; the rest is about no face at all
_TYPED_SHARE = 0.5
_WITHOUT_SHARE = 0.25  # "is the person without a hat?": balances the yes of slots whose commonest value is "none"

#: Frames that a value's words complete, for "yes_no" and "which": adjective, phrase or participle.
_FRAMES: Mapping[str, tuple[str, ...]] = {
    "gender_presentation": ("is this {}?", "is the person {}?"),
    "age": ("is the person {}?", "does the person look {}?"),
    "skin_tone": ("is the skin {}?", "does the person have {} skin?"),
    "skin_texture": ("is the skin {}?",),
    "cheeks": ("are the cheeks {}?",),
    "cheekbones": ("are the cheekbones {}?",),
    "face_shape": ("is the face {}?", "is the shape of the face {}?"),
    "build": ("is the face {}?", "does the face look {}?"),
    "chin": ("does the person have {}?",),
    "hair_color": ("is the hair {}?", "does the person have {} hair?"),
    "hair_length": ("does the person have {}?",),
    "hair_texture": ("is the hair {}?", "does the person have {} hair?"),
    "hairline": ("is the hairline {}?",),
    "bangs": ("are there {}?",),
    "eyebrow_shape": ("are the eyebrows {}?", "does the person have {} eyebrows?"),
    "eyebrow_thickness": ("are the eyebrows {}?", "does the person have {} eyebrows?"),
    "eye_color": ("are the eyes {}?", "does the person have {} eyes?"),
    "eye_shape": ("are the eyes {}?", "does the person have {} eyes?"),
    "eye_bags": ("are there {}?",),
    "makeup": ("is the person wearing {}?",),
    "nose_size": ("is the nose {}?",),
    "nose_shape": ("is the nose {}?",),
    "lips": ("are the lips {}?", "does the person have {} lips?"),
    "lipstick": ("is the person wearing {}?", "is there {}?"),
    "beard": ("does the person have {}?",),
    "mustache": ("does the person have {}?",),
    "sideburns": ("does the person have {}?",),
    "eyewear": ("is the person wearing {}?", "does the person wear {}?"),
    "hat": ("is the person wearing {}?", "does the person wear {}?"),
    "earrings": ("is the person wearing {}?", "does the person wear {}?"),
    "necklace": ("is the person wearing {}?", "does the person wear {}?"),
    "necktie": ("is the person wearing {}?", "does the person wear {}?"),
    "face_mask": ("is the person wearing {}?", "does the person wear {}?"),
    "clothing_color": ("are the clothes {}?", "is the person dressed in {}?"),
    "emotion": ("is the person {}?", "does the person look {}?"),
    "action": ("is the person {}?",),
    "head_pose": ("is the head {}?", "is the person {}?"),
    "lighting": ("is the face {}?",),
    "background": ("is the background {}?",),
    "sharpness": ("is the picture {}?",),
}

#: Words that complete a frame where the value's own words do not.
_WORDS: Mapping[str, Mapping[str, str]] = {
    "gender_presentation": {"feminine": "a woman", "masculine": "a man"},
    "age": {"middle_aged": "middle-aged"},
    "face_shape": {"heart": "heart-shaped"},
    "hair_length": {"short": "short hair", "medium": "medium-length hair", "long": "long hair", "bald": "a bald head"},
    "hair_color": {}, "eye_color": {}, "skin_tone": {}, "clothing_color": {}, "background": {}, "sharpness": {}, "hairline": {}, "lips": {},
    "cheeks": {}, "cheekbones": {}, "build": {}, "skin_texture": {}, "eyebrow_shape": {}, "eyebrow_thickness": {}, "eye_shape": {},
    "nose_size": {}, "nose_shape": {}, "hair_texture": {},
    "emotion": {value: words[0] for value, words in EMOTIONS.items()},
    "beard": {"full": "a full beard"},
}  # fmt: skip

#: Nouns that stand for every value but "none", where the noun of ``NEGATABLE`` could also be heard as one of the values.
_ANY: Mapping[str, tuple[str, ...]] = {**NEGATABLE, "eyewear": ("eyewear",), "necktie": ("any tie",), "bangs": ("bangs",)}
#: (slot, true value) → the value whose words people may also use for it: neither "yes" nor "no" would be fair.
_UNCLEAR = {("eyewear", "sunglasses"): "eyeglasses", ("necktie", "bow_tie"): "tie"}

#: Other ways to ask for a slot; the answer is the same.
_OPEN: Mapping[str, tuple[str, ...]] = {
    "gender_presentation": (
        "is it a man or a woman?",
        "man or woman?",
        "is this face feminine or masculine?",
        "what gender does the face suggest?",
    ),
    "age": (
        "what age does the person look?",
        "how old would you say the person is?",
        "is this a young or an old person?",
        "what is the age of the person?",
        "is the person young, middle aged or old?",
    ),
    "skin_tone": ("which skin tone?", "what complexion does the person have?", "what color is the skin?", "how light is the skin?"),
    "skin_texture": ("what does the skin look like?", "how is the skin?"),
    "cheeks": ("what do the cheeks look like?", "how are the cheeks?"),
    "cheekbones": ("what are the cheekbones like?", "how are the cheekbones?"),
    "face_shape": (
        "what is the face shape?",
        "is the face oval, round, square or heart-shaped?",
        "what shape is the face?",
        "how is the face shaped?",
    ),
    "build": ("how full is the face?", "is the person slim or chubby?"),
    "chin": ("what kind of chin is it?", "what is the chin like?"),
    "hair_color": (
        "what's their hair color?",
        "hair color?",
        "is the hair black, brown, blonde, red, gray or blue?",
        "what color hair does the person have?",
        "what shade is the hair?",
        "what is the hair color?",
        "which color does the hair have?",
    ),
    "hair_length": (
        "is it long or short hair?",
        "what length is the hair?",
        "how long does the person wear the hair?",
        "what is the length of the hair?",
        "is the hair short, medium or long?",
    ),
    "hair_texture": ("how curly is the hair?", "what kind of hair is it?", "what is the hair like?", "what texture does the hair have?"),
    "hairline": ("what is the hairline like?", "how is the hairline?"),
    "bangs": ("what do the bangs look like?", "what falls over the forehead?"),
    "eyebrow_shape": ("what shape are the eyebrows?", "how are the eyebrows shaped?"),
    "eyebrow_thickness": ("how thick are the eyebrows?", "how bushy are the eyebrows?"),
    "eye_color": (
        "eye color?",
        "what color of eyes does the person have?",
        "what color eyes does the person have?",
        "what is the eye color?",
        "which color do the eyes have?",
    ),
    "eye_shape": ("what shape are the eyes?", "how are the eyes shaped?"),
    "eye_bags": ("how visible are the bags under the eyes?",),
    "makeup": ("how heavy is the makeup?", "what makeup is worn?"),
    "nose_size": ("how big is the nose?", "what size is the nose?"),
    "nose_shape": ("what shape is the nose?", "how is the nose shaped?"),
    "lips": ("how full are the lips?", "what are the lips like?"),
    "lipstick": ("which color is on the lips?", "what lip color is it?", "what lipstick is worn?", "which lipstick does the person wear?"),
    "beard": (
        "what facial hair is on the chin?",
        "what sort of beard is that?",
        "what beard does the person have?",
        "what is on the chin?",
    ),
    "mustache": ("any hair above the lip?", "is there hair on the upper lip?", "what about a mustache?"),
    "sideburns": ("what about sideburns?",),
    "eyewear": (
        "does the person need glasses?",
        "glasses or sunglasses?",
        "what does the person wear on the nose?",
        "what is worn over the eyes?",
        "what kind of glasses are worn?",
    ),
    "hat": (
        "what does the person wear on the head?",
        "which headwear is that?",
        "what sort of hat is the person wearing?",
        "what is on the head?",
        "what kind of hat is it?",
    ),
    "earrings": (
        "what does the person wear in the ears?",
        "what kind of earrings are those?",
        "any jewelry on the ears?",
        "what is on the ears?",
        "what kind of earrings are worn?",
    ),
    "necklace": (
        "what does the person wear around the neck?",
        "what kind of jewelry is on the neck?",
        "what is around the neck?",
        "what kind of necklace is it?",
    ),
    "necktie": ("what kind of tie is worn?", "what is tied at the collar?"),
    "face_mask": ("what about a mask?",),
    "clothing_color": (
        "what color is the shirt?",
        "clothing color?",
        "what color is the top?",
        "what is the person wearing, which color?",
        "which color do the clothes have?",
        "what color does the person wear?",
    ),
    "emotion": (
        "what mood is the person in?",
        "what feeling does the face show?",
        "how does the person look, emotionally?",
        "what is the expression?",
        "how does the person feel?",
        "what is the mood of the person?",
    ),
    "action": (
        "what is going on?",
        "what's the person up to?",
        "what is the face doing?",
        "what is happening?",
        "what does the person do?",
    ),
    "head_pose": (
        "which direction does the person look?",
        "where does the face point?",
        "where is the person facing?",
        "which way is the head turned?",
    ),
    "lighting": ("where is the light?", "how is the face lit?"),
    "background": (
        "what color is behind the head?",
        "background color?",
        "what color is the wall?",
        "what is the background color?",
        "which color is behind the person?",
    ),
    "sharpness": ("how sharp is the picture?", "is the image sharp or blurry?"),
}


#: Questions that no picture of a face answers.
OFF_TOPIC = (
    "what is the person's name?", "who is this?", "where was this taken?", "what time is it?", "how tall is the person?",
    "what is the person's job?", "is the person married?", "what is the person thinking?", "what city is this?", "when was this taken?",
    "what is the weather like?", "how much does the person weigh?", "what shoes are worn?", "is there a dog?", "is there a car?",
    "what is in the person's pocket?", "what language does the person speak?", "how many people are there in the world?",
    "what did the person eat today?", "is the person rich?", "what country is the person from?", "what is two plus two?",
    "who painted this?", "what is the capital of france?", "does the person like music?", "what trousers are worn?", "is it raining?",
    "which phone does the person have?", "how many children are there?", "is the person a doctor?", "what is the meaning of life?",
    "what day is it?", "is there a tree?", "what is on the table?", "what color are the shoes?", "is the person a good driver?",
    "what religion is the person?", "what is the person's phone number?", "does the person have a cat?", "what is outside the window?",
)  # fmt: skip

#: Ways to begin a question that change nothing about it.
_BEGINNINGS = ("tell me, ", "can you tell me: ", "please tell me ", "i wonder, ", "hey, ", "so ", "look: ")
_PRONOUNS = {"feminine": "she", "masculine": "he"}
_CONTRACTED = (
    ("what is ", "what's "),
    ("what color are ", "what colour are "),
    ("what color is ", "what colour is "),
    ("how is ", "how's "),
)


@dataclass(frozen=True)
class QuestionAnswer:
    """One question about a face, its answer, the slot asked for ("" for "describe") and the kind of question."""

    question: str
    answer: str
    slot: str
    kind: str


def frame_words(slot: str, value: str) -> str | None:
    """The words of a value inside a frame ("sunglasses", "a cap", "smiling"); None for a "none" that has no such words."""
    words = _WORDS.get(slot)
    if words is not None and value in words:
        return words[value]
    if words is not None and slot != "beard":
        return value.replace("_", " ")
    phrases = PHRASES.get(slot, {}).get(value)
    return None if phrases is None else phrases[0]


def _yes_no(slot: Slot, value: str, dice: Dice) -> QuestionAnswer:
    """About half of the answers are yes.  "none" is asked about by its noun: "is the person wearing a hat?"."""
    frame = dice.pick(_FRAMES[slot.name])
    own = frame_words(slot.name, value)
    if slot.name in _ANY:
        noun = dice.pick(_ANY[slot.name])
        if own is None and dice.chance(_WITHOUT_SHARE):
            return QuestionAnswer(f"is the person without {noun}?", "yes", slot.name, "yes_no")
        if own is None and dice.chance(0.5):
            return QuestionAnswer(frame.format(noun), "no", slot.name, "yes_no")
        if own is not None and dice.chance(1.0 - _WITHOUT_SHARE):
            return QuestionAnswer(frame.format(dice.pick((noun, own))), "yes", slot.name, "yes_no")
        if own is not None and dice.chance(0.5):
            return QuestionAnswer(f"is the person without {noun}?", "no", slot.name, "yes_no")
    wrong = [other for other in slot.values if other not in {value, _UNCLEAR.get((slot.name, value))}]
    others = [words for other in wrong if (words := frame_words(slot.name, other)) is not None]
    if own is not None and (not others or (slot.name not in _ANY and dice.chance(0.5))):
        return QuestionAnswer(_asked(frame, own), "yes", slot.name, "yes_no")
    return QuestionAnswer(_asked(frame, dice.pick(others)), "no", slot.name, "yes_no")


def _asked(frame: str, words: str) -> str:
    return "is the person bald?" if words == "a bald head" else frame.format(words)


def _which(slot: Slot, value: str, dice: Dice) -> QuestionAnswer | None:
    own = frame_words(slot.name, value)
    others = [words for other in slot.values if other != value and (words := frame_words(slot.name, other)) is not None]
    if own is None or not others:
        return None
    pair = " or ".join(dice.shuffled([own, dice.pick(others)]))
    return QuestionAnswer(dice.pick(_FRAMES[slot.name]).format(pair), slot.answers[slot.index(value)], slot.name, "which")


def _question(slot: Slot, value: str, dice: Dice) -> QuestionAnswer:
    answer = slot.answers[slot.index(value)]
    kind = dice.roll()
    if kind < _SLOT_SHARE:
        return QuestionAnswer(slot.question, answer, slot.name, "slot")
    if kind < _SLOT_SHARE + _YES_NO_SHARE:
        return _yes_no(slot, value, dice)
    if kind < _SLOT_SHARE + _YES_NO_SHARE + _WHICH_SHARE and (pair := _which(slot, value, dice)) is not None:
        return pair
    return QuestionAnswer(dice.pick(_OPEN[slot.name]), answer, slot.name, "open")


def questions(slots: Mapping[str, str], rng: np.random.Generator, count: int, *, as_typed: bool = True) -> list[QuestionAnswer]:
    """Return ``count`` questions about visible slots, slots drawn without repetition as long as there are enough.

    Some are unanswerable.  With ``as_typed`` half of those that are not the schema's own pass through :func:`typed`.

    Raises:
        InputError: ``slots`` is empty, or holds a slot or value outside the schema.
    """
    if not slots:
        raise InputError("questions: no visible slots to ask about")
    for slot, value in slots.items():
        F2EDGE_SCHEMA.select([slot])[slot].index(value)
    dice = Dice(rng)
    hidden = [name for name in F2EDGE_SCHEMA if name not in slots]
    drawn: list[QuestionAnswer] = []
    names: list[str] = []
    for _ in range(count):
        if dice.chance(_UNANSWERABLE_SHARE):
            drawn.append(_unanswerable(hidden, slots, dice))
            continue
        names = names or dice.shuffled(tuple(slots))
        name = names.pop()
        item = _question(F2EDGE_SCHEMA[name], slots[name], dice)
        if item.kind != "slot" and as_typed and dice.chance(_TYPED_SHARE):
            item = replace(item, question=typed(item.question, slots, dice))
        drawn.append(item)
    return drawn


def _unanswerable(hidden: Sequence[str], slots: Mapping[str, str], dice: Dice) -> QuestionAnswer:
    """A question about something that is covered, or about nothing that a face shows."""
    if not hidden or not dice.chance(_HIDDEN_SHARE):
        return QuestionAnswer(typed(dice.pick(OFF_TOPIC), slots, dice), CANNOT_TELL, "", "unanswerable")
    name = dice.pick(hidden)
    wording = F2EDGE_SCHEMA[name].question if dice.chance(0.5) else dice.pick(_OPEN[name])
    return QuestionAnswer(typed(wording, slots, dice), CANNOT_TELL, name, "unanswerable")


def typed(question: str, slots: Mapping[str, str], dice: Dice) -> str:
    """The question as somebody might type it: a pronoun for "the person", contractions, no question mark, a word before it."""
    pronoun = _PRONOUNS.get(slots.get("gender_presentation", "")) if dice.chance(0.5) else None
    if pronoun is not None:
        question = question.replace("the person's", "her" if pronoun == "she" else "his").replace("the person", pronoun)
    elif dice.chance(0.3):
        question = question.replace("the person", "this person")
    for plain, short in _CONTRACTED:
        if question.startswith(plain) and dice.chance(0.4):
            question = short + question.removeprefix(plain)
    if dice.chance(0.15):
        question = f"{dice.pick(_BEGINNINGS)}{question}"
    if dice.chance(0.3):
        question = question.removesuffix("?")
    return misspelt(question, dice) if dice.chance(0.04) else question


def describe_question(slots: Mapping[str, str], rng: np.random.Generator) -> QuestionAnswer:
    """Ask "describe the face" (three times of four) or a paraphrase, answered by :func:`describe_text`."""
    dice = Dice(rng)
    question = DESCRIBE_QUESTION if dice.chance(0.75) else dice.pick(DESCRIBE_QUESTIONS)
    return QuestionAnswer(question, describe_text(slots, rng).text, "", "describe")


def every_question() -> list[str]:
    """All fixed questions: the schema's, their other wordings, those that ask for a description, and those off the topic."""
    wordings = [q for several in _OPEN.values() for q in several]
    return [*(slot.question for slot in F2EDGE_SCHEMA.values()), *wordings, *DESCRIBE_QUESTIONS, *OFF_TOPIC]
