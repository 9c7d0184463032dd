"""The lexicon: what the words of a prompt say about a face, by the phrases that a bundle's model was trained on.

Export writes it into the bundle (``lexicon.json``); the runtime reads prompts with it: which slots a prompt asks for, which values it rules
out, which words are misspelt and which it does not know.

Rules, over the words of the text.  The longest known phrase at a place counts ("bow tie" before "tie"); otherwise a run of adjectives
counts for the noun that follows it ("long red hair") or that it is predicated of ("her hair is long and red").  After a negator a noun
means the slot's "none" ("no hat") and a value is ruled out ("not blonde", "isn't smiling").

>>> lexicon.read("a woman with long red hair, no hat and a parrot").claims             # doctest: +SKIP
{'gender_presentation': 'feminine', 'hair_length': 'long', 'hair_color': 'red', 'hat': 'none'}
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import Any

from f2edge.errors import BundleError

Key = tuple[str, ...]
#: Slots and values that a phrase asserts.
Claims = tuple[tuple[str, str], ...]

_TOKEN = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?|\d+|[,.;:!?\n]")
_TAKEN_OFF = re.compile(r"\b(?:take|takes|taking) off|get(?:ting)? rid of|shave(?: off)?\b")
_PUNCTUATION = frozenset(",.;:!?\n")
_ARTICLES = frozenset(("a", "an", "the", "her", "his", "their", "very", "some", "any"))
_NEGATORS = frozenset(
    (
        "no",
        "without",
        "not",
        "never",
        "isn't",
        "aren't",
        "doesn't",
        "don't",
        "hasn't",
        "haven't",
        "isnt",
        "doesnt",
        "hasnt",
        "remove",
        "lose",
    )
)
_AFTER_NEGATOR = frozenset(("wearing", "having", "with", "have", "wear", "has", "in", "been"))
_LINKS = frozenset(("and", ","))
_STOPS = frozenset(("and", ",", ".", ";", "!", "?", "\n"))
_COPULAS = frozenset(("is", "are"))
_NEGATED_COPULAS = frozenset(("isn't", "aren't", "isnt", "arent"))
_YEARS = frozenset(("year", "years", "yr", "yrs", "yo"))
_AGED, _ABOUT = frozenset(("aged", "age")), frozenset(("about", "around"))
#: Ages in years from which a face counts as middle-aged and as old.
_MIDDLE_AGED, _OLD = 36, 56
_SHORTEST_CORRECTED, _LONGEST_CORRECTED = 4, 24
#: Unknown words of a text that are compared with the known ones; each costs about a millisecond.
_MOST_CORRECTED = 12
#: Least similarity of a misspelt word to the word that was meant: of equal length, and with letters missing or added.
_SIMILAR, _SIMILAR_IN_LENGTH = 0.8, 0.84


def words_of(text: str) -> list[str]:
    """Words and punctuation of a text as the lexicon sees them: lower-case, hyphens as blanks, articles and possessive endings left out."""
    plain = _TAKEN_OFF.sub("remove", text.lower().replace("-", " ").replace("\u2019", "'"))
    words = (word.removesuffix("'s") for word in _TOKEN.findall(plain))
    return [word for word in words if word not in _ARTICLES]


def key_of(phrase: str) -> Key:
    """The words of a phrase, as a key of the lexicon's tables."""
    return tuple(words_of(phrase))


@dataclass(frozen=True)
class Reading:
    """What a text says about a face.

    Attributes:
        claims: slot → value, in the order of mention; the first mention of a slot counts.
        excluded: slot → values that the text rules out ("not blonde").
        unmatched: words and runs of words that the lexicon does not know, in order.
        corrected: misspelt words → the words they were read as.
    """

    claims: Mapping[str, str]
    excluded: Mapping[str, frozenset[str]] = field(default_factory=dict)
    unmatched: tuple[str, ...] = ()
    corrected: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Wording:
    """What a model makes of a prompt's words; empty where its bundle does not list the words that it knows.

    Attributes:
        unmatched: words, and runs of words, that it does not know, in order.
        corrected: misspelt word → the word that was read in its place.
    """

    unmatched: tuple[str, ...] = ()
    corrected: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Span:
    """Words from one place up to ``end``, and what they say."""

    end: int
    claims: Claims = ()
    excluded: Claims = ()


