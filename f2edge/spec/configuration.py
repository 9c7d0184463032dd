"""Model configuration, from the embedded nano to paper size.

Plain data, shared by training (which builds modules from it) and the runtime (which reads it from a bundle's manifest).
Axis letters used throughout the project: B batch, S text tokens, P prompt tokens, N image tokens, V codes, L layers, H heads,
D width, E experts, K experts active, I width of one expert, M feature vectors of an encoder, F width of such a vector.

>>> NANO.image_tokens, NANO.codes
(128, 4096)
>>> NANO_2.image_tokens, NANO_2.codes, NANO_2.image_columns
(512, 1024, 64)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from f2edge.errors import InputError

#: Laws by which a step draws codes; see ``ModelConfiguration.draw``.
DRAWS = ("codes", "blocks")


@dataclass(frozen=True)
class TokenExperts:
    """Token level of the mixture of experts: the FFN split into one shared and ``routed`` small experts.

    ``routed == 0`` is a plain dense FFN of width ``shared_width``: Show-o.  ``common``: one shared expert serves both task groups; else
    each group has its own.
    """

    shared_width: int
    routed: int = 0
    routed_width: int = 0
    active: int = 0
    common: bool = False

    def __post_init__(self) -> None:
        if self.routed and not (1 <= self.active <= self.routed and self.routed_width > 0):
            raise InputError(f"token experts: need 1 <= active ({self.active}) <= routed ({self.routed}) and a routed width")


@dataclass(frozen=True)
class FeatureShape:
    """Shape of an encoder's features: ``vectors`` (M) vectors of ``width`` (F) values, from square pictures of ``image_size`` pixels.

    ``image_size`` None means the image tokenizer's.
    """

    vectors: int
    width: int
    image_size: int | None = None


@dataclass(frozen=True)
class ImageTokenizerConfiguration:
    """Lookup-free-quantised convolutional tokenizer (MAGVIT-v2, arXiv 2310.05737); ``bits`` bits give ``2**bits`` codes.

    ``channels`` lists the width at full resolution, then after each halving; ``len(channels) - 1`` halvings.  ``codes_per_cell`` (ours):
    a cell of the grid is written by that many codes, one token each, cell by cell; more bits for a picture without a larger vocabulary
    and without convolutions at a finer grid.  ``patch`` (ours): side of the pixel square that the first layer takes as channels; widths at
    resolutions finer than that are the decoder's alone.  ``block`` (ours): side of the square of cells that one column of the transformer
    stands for; tokens are ordered column by column, then cell by cell.  ``mixing``: whether every cell sees the whole picture once in
    encoder and decoder.
    """

    image_size: int
    bits: int
    channels: tuple[int, ...]
    blocks: int
    family: str = "nano"  # "nano": ours, fast on CPUs; "magvit2": the published showlab/magvitv2 architecture
    codes_per_cell: int = 1
    patch: int = 2
    block: int = 1
    mixing: bool = False

    @property
    def codes_per_column(self) -> int:
        """Tokens that share one column of the transformer."""
        return self.codes_per_cell * self.block**2

    @property
    def columns(self) -> int:
        """Columns of the transformer that one image takes."""
        return (self.grid // self.block) ** 2

    @property
    def downsampling(self) -> int:
        return 1 << (len(self.channels) - 1)

    @property
    def grid(self) -> int:
        """Cells along one side."""
        return self.image_size // self.downsampling

    @property
    def tokens(self) -> int:
        """N: tokens of one image."""
        return self.grid**2 * self.codes_per_cell

    @property
    def codes(self) -> int:
        return 1 << self.bits


@dataclass(frozen=True)
class ModelConfiguration:
    """Sizes of a unified face model.

    Attributes:
        name: "nano", "1.8b", "show-o" …
        text_vocabulary: ids of the text tokenizer, ``[0, text_vocabulary)``.
        prompt_tokens: longest prompt, in text tokens, without specials.
        image_offset: rotary position of ``<|soi|>`` in a T2I sequence; prompts end just before it (Show-o: 129).
        width, layers, heads: of the transformer; ``rotary`` dims of each head are rotated, base ``rotary_base``.
        sequence_experts: whether the sequence level exists (Show-o: no).
        sequence_active: K of the sequence level, of four experts.
        sequence_scale: whether a learned scale of each channel multiplies the sequence level's residual (ours).
        resampler_width: width of the shared part of each resampler ``S``.
        semantic, identity: features of the image encoders, or None where the model has none.
        image_input: "table" embeds image codes by a table (Show-o); "bits" by a linear map of the code's bits (nano, ours: 13 rows
            instead of 8192, and codes that differ in one bit start alike).
        task_sees_image: in MMU, whether ``<|mmu|>`` sees the image behind it, as in Show-o, where every row sees all columns up to
            ``<|eoi|>``; else it is text before the image and sees itself alone.
        understanding: what stands for the picture in MMU: "codes", its tokens, or "features", the vectors of the semantic encoder through a
            projector, behind a system prompt of ``system_tokens`` tokens (Show-o with CLIP-ViT).
        query_key_norm: whether queries and keys are normalised before they are rotated: LayerNorm over a head's width, one for all heads
            of a layer (Show-o).
        draw: how a step draws one of the V codes: "codes", by a race of all, or "blocks", by a race of blocks and one within the winning
            block (:mod:`f2edge.decoding.noise`): the same distribution from far less noise, but other faces for the same seeds.
    """

    name: str
    text_vocabulary: int
    prompt_tokens: int
    image_offset: int
    width: int
    layers: int
    heads: int
    rotary: int
    token_experts: TokenExperts
    tokenizer: ImageTokenizerConfiguration
    rotary_base: float = 10000.0
    layer_norm_eps: float = 1e-5
    sequence_experts: bool = True
    sequence_active: int = 2
    sequence_scale: bool = False
    resampler_width: int = 128
    semantic: FeatureShape | None = None
    identity: FeatureShape | None = None
    image_input: str = "table"
    task_sees_image: bool = False
    query_key_norm: bool = False
    draw: str = "codes"
    understanding: str = "codes"
    system_tokens: int = 0
    specials: tuple[str, ...] = field(
        default=("<|soi|>", "<|eoi|>", "<|sov|>", "<|eov|>", "<|t2i|>", "<|mmu|>", "<|t2v|>", "<|v2v|>", "<|lvg|>", "[PAD]")
    )

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise InputError(f"configuration {self.name!r}: width {self.width} is not a multiple of heads {self.heads}")
        if self.rotary % 2 or not 0 < self.rotary <= self.head_width:
            raise InputError(f"configuration {self.name!r}: rotary {self.rotary} must be even and at most {self.head_width}")
        if self.image_offset < self.prompt_tokens + 3 and self.image_offset != 129:
            raise InputError(f"configuration {self.name!r}: image_offset must leave room for the prompt and three specials")

        if self.understanding not in {"codes", "features"} or (self.understanding == "features") != (self.system_tokens > 0):
            raise InputError(f'configuration {self.name!r}: understanding is "codes", or "features" with system_tokens above 0')
        if self.draw not in DRAWS:
            raise InputError(f"configuration {self.name!r}: unknown draw {self.draw!r}; choose one of: {', '.join(DRAWS)}")
        if self.understanding == "features" and (self.semantic is None or self.sequence_experts):
            raise InputError(f"configuration {self.name!r}: understanding by features needs semantic features and no sequence experts")

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def image_tokens(self) -> int:
        """N: tokens of one image."""
        return self.tokenizer.tokens

    @property
    def image_columns(self) -> int:
        """Columns of an image in the transformer: one per block of cells, regardless of the codes per cell."""
        return self.tokenizer.columns

    @property
    def understanding_columns(self) -> int:
        """C: columns of MMU before the question: a task token, the picture between its two marks, and the system prompt."""
        pictured = self.image_columns if self.understanding == "codes" or self.semantic is None else self.semantic.vectors
        return self.system_tokens + pictured + 3

    def absent_inputs(self, graph: str) -> frozenset[str]:
        """Return the inputs of a graph's signature that this model lacks."""
        absent = {name for name in ("semantic", "identity") if getattr(self, name) is None}
        if graph == "mmu_prefill" and self.understanding == "features":
            absent |= {"codes", "identity"}
        return frozenset(absent)

    @property
    def understanding_size(self) -> int:
        """Side in pixels of the pictures that MMU reads."""
        own = self.semantic.image_size if self.understanding == "features" and self.semantic is not None else None
        return own or self.tokenizer.image_size

    @property
    def codes(self) -> int:
        """V: image codes."""
        return self.tokenizer.codes

    @property
    def vocabulary(self) -> int:
        """Size of the vocabulary: text, specials, image codes and one mask id."""
        return self.text_vocabulary + len(self.specials) + self.codes + 1

    def to_json(self) -> dict[str, Any]:
        """Return the form stored in a bundle's manifest."""
        row = asdict(self)
        if self.draw == DRAWS[0]:
            del row["draw"]
        return row

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> ModelConfiguration:
        """Build a configuration from the form of :meth:`to_json`; unknown or missing keys raise :class:`InputError`."""
        unknown = set(row) - {f.name for f in fields(cls)}
        if unknown:
            raise InputError(f"model configuration: unknown keys {sorted(unknown)}; this bundle needs a newer f2edge")
        values = dict(row)
        try:
            tokenizer = dict(values["tokenizer"])
            tokenizer["channels"] = tuple(tokenizer["channels"])
            values["tokenizer"] = ImageTokenizerConfiguration(**tokenizer)
            values["token_experts"] = TokenExperts(**values["token_experts"])
            for name in ("semantic", "identity"):
                values[name] = None if values.get(name) is None else FeatureShape(**values[name])
            if "specials" in values:
                values["specials"] = tuple(values["specials"])
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise InputError(f"model configuration: {error}") from error


