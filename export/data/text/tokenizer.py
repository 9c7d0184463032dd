"""The nano text tokenizer: byte-level BPE whose words are those of the captions and questions.

    tokenizer = train_text_tokenizer(Path("tokenizer.json"))

Every word that captions, questions and answers use is one token; the remaining ids are merges learned from the same texts, and any other
text falls back to pieces and bytes.  A word always carries its leading space, also at the start of a text and after a line break, so that
"red hair" has the same ids everywhere; decoding takes those spaces off again.  Text is NFC and lower-case, runs of blanks count as one.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from export.data.text.captions import caption, describe_text
from export.data.text.instructions import EDITED_REGIONS, can_instruct, instruction
from export.data.text.phrases import IGNORED
from export.data.text.questions import every_question, questions
from f2edge.errors import InputError
from f2edge.provenance.saving import check_writable, write_atomically
from f2edge.spec.attributes import F2EDGE_SCHEMA

START_OF_TEXT, END_OF_TEXT = "<|startoftext|>", "<|endoftext|>"
_PIECES = Regex(r" ?\p{L}+(?:'\p{L}+)?|-\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]|\n|\s+")
_CORPUS_FACES = 3000


def random_slots(rng: np.random.Generator) -> dict[str, str]:
    """Slots of an imaginary face: every value likely, one slot in ten hidden.  For vocabulary and tests, not for pictures."""
    return {
        name: slot.values[0] if rng.random() < 0.3 else slot.values[int(rng.integers(len(slot.values)))]
        for name, slot in F2EDGE_SCHEMA.items()
        if rng.random() < 0.9
    }


def corpus(seed: int) -> Iterator[str]:
    """Captions, descriptions, questions and answers of imaginary faces, and every fixed phrase."""
    rng = np.random.default_rng(seed)
    for slot in F2EDGE_SCHEMA.values():
        yield from slot.answers
    yield from every_question()
    yield " ".join(IGNORED)
    yield "yes\nno"
    for name in EDITED_REGIONS:
        for value in F2EDGE_SCHEMA[name].values:
            if can_instruct(name, value):
                yield from (instruction(name, value, rng) for _ in range(20))
    for _ in range(_CORPUS_FACES):
        slots = random_slots(rng)
        yield caption(slots, rng).text
        yield describe_text(slots, rng).text
        for item in questions(slots, rng, 3):
            yield f"{item.question}\n{item.answer}"


def _text_rules(tokenizer: Tokenizer) -> None:
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"[^\S\n]+"), " "),
            normalizers.Prepend(" "),  # a rule that matches the empty place before a word makes tokenizers 0.23 panic
            normalizers.Replace(Regex(r" *\n[ \n]*"), "\n "),
            normalizers.Replace(Regex(r"\A +"), " "),
            normalizers.Replace(Regex(r" +\z"), ""),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(_PIECES, behavior="isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("\n ", "\n"), decoders.Strip(" ", 1, 0)])


def _pieces(tokenizer: Tokenizer, texts: list[str]) -> list[str]:
    """Byte-level spellings of all words of ``texts``, commonest first, ties in alphabetical order."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text)))
    return sorted(counts, key=lambda piece: (-counts[piece], piece))


def read_text_tokenizer(path: Path) -> Tokenizer:
    """A text tokenizer; raises :class:`InputError` where there is none or it is damaged."""
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception
        raise InputError(f"text tokenizer {path}: cannot be read ({error}); give a tokenizer.json of Hugging Face") from error


def train_text_tokenizer(path: str | Path, vocabulary: int = 1024, seed: int = 0) -> Tokenizer:
    """Train the tokenizer and save it as ``path`` (``tokenizer.json``), with exactly ``vocabulary`` ids.

    The same arguments give the same file.

    Ids: the two specials, 256 bytes, whole words by frequency, learned merges, and reserved names if those run out.

    Raises:
        InputError: ``vocabulary`` is too small for the bytes and the words of the schema's answers.
        OutputError: the file cannot be written.
    """
    target = check_writable(path)
    texts = list(corpus(seed))
    learner = Tokenizer(models.BPE())
    _text_rules(learner)
    words = [piece for piece in _pieces(learner, texts) if len(piece) > 1]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = {token: index for index, token in enumerate((START_OF_TEXT, END_OF_TEXT, *alphabet))}
    if len(ids) + len(words) > vocabulary:
        raise InputError(
            f"text tokenizer: {vocabulary} ids cannot hold 256 bytes and {len(words)} words; use at least {len(ids) + len(words)}"
        )
    for word in words:
        ids[word] = len(ids)
    trainer = trainers.BpeTrainer(vocab_size=4 * vocabulary, initial_alphabet=alphabet, show_progress=False, min_frequency=1)
    learner.train_from_iterator(texts, trainer)
    merges = _fitting_merges(learner, ids, vocabulary)
    while len(ids) < vocabulary:
        ids[f"<|reserved{len(ids)}|>"] = len(ids)
    # ignore_merges: a whole word is one token although the merges that would spell it have no ids
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges, ignore_merges=True))
    _text_rules(tokenizer)
    tokenizer.add_special_tokens([START_OF_TEXT, END_OF_TEXT])
    write_atomically(target, tokenizer.to_str(pretty=True).encode())
    return tokenizer


def _fitting_merges(learner: Tokenizer, ids: dict[str, int], vocabulary: int) -> list[tuple[str, str]]:
    """Learned merges in order while there is room; a new piece gets the next id."""
    kept = []
    for merge in json.loads(learner.to_str())["model"]["merges"]:  # there is no other way to read them
        left, right = merge if isinstance(merge, list) else merge.split(" ")
        if left not in ids or right not in ids:
            continue
        if left + right not in ids:
            if len(ids) >= vocabulary:
                continue
            ids[left + right] = len(ids)
        kept.append((left, right))
    return kept