class _Table(dict[Key, Any]):
    """Keys of several words, found longest first."""

    def __init__(self, rows: Mapping[Key, Any]) -> None:
        super().__init__(rows)
        lengths: dict[str, set[int]] = {}
        for key in rows:
            lengths.setdefault(key[0], set()).add(len(key))
        self._lengths = {word: sorted(sizes, reverse=True) for word, sizes in lengths.items()}

    def longest(self, words: list[str], at: int) -> Key | None:
        for size in self._lengths.get(words[at], ()) if at < len(words) else ():
            key = tuple(words[at : at + size])
            if key in self:
                return key
        return None


class Lexicon:
    """Phrases, nouns with their adjectives, negatable nouns and words without meaning for a face.

    Args:
        phrases: phrase → what it asserts.
        nouns: noun → adjective → (slot, value).
        negatives: noun → what "no" before it asserts.
        ignored: words that carry no attribute ("with", "portrait", "person").
        opposites: (slot, value) → the only other value of the slot, where it has two.
        spoken: (slot, value) → how the model's own captions name it, in the order of a caption.
    """

    def __init__(
        self,
        phrases: Mapping[Key, Claims],
        nouns: Mapping[Key, Mapping[Key, tuple[str, str]]],
        negatives: Mapping[Key, Claims],
        ignored: Iterable[str],
        opposites: Mapping[tuple[str, str], str] | None = None,
        *,
        spoken: Mapping[tuple[str, str], str] | None = None,
    ) -> None:
        self._phrases, self._negatives = _Table(phrases), _Table(negatives)
        self._nouns = _Table({noun: _Table(adjectives) for noun, adjectives in nouns.items()})
        self._adjectives = _Table({key: True for table in nouns.values() for key in table})
        self._opposites, self._spoken = dict(opposites or {}), dict(spoken or {})
        self._ignored = frozenset(ignored)
        keys = (*phrases, *negatives, *self._adjectives, *nouns)
        self._known = (
            {word for key in keys for word in key} | self._ignored | _NEGATORS | _AFTER_NEGATOR | _COPULAS | _YEARS | {"or", "and"}
        )

    @property
    def vocabulary(self) -> frozenset[str]:
        """Every word that the lexicon knows, in lower case."""
        return frozenset(self._known)

    def to_json(self) -> dict[str, Any]:
        """The form stored as ``lexicon.json``."""
        return {
            "phrases": {" ".join(key): [list(claim) for claim in claims] for key, claims in self._phrases.items()},
            "nouns": {" ".join(noun): {" ".join(key): list(claim) for key, claim in table.items()} for noun, table in self._nouns.items()},
            "negatives": {" ".join(key): [list(claim) for claim in claims] for key, claims in self._negatives.items()},
            "opposites": [[slot, value, other] for (slot, value), other in self._opposites.items()],
            "ignored": sorted(self._ignored),
            "spoken": [[slot, value, phrase] for (slot, value), phrase in self._spoken.items()],
        }

    @classmethod
    def from_json(cls, document: Any) -> Lexicon:
        """Inverse of :meth:`to_json`; raises :class:`BundleError` for any other document."""
        try:
            return cls(
                {tuple(k.split()): tuple((str(s), str(v)) for s, v in claims) for k, claims in document["phrases"].items()},
                {
                    tuple(noun.split()): {tuple(k.split()): (str(claim[0]), str(claim[1])) for k, claim in table.items()}
                    for noun, table in document["nouns"].items()
                },
                {tuple(k.split()): tuple((str(s), str(v)) for s, v in claims) for k, claims in document["negatives"].items()},
                map(str, document["ignored"]),
                {(str(slot), str(value)): str(other) for slot, value, other in document["opposites"]},
                spoken={(str(slot), str(value)): str(phrase) for slot, value, phrase in document.get("spoken", [])},
            )
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise BundleError(f"lexicon.json: not a lexicon ({type(error).__name__}: {error}); export the bundle again") from error

    def read(self, text: str) -> Reading:
        """Return what ``text`` says about a face; any text is accepted."""
        words, corrected = self._corrected(words_of(text))
        claims: dict[str, str] = {}
        excluded: dict[str, frozenset[str]] = {}
        unmatched: list[list[str]] = []
        at, unknown = 0, -1
        while at < len(words):
            span = self._span(words, at)
            for slot, value in span.claims if span else ():
                claims.setdefault(slot, value)
            for slot, value in span.excluded if span else ():
                excluded[slot] = excluded.get(slot, frozenset()) | {value}
            if span is None and words[at] not in self._ignored and words[at] not in _PUNCTUATION and not self._silent(words[at]):
                if unknown == at - 1 and unmatched:
                    unmatched[-1].append(words[at])
                else:
                    unmatched.append([words[at]])
                unknown = at
            at = span.end if span else at + 1
        missed = tuple(dict.fromkeys(" ".join(run) for run in unmatched))
        return Reading(claims, {s: v for s, v in excluded.items() if s not in claims}, missed, corrected)

    def correct(self, text: str) -> tuple[str, Mapping[str, str]]:
        """Return the text with misspelt words put right, and which ones were."""
        _, corrected = self._corrected(words_of(text))
        for wrong, right in corrected.items():
            text = re.sub(rf"(?<![^\W\d_]){re.escape(wrong)}(?![^\W\d_])", right, text, flags=re.IGNORECASE)
        return text, corrected

    def restated(self, text: str, claims: Mapping[str, str]) -> str:
        """Return the text behind what it claims in the model's own words: "man, bald head, a bloke with no hair".

        A text that has all of these words stays as it is: said twice, they make faces of one prompt more alike.
        """
        said = f" {' '.join(words_of(text))} "
        phrases = [phrase for (slot, value), phrase in self._spoken.items() if claims.get(slot) == value]
        known = all(f" {' '.join(key_of(phrase))} " in said for phrase in phrases)
        return text if known else ", ".join([*phrases, text])

    def _silent(self, word: str) -> bool:
        return word in _COPULAS or word in _NEGATORS or word in _AFTER_NEGATOR or word in {"or", "and"}

    def _corrected(self, words: list[str]) -> tuple[list[str], dict[str, str]]:
        corrected: dict[str, str] = {}
        tried: set[str] = set()
        for word in words:
            if len(tried) >= _MOST_CORRECTED:
                break
            if word not in self._known and word.isalpha() and _SHORTEST_CORRECTED <= len(word) <= _LONGEST_CORRECTED and word not in tried:
                tried.add(word)
                match = self._nearest(word)
                if match is not None:
                    corrected[word] = match
        return [corrected.get(word, word) for word in words], corrected

    def _nearest(self, word: str) -> str | None:
        """The known word that ``word`` is most likely a misspelling of: same first letter, nearly the same letters."""
        best, score = None, 0.0
        for known in sorted(self._known):
            if known[0] != word[0] or len(known) < _SHORTEST_CORRECTED or abs(len(known) - len(word)) > 2:
                continue
            ratio = SequenceMatcher(None, word, known, autojunk=False).ratio()
            if sorted(word) == sorted(known):
                ratio = max(ratio, 0.95)  # letters in another order: the commonest slip of all
            if ratio > score and ratio >= (_SIMILAR if len(known) == len(word) else _SIMILAR_IN_LENGTH):
                best, score = known, ratio
        return best

    def _span(self, words: list[str], at: int) -> _Span | None:
        """What stands at ``at``; None where nothing known begins there."""
        if words[at] in _NEGATORS:
            return self._negated(words, at + 1)
        if words[at].isdecimal() or words[at] in _AGED:
            years = _years(words, at)
            if years is not None or words[at].isdecimal():
                return years
        key = self._phrases.longest(words, at)
        run = self._adjective_run(words, at) or self._predicate(words, at)
        if run is not None and (key is None or at + len(key) < run.end):
            return run
        return _Span(at + len(key), self._phrases[key]) if key is not None else None

    def _adjective_run(self, words: list[str], at: int) -> _Span | None:
        """Adjectives and the noun they stand before."""
        keys: list[Key] = []
        while (key := self._adjectives.longest(words, at)) is not None:
            keys.append(key)
            at += len(key)
            if at + 1 < len(words) and words[at] in _LINKS and self._adjectives.longest(words, at + 1):
                at += 1
        noun = self._nouns.longest(words, at) if keys and at < len(words) else None
        table = None if noun is None else self._nouns[noun]
        if noun is None or table is None or any(key not in table for key in keys):
            return None
        return _Span(at + len(noun), tuple(table[key] for key in keys))

    def _predicate(self, words: list[str], at: int) -> _Span | None:
        """Adjectives after a noun: "hair is long, wavy and red", "hair isn't red", "make the hair red"."""
        noun = self._nouns.longest(words, at)
        at += len(noun or ())
        if noun is None or at >= len(words):
            return None
        negated = words[at] in _NEGATED_COPULAS
        linked = words[at] in _COPULAS or negated or words[at] in {"to", ":"}
        at += linked
        if linked and at < len(words) and words[at] == "not":
            negated, at = True, at + 1
        table: _Table = self._nouns[noun]
        claims: list[tuple[str, str]] = []
        while at < len(words) and (key := table.longest(words, at)) is not None:
            after = at + len(key)
            if (claims or not linked) and after < len(words) and words[after] not in _STOPS:
                break  # the adjective belongs to the next noun: "her hair is red, brown eyes"
            claims.append(table[key])
            at = after
            if at + 1 < len(words) and words[at] in _LINKS and table.longest(words, at + 1):
                at += 1
        if not claims:
            return None
        return self._ruled_out(at, claims) if negated else _Span(at, tuple(claims))

    def _ruled_out(self, end: int, denied: Iterable[tuple[str, str]]) -> _Span:
        """Denied values: of a slot with two values the other one is claimed."""
        claims, excluded = [], []
        for slot, value in denied:
            if (slot, value) in self._opposites:
                claims.append((slot, self._opposites[slot, value]))
            else:
                excluded.append((slot, value))
        return _Span(end, tuple(claims), tuple(excluded))

    def _negated(self, words: list[str], at: int) -> _Span:
        """The words after a negator: "hat", "wearing hat or glasses", "blonde", "smiling"."""
        claims: list[tuple[str, str]] = []
        denied: list[tuple[str, str]] = []
        while at < len(words) and words[at] in _AFTER_NEGATOR:
            at += 1
        while at < len(words):
            noun, phrase, run = self._negatives.longest(words, at), self._phrases.longest(words, at), self._adjective_run(words, at)
            if run is not None and run.end - at > max(len(noun or ()), len(phrase or ())):
                denied.extend(run.claims)
                size = run.end - at
            elif noun is not None and len(noun) >= len(phrase or ()):
                claims.extend(self._negatives[noun])
                size = len(noun)
            elif phrase is not None:
                denied.extend(self._phrases[phrase] if len(self._phrases[phrase]) == 1 else ())
                size = len(phrase)
            else:
                break
            at += size
            if at + 1 < len(words) and words[at] in {"or", "nor"}:
                at += 1
                continue
            break
        span = self._ruled_out(at, denied)
        return _Span(at, (*claims, *span.claims), span.excluded)


