"""The classes of a checkout of ``github.com/showlab/Show-o``, made at any size with seeded random weights and run with our noise.

Nothing of that code is part of this project: its user names the folder, and the packages that it needs (transformers, diffusers, einops,
omegaconf, jaxtyping, typeguard, torchvision) are theirs to install.  Only chance is replaced while it runs: what it draws from PyTorch's
generator comes from :mod:`f2edge.decoding.noise`, so that tokens can be compared one by one.

Axes: B sequences, S columns, N image tokens, V image codes.
"""

from __future__ import annotations

import contextlib
import io
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from export.checkpoints.random_weights import fill
from f2edge.errors import InputError
from f2edge.spec.configuration import ModelConfiguration

#: What a head that says ids other than text gets added to their scores: random weights would answer with image codes.
_NO_TEXT = -30.0
SPECIALS = ("<|soi|>", "<|eoi|>", "<|sov|>", "<|eov|>", "<|t2i|>", "<|mmu|>", "<|t2v|>", "<|v2v|>", "<|lvg|>")

Noise = Callable[[int], tuple[Tensor, Tensor]]  # of a step: of the codes (N, V), of the confidence (N,)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """What the classes print and warn of while they are made says nothing about the comparison."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def modules_of(source: Path) -> SimpleNamespace:
    """The checkout's modules; raises :class:`InputError` where it is none or a package that it needs is missing."""
    if not (source / "models" / "modeling_showo.py").is_file():
        raise InputError(f"{source}: is no checkout of github.com/showlab/Show-o (no models/modeling_showo.py)")
    sys.path.insert(0, str(source))
    names = ("models", "models.modeling_showo", "models.sampling", "training.prompting_utils", "training.utils")
    try:
        with quietly():
            found = [import_module(name) for name in names]
    except ImportError as error:
        raise InputError(f"{source}: needs a package that is not installed ({error}); install what its requirements.txt names") from error
    return SimpleNamespace(models=found[0], showo=found[1], sampling=found[2], prompting=found[3], utils=found[4])


class Words:
    """Stands in for the text tokenizer, which is not part of the checkout: a text is its ids written as numbers."""

    def __init__(self, vocabulary: int) -> None:
        self.bos_token_id = self.eos_token_id = vocabulary - 1
        self._added: list[str] = []
        self._vocabulary = vocabulary

    def add_special_tokens(self, tokens: Mapping[str, str]) -> None:
        self._added += tokens.values()

    def add_tokens(self, tokens: Sequence[str]) -> None:
        self._added += tokens

    def convert_tokens_to_ids(self, tokens: str | list[str]) -> Any:
        one = [self._vocabulary + self._added.index(token) for token in ([tokens] if isinstance(tokens, str) else tokens)]
        return one[0] if isinstance(tokens, str) else one

    @property
    def pad_token_id(self) -> int:
        return int(self.convert_tokens_to_ids("[PAD]"))

    def __len__(self) -> int:
        return self._vocabulary + len(self._added)

    def __call__(self, texts: list[str]) -> dict[str, list[list[int]]]:
        return {"input_ids": [[int(word) for word in text.split()] for text in texts]}


