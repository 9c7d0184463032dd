"""The lexicon of the f2edge schema: reads what a text says about a face, the inverse of ``captions``.

>>> mentioned_in("a young woman with long red hair and no hat")
{'age': 'young', 'gender_presentation': 'feminine', 'hair_length': 'long', 'hair_color': 'red', 'hat': 'none'}
"""

from __future__ import annotations

from collections.abc import Iterator

from export.data.text.phrases import (
    BEFORE_NOUN,
    EMOTIONS,
    HAIR_NOUNS,
    IGNORED,
    LACKING,
    NEGATABLE,
    NOUN_GROUPS,
    OPENINGS,
    PERSON_NOUNS,
    PHRASES,
    PICTURES,
)
from export.data.text.synonyms import ADJECTIVES, NOUNS, SYNONYMS
from export.data.text.wording import bare
from f2edge.spec.attributes import F2EDGE_SCHEMA
from f2edge.spec.lexicon import Claims, Key, Lexicon, key_of, nouns_of


def _phrases() -> Iterator[tuple[str, Claims]]:
    """Everything that is written as a phrase, and what is only read."""
    for source in (PHRASES, BEFORE_NOUN, {"emotion": EMOTIONS}):
        for slot, values in source.items():
            for value, phrases in values.items():
                yield from (
                    (phrase.removeprefix("with ").removeprefix("no "), ((slot, value),)) for phrase in phrases if phrase != "no hair"
                )
    for (gender, age), nouns in PERSON_NOUNS.items():
        yield from ((noun, (("gender_presentation", gender), ("age", age))) for noun in nouns)
    for color, nouns in HAIR_NOUNS.items():
        yield from ((noun, (("hair_color", color),)) for noun in nouns)
    for action in F2EDGE_SCHEMA["action"].values[1:]:
        if action != "turn":  # "turn the hair red"
            yield action.replace("_", " "), (("action", action),)  # "make her smile"
    for slot, word in LACKING.items():
        yield word, ((slot, "none"),)
    colors = next(g.adjectives["clothing_color"] for g in NOUN_GROUPS if "clothing_color" in g.adjectives)
    for value, words in colors.items():
        yield from ((f"dressed in {word}", (("clothing_color", value),)) for word in words)


def _phrase_table() -> dict[Key, Claims]:
    table: dict[Key, Claims] = {}
    for phrase, claims in _phrases():
        known = table.setdefault(key_of(phrase), claims)
        if known != claims:
            raise ValueError(f"phrase {phrase!r} says both {known} and {claims}")
    return {key_of(phrase): claims for claims, phrases in SYNONYMS.items() for phrase in phrases} | table


def _nouns() -> dict[Key, dict[Key, tuple[str, str]]]:
    """Nouns with the adjectives that are written, and those that are only read."""
    table: dict[Key, dict[Key, tuple[str, str]]] = {}
    for group in NOUN_GROUPS:
        heads = [noun for head in group.heads for noun in (head, *NOUNS.get(head, ()))]
        read = nouns_of([(heads, {slot: ADJECTIVES[slot] for slot in group.adjectives if slot in ADJECTIVES})])
        written = nouns_of([(heads, group.adjectives)])
        table |= {noun: read[noun] | written[noun] for noun in written}
    return table


def _negatives() -> dict[Key, Claims]:
    written = {key_of(noun): ((slot, "none"),) for slot, nouns in NEGATABLE.items() for noun in nouns}
    return written | {
        key_of("hair"): (("hair_length", "bald"),),
        key_of("facial hair"): (("beard", "none"), ("mustache", "none")),
        key_of("cap"): (("hat", "none"),),
        key_of("specs"): (("eyewear", "none"),),
        key_of("anything on head"): (("hat", "none"),),
    }


def spoken_phrases() -> dict[tuple[str, str], str]:
    """Return how captions in key words name each value of the schema, in the commonest wording: "old", "gray hair", "without a hat"."""
    return {(slot.name, value): _spoken(slot.name, value) for slot in F2EDGE_SCHEMA.values() for value in slot.values}


def _spoken(slot: str, value: str) -> str:
    for group in NOUN_GROUPS:
        if value in group.adjectives.get(slot, {}):
            return f"{group.adjectives[slot][value][0]} {group.heads[0]}"
    if value in PHRASES.get(slot, {}):
        return bare(PHRASES[slot][value][0])
    return f"without {NEGATABLE[slot][0]}"


def build_lexicon() -> Lexicon:
    """Return the lexicon that export writes into a bundle of the f2edge schema."""
    opposites = {
        (slot.name, value): slot.values[1 - place]
        for slot in F2EDGE_SCHEMA.values()
        if len(slot.values) == 2
        for place, value in enumerate(slot.values)
    }
    spoken = {word for text in (*OPENINGS, *PICTURES) for word in key_of(text)}
    return Lexicon(_phrase_table(), _nouns(), _negatives(), {*IGNORED, *spoken}, opposites, spoken=spoken_phrases())


LEXICON = build_lexicon()


def mentioned_in(text: str) -> dict[str, str]:
    """Return what ``text`` says about a face: slot → value, in the order of mention; the first mention of a slot counts.

    Unknown words are passed over, so any text is accepted.
    """
    return dict(LEXICON.read(text).claims)