def _years(words: list[str], at: int) -> _Span | None:
    """An age in years: "a 60 year old man", "30 yo", "aged about 45", "in her 20s"."""
    begin, aged = at, words[at] in _AGED
    at += aged
    if aged and at < len(words) and words[at] in _ABOUT:
        at += 1
    if at == len(words) or not words[at].isdecimal():
        return None
    years, end = int(words[at][:4]), at + 1
    unit = words[end] if end < len(words) else ""
    if unit in _YEARS or (unit == "s" and words[max(begin - 1, 0)] == "in"):
        end += 1
    elif not aged:
        return None
    if end < len(words) and words[end] in {"old", "of"}:
        end += 2 if words[end] == "of" else 1
    return _Span(end, (("age", "young" if years < _MIDDLE_AGED else "middle_aged" if years < _OLD else "old"),))


def nouns_of(groups: Iterable[tuple[Iterable[str], Mapping[str, Mapping[str, Iterable[str]]]]]) -> dict[Key, dict[Key, tuple[str, str]]]:
    """Tables of nouns for :class:`Lexicon` from (heads, slot → value → adjectives)."""
    return {key_of(head): dict(_adjectives(slots)) for heads, slots in groups for head in heads}


def _adjectives(slots: Mapping[str, Mapping[str, Iterable[str]]]) -> Iterator[tuple[Key, tuple[str, str]]]:
    for slot, values in slots.items():
        for value, words in values.items():
            for word in words:
                yield key_of(word), (slot, value)