NANO = ModelConfiguration(
    name="nano",
    text_vocabulary=1024,
    prompt_tokens=96,
    image_offset=99,
    width=256,
    layers=6,
    heads=8,
    rotary=32,
    token_experts=TokenExperts(shared_width=256, routed=4, routed_width=128, active=2),
    tokenizer=ImageTokenizerConfiguration(image_size=128, bits=12, channels=(24, 48, 96, 128, 192), blocks=1, codes_per_cell=2),
    resampler_width=128,
    semantic=FeatureShape(vectors=64, width=128),
    identity=FeatureShape(vectors=1, width=64),
    image_input="bits",
)

#: 256 pixels in the columns of :data:`NANO`: a column carries four cells of two 10-bit codes, so that a step costs about what it did.
NANO_2 = replace(
    NANO,
    name="nano-2",
    draw="blocks",
    tokenizer=ImageTokenizerConfiguration(
        image_size=256, bits=10, channels=(24, 32, 48, 96, 192), blocks=1, codes_per_cell=2, patch=4, block=2, mixing=True
    ),
)

#: Configuration of the bundle within f2edge, whose name is "nano".
SHIPPED = NANO_2

_MAGVIT2 = ImageTokenizerConfiguration(image_size=256, bits=13, channels=(128, 128, 256, 256, 512), blocks=4, family="magvit2")

