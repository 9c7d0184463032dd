"""The pieces of a sentence about a face and how they are put together; ``captions`` decides what is said."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from export.data.text.phrases import PERSON_NOUNS, PHRASES, NounGroup

T = TypeVar("T")

_ARTICLE = re.compile(r"\b(?:a|an|the) ")
_LONG_WORD = re.compile(r"[a-z]{5,}")


class Dice:
    """Cheap draws from one block of random numbers: a call of a numpy generator costs as much as a whole phrase."""

    def __init__(self, rng: np.random.Generator | None) -> None:
        self._rng = rng
        self._left: list[float] = []

    def roll(self) -> float:
        """Uniform in [0, 1); without a generator, always 0."""
        if self._rng is None:
            return 0.0
        if not self._left:
            self._left = self._rng.random(128).tolist()
        return self._left.pop()

    def chance(self, probability: float) -> bool:
        """True with ``probability``; without a generator, never."""
        return self._rng is not None and self.roll() < probability

    def pick(self, options: Sequence[T]) -> T:
        """One of ``options``; without a generator, the first."""
        return options[int(self.roll() * len(options))] if len(options) > 1 else options[0]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """``items`` in random order; without a generator, as they are."""
        rest = list(items)
        for last in range(len(rest) - 1, 0, -1) if self._rng is not None else ():
            other = int(self.roll() * (last + 1))
            rest[last], rest[other] = rest[other], rest[last]
        return rest


@dataclass
class Parts:
    """The pieces of a sentence, in speaking order."""

    noun: str = "person"
    before: list[str] = field(default_factory=list)
    picture: str = ""
    have: list[str] = field(default_factory=list)
    lacking: list[str] = field(default_factory=list)
    wear: list[str] = field(default_factory=list)
    do: list[str] = field(default_factory=list)
    scene: list[str] = field(default_factory=list)
    groups: list[tuple[NounGroup, list[str]]] = field(default_factory=list)

    def add(self, kind: str, phrase: str) -> None:
        """Append to "have", "wear", "do" or "scene"."""
        getattr(self, kind).append(phrase)


def with_article(phrase: str) -> str:
    """Put the article before it: "old man" → "an old man"."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def listed(items: Sequence[str], last: str = "and") -> str:
    """Join in prose: "a, b and c"."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} {last} {items[-1]}"


def group_phrase(group: NounGroup, words: Sequence[str], dice: Dice) -> str:
    """Put the adjectives before the noun: "long red hair", "a round face"."""
    phrase = f"{' '.join(words)} {dice.pick(group.heads)}"
    return with_article(phrase) if group.article else phrase


def place_groups(parts: Parts, dice: Dice) -> None:
    """Put the noun groups among the other phrases of their kind."""
    for group, words in parts.groups:
        phrase = group_phrase(group, words, dice)
        if group.kind == "scene":
            phrase = f"{dice.pick(('against', 'on'))} {phrase}"
        getattr(parts, group.kind).insert(0, phrase)
    parts.groups.clear()


def subject_of(parts: Parts) -> str:
    """Write "a smiling old man" or "a blurry photo of a smiling old man"."""
    person = with_article(" ".join((*parts.before, parts.noun)))
    return f"{with_article(parts.picture)} of {person}" if parts.picture else person


def one_sentence(parts: Parts, dice: Dice) -> str:
    """Write "a young woman with …, wearing …, smiling, against …" with its parts in varied order."""
    place_groups(parts, dice)
    segments = []
    if parts.have:
        segments.append(f"with {listed(parts.have)}")
    if parts.wear:
        segments.append(f"wearing {listed(parts.wear)}")
    if parts.do:
        segments.append(listed(parts.do))
    if dice.chance(0.4):
        segments = dice.shuffled(segments)
    segments.extend(parts.scene)
    head = subject_of(parts)
    return f"{head} {', '.join(segments)}" if segments else head


def pronoun(noun: str) -> tuple[str, str]:
    """Give "she" and "her" for a woman; without a gender, words that do not claim one."""
    for gender, words in (("feminine", ("she", "her")), ("masculine", ("he", "his"))):
        if noun in PHRASES["gender_presentation"][gender] or any(noun in PERSON_NOUNS[gender, age] for age in ("young", "old")):
            return words
    return "the person", "the"


def several_sentences(parts: Parts, dice: Dice) -> str:
    """Write "a young woman with …. she is wearing …. her eyes are green. the background is blue." in varied order."""
    who, whose = pronoun(parts.noun)
    told: list[str] = []
    kept = []
    for group, words in parts.groups:
        if dice.chance(0.6 if group.kind == "scene" else 0.3):
            owner = "the" if group.kind == "scene" else whose
            told.append(f"{owner} {dice.pick(group.heads)} {'are' if group.plural else 'is'} {listed(words)}")
        else:
            kept.append((group, words))
    parts.groups = kept
    place_groups(parts, dice)
    half = len(parts.have) if len(parts.have) < 4 else (len(parts.have) + 1) // 2
    first, second = parts.have[:half], parts.have[half:]
    doing = f" {listed(parts.do)}" if parts.do else ""
    opening = f"{subject_of(parts)}{doing if not first else ''}" + (f" with {listed(first)}" if first else "")
    if second:
        told.insert(0, f"{who} has {listed(second)}")
    if parts.wear:
        told.append(f"{who} {dice.pick(('is wearing', 'wears'))} {listed(parts.wear)}")
    if doing and first:
        told.append(f"{who} is{doing}")
    if parts.scene:
        opening += f", {', '.join(parts.scene)}"
    return f"{opening}. {'. '.join(dice.shuffled(told))}." if told else opening


def bare(phrase: str) -> str:
    """Take off the article, and the "in" of "in even light", for a tag."""
    for article in ("a ", "an ", "in even ", "in light "):
        if phrase.startswith(article):
            if article.startswith("in"):
                return phrase.removeprefix("in ")
            phrase = phrase[len(article) :]
            break
    return phrase


def terse(text: str) -> str:
    """Without articles, as people type: "old man with beard and hat"."""
    return _ARTICLE.sub("", text)


def misspelt(text: str, dice: Dice) -> str:
    """One slip of the fingers in one of the longer words: two letters swapped, one left out, doubled or replaced by a neighbour."""
    places = [match.span() for match in _LONG_WORD.finditer(text)]
    if not places:
        return text
    begin, end = dice.pick(places)
    at = begin + 1 + int(dice.roll() * (end - begin - 2))
    slips = (text[at + 1] + text[at], text[at + 1], text[at] * 2 + text[at + 1], dice.pick("etaoinsr") + text[at + 1])
    return text[:at] + dice.pick(slips) + text[at + 2 :]


def sentence_case(text: str) -> str:
    """Capitals at the beginning of each sentence, and a full stop."""
    text = ". ".join(sentence[:1].upper() + sentence[1:] for sentence in text.split(". "))
    return text if text.endswith(".") else f"{text}."