@dataclass
class Published:
    """The published model at one size: its folders and what it says.

    Attributes:
        source: the checkout.
        configuration: our name for the size.
        seed: of the weights.
    """

    source: Path
    configuration: ModelConfiguration
    seed: int = 0
    code: SimpleNamespace = field(init=False)
    model: Any = field(init=False)
    tokenizer: Any = field(init=False)
    prompting: Any = field(init=False)

    def __post_init__(self) -> None:
        self.code = modules_of(self.source)
        c = self.configuration
        with quietly():
            self.prompting = self.code.prompting.UniversalPrompting(
                Words(c.text_vocabulary), special_tokens=SPECIALS, max_text_len=c.image_offset - 1
            )

    def make(self, work: Path) -> tuple[Path, Path]:
        """Make both models and save them as their own code does: the folders of Show-o and of MAGVIT-v2."""
        c = self.configuration
        phi = import_module("transformers").PhiConfig(
            vocab_size=c.vocabulary, hidden_size=c.width, intermediate_size=c.token_experts.shared_width, num_hidden_layers=c.layers,
            num_attention_heads=c.heads, partial_rotary_factor=c.rotary / c.head_width, layer_norm_eps=c.layer_norm_eps,
            rope_theta=c.rotary_base,
        )  # fmt: skip
        phi.save_pretrained(work / "phi")
        with quietly(), torch.device("meta"):
            self.model = self.code.models.Showo(
                w_clip_vit=c.understanding == "features",
                vocab_size=c.vocabulary,
                llm_vocab_size=c.text_vocabulary,
                llm_model_path=str(work / "phi"),
                codebook_size=c.codes,
                num_vq_tokens=c.image_tokens,
            )
        with quietly():
            self.tokenizer = self.code.models.MAGVITv2()
            self._materialise()
        for module, name in ((self.model, "show-o"), (self.tokenizer, "magvitv2")):
            fill(module, self.seed)
            module.eval().requires_grad_(requires_grad=False)
            if name == "show-o":
                module.showo.lm_head.bias[c.text_vocabulary :] += _NO_TEXT
            with quietly():
                module.save_pretrained(str(work / name))
        return work / "show-o", work / "magvitv2"

    def _materialise(self) -> None:
        """Give a model without memory its memory; rotary tables are no weights, so each is made anew."""
        self.model.to_empty(device="cpu")
        for module in self.model.modules():
            if hasattr(module, "_set_cos_sin_cache"):
                type(module).__init__(module, module.dim, module.max_position_embeddings, module.base)

    # Pictures from words ---------------------------------------------------------------------------------------------

    def drawing(self, prompts: Sequence[Sequence[int]], codes: Tensor) -> tuple[Tensor, Tensor]:
        """Ids (B, S) and additive mask (B, 1, S, S) of prompts with a picture's codes (N,), V where masked."""
        ids = codes + self.configuration.text_vocabulary + len(self.configuration.specials)
        texts = [" ".join(map(str, prompt)) for prompt in prompts]
        sequence, _ = self.prompting((texts, ids.expand(len(prompts), -1)), "t2i_gen")
        return sequence, self._mask(sequence)

    def _mask(self, sequence: Tensor) -> Tensor:
        special = {name: int(self.prompting.sptids_dict[f"<|{name}|>"]) for name in ("pad", "soi", "eoi")}
        mask: Tensor = self.code.prompting.create_attention_mask_predict_next(
            sequence, pad_id=special["pad"], soi_id=special["soi"], eoi_id=special["eoi"], rm_pad_in_image=True
        )
        return mask

    def image_logits(self, prompts: Sequence[Sequence[int]], codes: Tensor) -> Tensor:
        """(B, N, V), as its loop cuts them out."""
        c = self.configuration
        sequence, mask = self.drawing(prompts, codes)
        logits: Tensor = self.model(sequence, attention_mask=mask)
        return logits[:, -(c.image_tokens + 1) : -1, c.text_vocabulary + len(c.specials) : -1]

    def draw(self, prompt: Sequence[int], codes: Tensor, *, steps: int, guidance: float, noise: Noise) -> Tensor:
        """Its own loop over one picture (N,), V where masked → (N,)."""
        c = self.configuration
        ids, _ = self.drawing([prompt], codes)
        empty, _ = self.drawing([[]], codes)
        guided = guidance > 0
        settings = SimpleNamespace(
            model=SimpleNamespace(
                showo=SimpleNamespace(num_vq_tokens=c.image_tokens, num_new_special_tokens=10, llm_vocab_size=c.text_vocabulary)
            ),
            dataset=SimpleNamespace(preprocessing=SimpleNamespace(max_seq_length=c.image_offset - 1)),
        )
        with chance(self.code, noise):
            sampled: Tensor = self.model.t2i_generate(
                input_ids=ids.clone(),
                uncond_input_ids=empty if guided else None,
                attention_mask=self._mask(torch.cat((ids, empty)) if guided else ids),
                guidance_scale=guidance,
                temperature=1.0,
                timesteps=steps,
                config=settings,
            )
        return sampled[0].clamp(0, c.codes - 1)

    # Words off pictures ----------------------------------------------------------------------------------------------

    def reading(self, codes: Tensor, question: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Ids (1, S) and mask (1, 1, S, S) of a question behind a picture's codes (N,), as inference_mmu.py lays them out."""
        c, ids = self.configuration, self.prompting.sptids_dict
        image = codes + c.text_vocabulary + len(c.specials)
        parts = [ids["<|mmu|>"], ids["<|soi|>"], image, ids["<|eoi|>"], ids["<|sot|>"], torch.tensor(list(question))]
        sequence = torch.cat(parts)[None].long()
        return sequence, self.code.prompting.create_attention_mask_for_mmu(sequence, eoi_id=int(ids["<|eoi|>"]))

    def text_logits(self, codes: Tensor, question: Sequence[int]) -> Tensor:
        """Behind the last column, text vocabulary (T,)."""
        sequence, mask = self.reading(codes, question)
        logits: Tensor = self.model(sequence, attention_mask=mask)
        return logits[0, -1, : self.configuration.text_vocabulary]

    def answer(self, codes: Tensor, question: Sequence[int], longest: int) -> list[int]:
        """Its own loop, greedy (top_k 1), ended by the end of text."""
        sequence, mask = self.reading(codes, question)
        said = self.model.mmu_generate(
            sequence, attention_mask=mask, max_new_tokens=longest, top_k=1, eot_token=self.prompting.sptids_dict["<|eot|>"]
        )
        return [int(token) for token in said]

    def _reading_features(self, features: Tensor, system: Sequence[int], question: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Embeddings (1, S, D) and mask of a question behind CLIP's features (1, M, F), as inference_mmu.py lays them out."""
        ids, table = self.prompting.sptids_dict, self.model.showo.model.embed_tokens
        before = torch.cat((ids["<|mmu|>"], torch.tensor(list(system)), ids["<|soi|>"])).long()
        after = torch.cat((ids["<|eoi|>"], torch.tensor(list(question)))).long()
        x = torch.cat((table(before)[None], self.model.mm_projector(features), table(after)[None]), dim=1)
        mask = self.code.prompting.create_attention_mask_for_mmu_vit(x, system_prompt_len=len(system))
        return x, mask[0][None]

    def feature_logits(self, features: Tensor, system: Sequence[int], question: Sequence[int]) -> Tensor:
        """Behind the last column, text vocabulary (T,)."""
        x, mask = self._reading_features(features, system, question)
        logits: Tensor = self.model(None, input_embeddings=x, attention_mask=mask)
        return logits[0, -1, : self.configuration.text_vocabulary]

    def answer_by_features(self, features: Tensor, system: Sequence[int], question: Sequence[int], longest: int) -> list[int]:
        """Its own loop, greedy, ended by the end of text."""
        x, mask = self._reading_features(features, system, question)
        end = self.prompting.sptids_dict["<|eot|>"]
        with quietly():
            said = self.model.mmu_generate(input_embeddings=x, attention_mask=mask, max_new_tokens=longest, top_k=1, eot_token=end)
        return [int(token) for token in said]

    # Pictures ---------------------------------------------------------------------------------------------------------

    def pixels(self, image: Image.Image) -> Tensor:
        """(1, 3, Y, X)."""
        pixels: Tensor = self.code.utils.image_transform(image, resolution=self.configuration.tokenizer.image_size)
        return pixels[None]

    def cells(self, mask: Image.Image) -> Tensor:
        """The tokens (N,) that a mask covers, as inference_t2i.py finds them."""
        size = self.configuration.tokenizer.image_size
        shares = self.code.utils.image_transform(mask.convert("L"), resolution=size, normalize=False)[None]
        return (torch.nn.functional.interpolate(shares, size=size // 16, mode="bicubic") >= 0.5).flatten()

    def encode(self, pixels: Tensor) -> Tensor:
        """Codes (N,)."""
        codes: Tensor = self.tokenizer.get_code(pixels)
        return codes[0]

    def decode(self, codes: Tensor) -> NDArray[np.uint8]:
        """(Y, X, 3), as inference_t2i.py makes bytes of pixels."""
        pixels = torch.clamp((self.tokenizer.decode_code(codes[None]) + 1.0) / 2.0, min=0.0, max=1.0) * 255.0
        return pixels[0].permute(1, 2, 0).numpy().astype(np.uint8)


@contextlib.contextmanager
def chance(code: SimpleNamespace, noise: Noise) -> Iterator[None]:
    """Let the published loop draw from ``noise``, step by step: tokens by Gumbel's maximum instead of a multinomial draw."""
    step, drawn = -1, (torch.zeros(0), torch.zeros(0))

    def multinomial(probability: Tensor, _count: int, **_: object) -> Tensor:
        nonlocal step, drawn
        step += 1
        drawn = noise(step)
        return (probability.log() + drawn[0]).argmax(dim=-1, keepdim=True)

    def confidence(_probability: Tensor, **_: object) -> Tensor:
        return drawn[1][None]

    with (
        mock.patch.object(torch, "multinomial", multinomial),
        mock.patch.object(code.sampling, "gumbel_noise", confidence),
        torch.no_grad(),
    ):
        yield