SHOW_O = ModelConfiguration(
    name="show-o",
    text_vocabulary=50295,
    prompt_tokens=126,
    image_offset=129,
    width=2048,
    layers=24,
    heads=32,
    rotary=32,
    token_experts=TokenExperts(shared_width=8192),
    tokenizer=_MAGVIT2,
    sequence_experts=False,
    task_sees_image=True,
    query_key_norm=True,
    specials=("[PAD]", "<|soi|>", "<|eoi|>", "<|sov|>", "<|eov|>", "<|t2i|>", "<|mmu|>", "<|t2v|>", "<|v2v|>", "<|lvg|>"),
)

PAPER = ModelConfiguration(
    name="1.8b",
    text_vocabulary=50295,
    prompt_tokens=126,
    image_offset=129,
    width=2048,
    layers=24,
    heads=32,
    rotary=32,
    token_experts=TokenExperts(shared_width=2048, routed=8, routed_width=512, active=4),
    tokenizer=_MAGVIT2,
    resampler_width=512,
    semantic=FeatureShape(vectors=256, width=1024),
    identity=FeatureShape(vectors=1, width=512),
    task_sees_image=True,
    query_key_norm=True,
    sequence_scale=True,
    specials=SHOW_O.specials,
)

#: :data:`PAPER` with Show-o's whole FFN as the shared expert of both groups: upcycled, it begins exactly as the dense model.  1.9 B.
PAPER_EXACT = replace(
    PAPER,
    name="1.8b-exact",
    token_experts=TokenExperts(shared_width=8192, routed=8, routed_width=256, active=4, common=True),
)

#: Between nano and paper size: 0.2 B for one GPU and 256 pixels, with the image tokenizer of :data:`NANO_2` and Phi's words.
SMALL = replace(
    NANO_2,
    name="small",
    text_vocabulary=50295,
    prompt_tokens=126,
    image_offset=129,
    width=768,
    layers=12,
    heads=12,
    rotary=32,
    token_experts=TokenExperts(shared_width=1024, routed=8, routed_width=256, active=4),
    resampler_width=256,
    task_sees_image=True,
    query_key_norm=True,
)

CONFIGURATIONS: Mapping[str, ModelConfiguration] = {c.name: c for c in (NANO, NANO_2, SMALL, SHOW_O, PAPER, PAPER_EXACT)}


def configuration_named(name: str) -> ModelConfiguration:
    """One of :data:`CONFIGURATIONS`; another name raises :class:`InputError` listing them."""
    if name not in CONFIGURATIONS:
        raise InputError(f"unknown configuration {name!r}; choose one of: {', '.join(CONFIGURATIONS)}")
    return CONFIGURATIONS[name]
