"""Fake model: every graph of the contract in a few lines of NumPy, and a bundle around it.

Its caches hold the very token ids, so that each graph can see whether the runtime hands it what it should; what it says is a
pseudo-random function of that.  A cell's two tokens are the high and the low half of its mean brightness,
so encoding and decoding is exact.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from f2edge.backends.base import Array, Sequential, Value, host, pack_arrays
from f2edge.bundle.bundle import Bundle, write_manifest
from f2edge.spec.configuration import NANO
from f2edge.spec.layout import TokenLayout
from tests.support.bundle_document import document, write_folder
from tests.support.reference_sampler import reference_step

#: 8 x 8 tokens of 16 codes.
MODEL = replace(NANO, name="paper", width=8, heads=2, layers=1, rotary=4, tokenizer=replace(NANO.tokenizer, bits=4))
START, END = 0, 1


def paper_bundle(folder: Path, generation: Mapping[str, Any] | None = None, faces: str = "drawn") -> Bundle:
    """A bundle whose graphs are never opened, with a byte-level tokenizer."""
    write_folder(folder)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<|startoftext|>", "<|endoftext|>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|startoftext|>", "<|endoftext|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    defaults = {"steps": 4, "guidance": 2.0, "temperature_law": "linear", "temperature": 2.0, "order": "maskgit"}
    smoke = {**document()["smoke"], "codes": [5] * MODEL.image_tokens}
    row = {**document(), "model": MODEL.to_json(), "layout": TokenLayout.of(MODEL, START, END).to_json(), "smoke": smoke}
    texts = {"describe_question": "describe it", "faces": faces}
    write_manifest(folder, {**row, "generation": {**defaults, **(generation or {})}, **texts})
    return Bundle.load(folder)


def opinion(count: int, *seen: object) -> NDArray[np.float64]:
    """Logits (count,) that are a function of ``seen``."""
    words = np.frombuffer(repr(seen).encode().ljust(4 * -(-len(repr(seen).encode()) // 4)), dtype=np.uint32)
    return np.random.default_rng(words).normal(size=count) * 2


class PaperBackend(Sequential):
    """Runs the paper model; ``runs`` counts the graphs."""

    name = "paper"

    def __init__(self) -> None:
        self.runs: Counter[str] = Counter()

    def pack(self, caches: Sequence[Value]) -> Array:
        return pack_arrays([host(c) for c in caches])

    def run(self, graph: str, feeds: Mapping[str, Value]) -> dict[str, Value]:
        self.runs[graph] += 1
        return getattr(self, graph)(**{name: host(value) for name, value in feeds.items()})  # type: ignore[no-any-return]

    def t2i_prefill(self, prompt_ids: Array, prompt_lengths: Array) -> dict[str, Array]:
        assert (prompt_lengths <= prompt_ids.shape[1]).all()
        return dict.fromkeys(("prefix_key", "prefix_value"), _cache(prompt_ids))

    def t2i_step(self, prefix_key: Array, prefix_value: Array, prefix_lengths: Array, **feeds: Array) -> dict[str, Array]:
        assert np.array_equal(prefix_key, prefix_value)
        logits = []
        for branch, row in enumerate(feeds["branch_row"]):
            prompt = prefix_key[0, branch, 0, prefix_key.shape[3] - prefix_lengths[branch] :, 0].astype(int).tolist()
            seen = feeds["codes"][row].tolist()
            logits.append(opinion(MODEL.image_tokens * MODEL.codes, prompt, seen).reshape(MODEL.image_tokens, MODEL.codes))
        next_codes, proposal = reference_step(np.stack(logits), feeds)
        return {"next_codes": next_codes, "proposal": proposal}

    def image_encode(self, pixels: Array) -> dict[str, Array]:
        assert pixels.shape[1:] == (3, 128, 128)
        assert np.abs(pixels).max() <= 1
        cells = pixels.reshape(len(pixels), 3, 8, 16, 8, 16).mean(axis=(1, 3, 5))
        brightness = np.rint((cells + 1) * 127.5).astype(np.int64).reshape(len(pixels), 64)
        return {"codes": np.stack([brightness // 16, brightness % 16], axis=-1).reshape(len(pixels), 128)}

    def image_decode(self, codes: Array) -> dict[str, Array]:
        cells = ((codes.reshape(-1, 1, 8, 8, 2) @ np.array([16, 1])) / 127.5 - 1).astype(np.float32)
        return {"pixels": np.kron(cells, np.ones((1, 3, 16, 16), dtype=np.float32))}

    def semantic(self, pixels: Array) -> dict[str, Array]:
        return {"features": np.zeros((len(pixels), 64, 128), dtype=np.float32)}

    def identity(self, pixels: Array) -> dict[str, Array]:
        return {"features": np.zeros((len(pixels), 1, 64), dtype=np.float32)}

    def regions(self, pixels: Array) -> dict[str, Array]:
        """Hair is the two top rows of cells; there are no eyes."""
        coverage = np.zeros((len(pixels), 2, 8, 8), dtype=np.float32)
        coverage[:, 0, :2] = 1.0
        return {"coverage": coverage}

    def mmu_prefill(self, codes: Array, semantic: Array, identity: Array) -> dict[str, Array]:
        assert semantic.shape == (len(codes), 64, 128)
        assert identity.shape == (len(codes), 1, 64)
        return dict.fromkeys(("image_key", "image_value"), _cache(np.pad(codes, ((0, 0), (2, 1)))))

    def mmu_extend(self, *, image_key: Array, image_value: Array, text_key: Array, text_value: Array, **text: Array) -> dict[str, Array]:
        text_ids, text_lengths = text["text_ids"], text["text_lengths"]
        assert np.array_equal(image_key, image_value)
        assert np.array_equal(text_key, text_value)
        assert image_key.shape[1] in (1, len(text_ids))
        key = np.concatenate([text_key, _cache(text_ids)], axis=3)
        images = np.broadcast_to(image_key, (1, len(text_ids), *image_key.shape[2:]))[0, :, 0, 2:-1, 0].astype(int).tolist()
        texts = [key[0, row, 0, key.shape[3] - length :, 0].astype(int).tolist() for row, length in enumerate(text_lengths)]
        ends = [len(text_ids[0]) + 1 + column for column in text.get("scored", np.array([-1])).tolist()]
        every = [
            [text_logits(image, words[: len(words) - len(text_ids[0]) + end]) for end in ends]
            for image, words in zip(images, texts, strict=True)
        ]
        logits = np.array(every) if "scored" in text else np.array(every)[:, 0]
        return {"logits": logits, "next_text_key": key, "next_text_value": key}


def text_logits(image: list[int], text: list[int]) -> NDArray[np.float32]:
    """What the model thinks of the next token behind a face's codes and a text; bytes beyond ASCII it never writes."""
    logits = opinion(MODEL.text_vocabulary, image, text).astype(np.float32)
    logits[100:] = -10.0
    logits[START] = -10.0
    logits[END] += 2.0
    return logits


def _cache(ids: Array) -> NDArray[np.float32]:
    """Ids (B, P) as keys (1, B, 2, P, 4)."""
    return np.broadcast_to(ids[None, :, None, :, None], (1, len(ids), 2, ids.shape[1], 4)).astype(np.float32)
