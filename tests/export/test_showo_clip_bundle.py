"""A small Show-o with CLIP-ViT, exported: its bundle answers through the projector, behind the system prompt, as the plain form does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch.nn import functional

from export.checkpoints import showo as showo_checkpoint
from export.checkpoints.clip_vision import MEAN, SPREAD, ClipVision, renamed
from export.defaults import SYSTEM_PROMPT
from export.export_request import ExportRequest
from export.graph.trace import Models
from export.model.magvit2 import Magvit2Tokenizer
from export.model.transformer import UnifiedTransformer
from export.onnx_export import export_models
from f2edge.imaging.laws import law_named
from f2edge.pipeline import FacePipeline
from f2edge.spec.configuration import SHOW_O, FeatureShape
from tests.support.plain_showo import PlainShowO
from tests.support.small_showo import SMALL, SMALL_TOKENIZER, show_o_state

pytestmark = pytest.mark.slow

WIDTH, LAYERS, SIDE = 128, 2, 42
SYSTEM = SYSTEM_PROMPT.split()
MODEL = replace(
    SMALL,
    text_vocabulary=60,
    layers=2,
    prompt_tokens=SHOW_O.prompt_tokens,
    image_offset=SHOW_O.image_offset,
    tokenizer=replace(SMALL_TOKENIZER, image_size=128),
    understanding="features",
    system_tokens=len(SYSTEM),
    semantic=FeatureShape(9, WIDTH, image_size=SIDE),
)
STATE = show_o_state(MODEL, seed=9)
WORDS = ["[UNK]", *sorted({*SYSTEM, "USER:", "ASSISTANT:", "what", "is", "this"})]
LAST = MODEL.text_vocabulary - 1


def clip_state() -> dict[str, Tensor]:
    """A vision tower under the published names."""
    generator = torch.Generator().manual_seed(3)
    at, shapes = "vision_model.", dict[str, tuple[int, ...]]()
    shapes |= {f"{at}embeddings.patch_embedding.weight": (WIDTH, 3, 14, 14), f"{at}embeddings.class_embedding": (WIDTH,)}
    shapes |= {f"{at}embeddings.position_embedding.weight": (10, WIDTH)}
    for name in (f"{at}pre_layrnorm", *(f"{at}encoder.layers.{i}.layer_norm{n}" for i in range(LAYERS) for n in (1, 2))):
        shapes |= {f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)}
    for i in range(LAYERS):
        of = f"{at}encoder.layers.{i}."
        linears = {f"{of}self_attn.{part}": (WIDTH, WIDTH) for part in ("q_proj", "k_proj", "v_proj", "out_proj")}
        linears |= {f"{of}mlp.fc1": (4 * WIDTH, WIDTH), f"{of}mlp.fc2": (WIDTH, 4 * WIDTH)}
        for name, shape in linears.items():
            shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    state = {
        name: torch.randn(shape, generator=generator) * (0.3 if len(shape) == 1 else shape[-1] ** -0.5) for name, shape in shapes.items()
    }
    return {name: tensor + (1.0 if "norm" in name and name.endswith("weight") else 0.0) for name, tensor in state.items()}


def plain_features(state: Mapping[str, Tensor], pixels: Tensor) -> Tensor:
    """Patches (M, F) after the last of ``LAYERS`` layers, of pixels (3, Y, X) in [-1, 1]; PyTorch's own attention."""
    at = "vision_model."
    mean, spread = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, SPREAD))
    patches = functional.conv2d((((pixels + 1) / 2 - mean) / spread)[None], state[f"{at}embeddings.patch_embedding.weight"], stride=14)
    x = (
        torch.cat((state[f"{at}embeddings.class_embedding"][None], patches[0].flatten(1).T))
        + state[f"{at}embeddings.position_embedding.weight"]
    )

    def norm(name: str, x: Tensor) -> Tensor:
        return functional.layer_norm(x, (WIDTH,), state[f"{name}.weight"], state[f"{name}.bias"])

    def linear(name: str, x: Tensor) -> Tensor:
        return functional.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    x = norm(f"{at}pre_layrnorm", x)
    for i in range(LAYERS):
        of = f"{at}encoder.layers.{i}."
        h = norm(f"{of}layer_norm1", x)
        query, key, value = (linear(f"{of}self_attn.{part}_proj", h).view(-1, WIDTH // 64, 64).transpose(0, 1) for part in "qkv")
        mixed = functional.scaled_dot_product_attention(query, key, value)
        x = x + linear(f"{of}self_attn.out_proj", mixed.transpose(0, 1).reshape(-1, WIDTH))
        hidden = linear(f"{of}mlp.fc1", norm(f"{of}layer_norm2", x))
        x = x + linear(f"{of}mlp.fc2", hidden * torch.sigmoid(1.702 * hidden))
    return x[1:]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> FacePipeline:
    root = tmp_path_factory.mktemp("clip-bundle")
    words = [*WORDS, *(f"w{i}" for i in range(LAST - len(WORDS))), "<|endoftext|>"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(root / "tokenizer.json"))
    transformer = UnifiedTransformer(MODEL)
    transformer.load_state_dict(dict(showo_checkpoint.renamed(STATE, MODEL)))
    encoder = ClipVision(WIDTH, LAYERS, SIDE)
    encoder.load_state_dict(dict(renamed(clip_state(), LAYERS)))
    torch.manual_seed(0)
    parts = Models(MODEL, transformer, Magvit2Tokenizer(MODEL.tokenizer), encoder, system_ids=(0,) * len(SYSTEM))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("export.onnx_export._LANDMARK_FACES", 1)
        bundle = export_models(parts, ExportRequest(root / "small-clip", root / "tokenizer.json", prompts=1, faces=1), "fp32")
    return FacePipeline.load(bundle, threads=1)


def test_answers_by_features_are_the_plain_ones(pipeline: FacePipeline) -> None:
    assert pipeline.bundle.layout.question_template == "USER: {question} ASSISTANT:"
    assert not pipeline.bundle.layout.question_start
    reader = PlainShowO(STATE, MODEL.layers, MODEL.heads, MODEL.rotary, MODEL.text_vocabulary, MODEL.image_tokens, MODEL.image_offset)
    system, question = ([WORDS.index(word) for word in text.split()] for text in (SYSTEM_PROMPT, "USER: what is this ASSISTANT:"))
    answers = []
    for seed in range(3):
        values = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
        image = Image.fromarray(values).resize((90, 70), Image.Resampling.NEAREST)
        pixels = law_named("show-o").pixels(image, SIDE)
        assert np.array_equal(pipeline.reading_pixels(image), pixels)
        features = plain_features(clip_state(), torch.from_numpy(pixels))
        found = pipeline.backend.run("semantic", {"pixels": pixels[None]})["features"]
        assert float((torch.from_numpy(np.asarray(found))[0] - features).abs().max()) < 1e-4
        wanted = reader.answer_by_features(features, system, question, LAST, longest=8)
        got = list(pipeline.ask(image, "what is this", max_tokens=8).tokens)
        assert got == wanted[: len(got)]
        assert wanted[len(got) :] in ([], [LAST])
        answers.append(tuple(wanted))
    assert len(set(answers)) > 1  # the picture matters
