"""Read what a text says about a face: the inverse of ``captions``.

Two rules over the words of the text.  The longest known phrase at a place counts ("bow tie" before "tie"); otherwise a run of adjectives
counts for the noun that follows it ("long red hair") or that it is said of ("her hair is long and red").  A negated phrase counts as "none"
of its slot.

>>> mentioned_in("a young woman with long red hair and no hat")
{'age': 'young', 'gender_presentation': 'feminine', 'hair_length': 'long', 'hair_color': 'red', 'hat': 'none'}
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from export.data.text.phrases import ALIASES, BEFORE_NOUN, EMOTIONS, NEGATABLE, NOUN_GROUPS, PHRASES

Claims = tuple[tuple[str, str], ...]
_Key = tuple[str, ...]

_TOKEN = re.compile(r"[^\W\d_]+|[,.;:!?\n]")
_FILLERS = frozenset(("a", "an", "the", "her", "his", "their", "very", "some", "any"))
_NEGATORS = frozenset(("no", "without", "not", "never"))
_AFTER_NEGATOR = frozenset(("wearing", "having", "with"))
_LINKS = frozenset(("and", ","))
_STOPS = frozenset(("and", ",", ".", ";", "!", "?", "\n"))


def _key(phrase: str) -> _Key:
    """The words of a phrase as the reader sees them: lower-case, hyphens as spaces, articles left out."""
    return tuple(word for word in _TOKEN.findall(phrase.lower().replace("-", " ")) if word not in _FILLERS)


def _phrase_table() -> dict[_Key, Claims]:
    table: dict[_Key, Claims] = {}
    for source in (PHRASES, BEFORE_NOUN, {"emotion": EMOTIONS}):
        for slot, values in source.items():
            for value, phrases in values.items():
                for phrase in phrases:
                    key = _key(phrase.removeprefix("with "))
                    if table.setdefault(key, ((slot, value),)) != ((slot, value),):
                        raise ValueError(f"phrase {phrase!r} says both {table[key]} and {slot}={value}")
    for phrase, claims in ALIASES.items():
        table[_key(phrase)] = claims
    for color, claims in _dressed().items():
        table[_key(f"dressed in {color}")] = claims
    return table


def _dressed() -> dict[str, Claims]:
    colors = next(g.adjectives["clothing_color"] for g in NOUN_GROUPS if "clothing_color" in g.adjectives)
    return {word: (("clothing_color", value),) for value, words in colors.items() for word in words}


def _noun_table() -> dict[str, dict[_Key, tuple[str, str]]]:
    return {
        head: {_key(word): (slot, value) for slot, values in group.adjectives.items() for value, words in values.items() for word in words}
        for group in NOUN_GROUPS
        for head in group.heads
    }


_PHRASES = _phrase_table()
_NOUNS = _noun_table()
_NEGATIVES: Mapping[_Key, Claims] = {_key(noun): ((slot, "none"),) for slot, nouns in NEGATABLE.items() for noun in nouns} | {
    _key("hair"): (("hair_length", "bald"),),
    _key("moustache"): (("mustache", "none"),),
    _key("eyeglasses"): (("eyewear", "none"),),
    _key("face mask"): (("face_mask", "none"),),
    _key("bow tie"): (),
    _key("necktie"): (("necktie", "none"),),
}
_ADJECTIVES = frozenset(key for table in _NOUNS.values() for key in table)


def _lengths(keys: Iterable[_Key]) -> dict[str, tuple[int, ...]]:
    """First word → lengths of the keys that begin with it, longest first."""
    lengths: dict[str, set[int]] = {}
    for key in keys:
        lengths.setdefault(key[0], set()).add(len(key))
    return {word: tuple(sorted(sizes, reverse=True)) for word, sizes in lengths.items()}


_PHRASE_LENGTHS, _NEGATIVE_LENGTHS, _ADJECTIVE_LENGTHS = _lengths(_PHRASES), _lengths(_NEGATIVES), _lengths(_ADJECTIVES)


def _longest(
    words: list[str], at: int, keys: Mapping[_Key, object] | frozenset[_Key], lengths: Mapping[str, tuple[int, ...]]
) -> _Key | None:
    for size in lengths.get(words[at], ()) if at < len(words) else ():
        key = tuple(words[at : at + size])
        if key in keys:
            return key
    return None


def _adjective_run(words: list[str], at: int) -> tuple[list[tuple[str, str]], int] | None:
    """Adjectives and the noun they stand before: what they say, and the place after the noun."""
    keys: list[_Key] = []
    while (key := _longest(words, at, _ADJECTIVES, _ADJECTIVE_LENGTHS)) is not None:
        keys.append(key)
        at += len(key)
        if at + 1 < len(words) and words[at] in _LINKS and _longest(words, at + 1, _ADJECTIVES, _ADJECTIVE_LENGTHS):
            at += 1
    table = _NOUNS.get(words[at]) if keys and at < len(words) else None
    if table is None or any(key not in table for key in keys):
        return None
    return [table[key] for key in keys], at + 1


def _predicate(words: list[str], at: int) -> tuple[list[tuple[str, str]], int] | None:
    """Read "hair is long, wavy and red": what it says, and the place after the last adjective."""
    table = _NOUNS.get(words[at])
    if table is None or at + 2 >= len(words) or words[at + 1] not in {"is", "are"}:
        return None
    lengths = _lengths(table)
    claims: list[tuple[str, str]] = []
    at += 2
    while (key := _longest(words, at, table, lengths)) is not None:
        after = at + len(key)
        if claims and after < len(words) and words[after] not in _STOPS:
            break  # the adjective belongs to the next noun: "her hair is red, brown eyes"
        claims.append(table[key])
        at = after
        if at + 1 < len(words) and words[at] in _LINKS and _longest(words, at + 1, table, lengths):
            at += 1
    return claims, at


def _negated(words: list[str], at: int) -> tuple[Claims, int]:
    """The words after a negator: "hat", "wearing hat or glasses": what they say, and the place after them."""
    claims: list[tuple[str, str]] = []
    while at < len(words) and words[at] in _AFTER_NEGATOR:
        at += 1
    while at < len(words):
        key = _longest(words, at, _NEGATIVES, _NEGATIVE_LENGTHS)
        if key is not None:
            claims.extend(_NEGATIVES[key])
        else:  # "no hoop earrings" says nothing that a slot could hold
            run = _adjective_run(words, at)
            key = tuple(words[at : run[1]]) if run else _longest(words, at, _PHRASES, _PHRASE_LENGTHS)
        at += len(key) if key else 0
        if at < len(words) and words[at] == "or" and key:
            at += 1
            continue
        break
    return tuple(claims), at


def mentioned_in(text: str) -> dict[str, str]:
    """What ``text`` says about a face: slot → value, in the order of mention; the first mention of a slot wins.

    Unknown words are passed over, so any text is accepted.
    """
    words = list(_key(text))
    found: dict[str, str] = {}
    at = 0
    while at < len(words):
        claims: Iterable[tuple[str, str]] = ()
        if words[at] in _NEGATORS:
            claims, at = _negated(words, at + 1)
        elif (run := _adjective_run(words, at) or _predicate(words, at)) and not _longer_phrase(words, at, run[1]):
            claims, at = run
        elif (key := _longest(words, at, _PHRASES, _PHRASE_LENGTHS)) is not None:
            claims, at = _PHRASES[key], at + len(key)
        else:
            at += 1
        for slot, value in claims:
            found.setdefault(slot, value)
    return found


def _longer_phrase(words: list[str], at: int, end: int) -> bool:
    key = _longest(words, at, _PHRASES, _PHRASE_LENGTHS)
    return key is not None and at + len(key) >= end
