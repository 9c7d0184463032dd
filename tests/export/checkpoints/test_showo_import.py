"""Published checkpoints as our own: exact names, the same numbers as a plain implementation, and clear refusals."""

from __future__ import annotations

import contextlib
import json
import pickle
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from export.checkpoints import magvit2 as magvit2_checkpoint
from export.checkpoints import showo as showo_checkpoint
from export.checkpoints.import_showo import import_show_o, recognize
from export.checkpoints.showo import READS_FEATURES
from export.checkpoints.weight_files import TensorInfo, open_weights, write_streamed
from export.cli import run
from export.graph.sampling import guide, sample
from export.graph.trace import Models
from export.model.image_tokenizer import bits_of
from export.model.magvit2 import Magvit2Tokenizer, decoder_blocks, encoder_blocks
from export.model.transformer import UnifiedTransformer
from export.onnx_export import load_models
from export.training.checkpoint import load_weights
from export.training.tokenizer import load_tokenizer
from export.verify.parity import TorchBackend
from f2edge.decoding.autoregressive import answer
from f2edge.decoding.noise import noise_key
from f2edge.decoding.parallel import Feeds, StepFunction, decode
from f2edge.decoding.schedule import Schedule, plan
from f2edge.errors import InputError, OutputError
from f2edge.spec.configuration import SHOW_O, FeatureShape, ImageTokenizerConfiguration, ModelConfiguration, TokenExperts
from f2edge.spec.layout import Ids, TokenLayout, left_pad
from tests.support import plain_magvit2
from tests.support.plain_showo import PlainShowO
from tests.support.reference_sampler import reference_gumbel, reference_key

SMALL_TOKENIZER = ImageTokenizerConfiguration(image_size=64, bits=5, channels=(32, 32, 64, 64, 64), blocks=2, family="magvit2")
SMALL = replace(
    SHOW_O, text_vocabulary=40, prompt_tokens=8, image_offset=11, width=32, layers=3, heads=4, rotary=4,
    token_experts=TokenExperts(64), tokenizer=SMALL_TOKENIZER,
)  # fmt: skip
N, V = 16, 32
START = END = 39
TOLERANCE = 1e-4


def show_o_state(configuration: ModelConfiguration = SMALL, *, seed: int = 0) -> dict[str, Tensor]:
    """Random weights under the published names, large enough that every part matters; ids that are no text are never the answer."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in showo_checkpoint.published_shapes(configuration).items():
        scale = 0.5 if len(shape) == 1 or "embed_tokens" in name else (0.4 if "lm_head" in name else 1.0) / shape[-1] ** 0.5
        scale = 0.1 if name == "showo.lm_head.bias" else scale
        state[name] = torch.randn(shape, generator=generator) * scale + (1.0 if "norm.weight" in name else 0.0)
    state["showo.lm_head.bias"][configuration.text_vocabulary :] -= 100.0
    return state


def magvit_state(configuration: ImageTokenizerConfiguration = SMALL_TOKENIZER) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    state = {}
    for name, shape in magvit2_checkpoint.published_shapes(configuration).items():
        scale = 0.2 if len(shape) == 1 else 1.5 / prod(shape[1:]) ** 0.5
        state[name] = torch.randn(shape, generator=generator) * scale + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
    state["quantize.embedding"] = bits_of(torch.arange(configuration.codes), configuration.bits)
    state["quantize.power_vals"] = 2 ** torch.arange(configuration.bits - 1, -1, -1)
    return state


def plain(state: Mapping[str, Tensor]) -> PlainShowO:
    return PlainShowO(state, SMALL.layers, SMALL.heads, SMALL.rotary, SMALL.text_vocabulary, N, SMALL.image_offset)


def imported(state: Mapping[str, Tensor]) -> UnifiedTransformer:
    model = UnifiedTransformer(SMALL).eval()
    model.load_state_dict(dict(showo_checkpoint.renamed(state, SMALL)))
    return model.requires_grad_(requires_grad=False)


def prefix(model: UnifiedTransformer, prompts: list[list[int]]) -> tuple[Tensor, Tensor, Tensor]:
    words = [[model.special("<|t2i|>"), START, *prompt, END] for prompt in prompts]
    ids, lengths = (torch.from_numpy(array) for array in left_pad(words, model.special("[PAD]")))
    return *model.prefill_prompt(ids, lengths), lengths


# The published sizes -------------------------------------------------------------------------------------------------


def published_tensors() -> dict[str, tuple[int, ...]]:
    """Names and shapes as the published classes have them when they are made at full size, CLIP-ViT's projector included."""
    rows = (Path(__file__).parent / "showo_tensors.txt").read_text().splitlines()
    shapes: dict[str, tuple[int, ...]] = {}
    for name, size in (row.split() for row in rows if not row.startswith("#")):
        names = [name.replace("*", str(layer)) for layer in range(24)] if "*" in name else [name]
        shapes |= dict.fromkeys(names, tuple(map(int, size.split("x"))))
    return shapes


def test_names_and_shapes_are_those_of_the_published_classes() -> None:
    ours = showo_checkpoint.published_shapes(replace(SHOW_O, **READS_FEATURES)) | magvit2_checkpoint.published_shapes(SHOW_O.tokenizer)
    assert ours == published_tensors()


@pytest.mark.parametrize("size", [256, 512])
def test_names_and_shapes_of_the_published_transformer(size: int) -> None:
    configuration = replace(SHOW_O, tokenizer=replace(SHOW_O.tokenizer, image_size=size))
    shapes = showo_checkpoint.published_shapes(configuration)
    assert len(shapes) == 437
    assert sum(prod(shape) for shape in shapes.values()) == 1_448_176_770
    assert shapes["showo.model.embed_tokens.weight"] == (58498, 2048)
    assert shapes["showo.model.layers.23.mlp.fc1.weight"] == (8192, 2048)
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    ours = {name: tuple(tensor.shape) for name, tensor in showo_checkpoint.renamed(state, configuration)}
    assert ours == showo_checkpoint.own_shapes(configuration)
    with_clip = showo_checkpoint.published_shapes(replace(configuration, **READS_FEATURES))
    assert len(with_clip) == 441
    assert with_clip["mm_projector.0.weight"] == (2048, 1024)


def test_names_and_shapes_of_the_published_tokenizer() -> None:
    shapes = magvit2_checkpoint.published_shapes(SHOW_O.tokenizer)
    assert len(shapes) == 382
    assert sum(prod(shape) for shape in shapes.values()) == 95_493_513
    assert encoder_blocks(SHOW_O.tokenizer) == plain_magvit2.ENCODER_BLOCKS
    assert decoder_blocks(SHOW_O.tokenizer) == plain_magvit2.DECODER_BLOCKS
    widening = {name.removesuffix(".nin_shortcut.weight") for name in shapes if name.endswith("nin_shortcut.weight")}
    assert widening == {"encoder.down.1.block.0", "encoder.down.3.block.0", "decoder.up.3.block.0", "decoder.up.1.block.0"}
    assert shapes["encoder.quant_conv.weight"] == (13, 13, 1, 1)
    assert shapes["decoder.conv_in.weight"] == (512, 13, 3, 3)
    assert shapes["decoder.conv_out.weight"] == (3, 128, 3, 3)


# The same numbers ----------------------------------------------------------------------------------------------------


def test_image_logits_equal_the_plain_padded_sequence() -> None:
    state = show_o_state()
    model, prompts = imported(state), [[3, 7, 1], [], [5] * 8]
    codes = torch.randint(0, V + 1, (3, N), generator=torch.Generator().manual_seed(2))
    expected = plain(state).image_logits(prompts, START, END, codes)
    got = model.image_logits(codes, *prefix(model, prompts), torch.zeros(3))
    assert float(expected.std()) > 0.3
    assert float((got - expected).abs().max()) <= TOLERANCE


def gumbel_noise(seed: int, step: int) -> tuple[Tensor, Tensor]:
    """The noise of ``f2edge.decoding.noise`` in plain numbers: codes (N, V), confidence (N,)."""
    keys = [reference_key(seed, step, n) for n in range(N)]
    table = torch.tensor([[reference_gumbel(key, code) for code in range(V + 1)] for key in keys])
    return table[:, :V], table[:, V]


def stepping(model: UnifiedTransformer, prompts: list[list[int]]) -> StepFunction:
    """One step of the imported model behind these prompts."""
    key, value, lengths = prefix(model, [*prompts, []])

    def step(feeds: Feeds, prefixes: tuple[int, ...]) -> tuple[Ids, Ids]:
        given = {name: torch.from_numpy(np.asarray(array)) for name, array in feeds.items()}
        rows = torch.tensor(prefixes) % (len(prompts) + 1)  # the empty prompt stands last
        branches = given["codes"][given["branch_row"]]
        ratio = given["mask_ratio"][given["branch_row"]]
        logits = model.image_logits(branches, key[:, rows], value[:, rows], lengths[rows], ratio)
        R = len(given["codes"])
        guided = guide(logits[:R], logits[given["unconditional_branch"]], given["guidance"])
        rest = (given[name] for name in ("codes", "token_temperature", "temperature", "noise_key", "priority", "masked_after"))
        next_codes, proposal = sample(guided, *rest)
        return next_codes.numpy(), proposal.numpy()

    return step


@pytest.mark.parametrize(("steps", "guidance"), [(5, 1.75), (8, 5.0), (1, 2.0), (6, 1.75), (12, 0.0)])
def test_pictures_are_the_plain_loops_token_for_token(steps: int, guidance: float) -> None:
    state = show_o_state()
    model = imported(state)
    prompts, seeds = [[3, 7, 1], [11, 2], [30]], [7, 8, 2**40 + 3]
    step = stepping(model, prompts)
    schedule = Schedule(steps=steps, guidance=guidance, temperature=1.0, temperature_law="show-o", mask_law="show-o")
    everything = np.ones(N, dtype=bool)
    got = decode(step, np.full((3, N), V), [plan(schedule, everything, seed) for seed in seeds], seeds)
    assert reference_key(7, 1, 2) == noise_key(7, 1, np.array([2]))[0]
    for prompt, seed, codes in zip(prompts, seeds, got, strict=True):
        noise = partial(gumbel_noise, seed)
        expected = plain(state).draw(prompt, START, END, steps=steps, guidance=guidance, temperature=1.0, noise=noise)
        assert codes.tolist() == expected.tolist()
        assert len(set(codes.tolist())) > 4  # a model that always says the same would prove nothing


@pytest.mark.parametrize("tokens", [256, 1024])
@pytest.mark.parametrize("masked", [1, 5, 100, 255, 1024])
def test_counts_are_those_of_the_published_loop(tokens: int, masked: int) -> None:
    """``max(1, min(unknown - 1, floor(N cos)))`` in single precision over the whole grid, but for the last step, which keeps everything."""
    masked = min(masked, tokens)
    for steps in (*range(1, 40), 50, 64, 100):
        unknown, counts = masked, []
        for k in range(steps):
            wanted = float((tokens * torch.cos(torch.tensor((k + 1) / steps) * torch.pi * 0.5)).floor())
            unknown = int(max(1, min(unknown - 1, wanted)))
            counts.append(unknown)
        chosen = np.arange(tokens) < masked
        found = plan(Schedule(steps=steps, mask_law="show-o"), chosen, seed=0).masked_after.tolist()
        assert found == [*counts[:-1], 0], steps


@pytest.mark.parametrize("masked", [2, 5, 9, 15])
@pytest.mark.parametrize("guidance", [0.0, 1.75])
def test_edits_are_the_plain_loops_token_for_token(masked: int, guidance: float) -> None:
    """Few masked tokens and many: the mask law is that of the whole grid, so most of an edit is decoded one by one at first."""
    state, steps, seed = show_o_state(), 8, 5
    model, known = imported(state), torch.arange(N) * 7 % V
    codes = torch.where(torch.arange(N) < masked, V, known)
    everything = codes.numpy() == V
    schedule = Schedule(steps=steps, guidance=guidance, temperature=1.0, temperature_law="show-o", mask_law="show-o")
    got = decode(stepping(model, [[3, 7, 1]]), codes.numpy()[None], [plan(schedule, everything, seed)], [seed])[0]
    expected = plain(state).draw(
        [3, 7, 1], START, END, steps=steps, guidance=guidance, temperature=1.0, noise=partial(gumbel_noise, seed), codes=codes
    )
    assert got.tolist() == expected.tolist()
    assert got[masked:].tolist() == known[masked:].tolist()


def test_answers_are_the_plain_greedy_ones_token_for_token() -> None:
    state = show_o_state(seed=1)
    model, question = imported(state), [4, 9, 2]
    codes = torch.randint(0, V, (2, N), generator=torch.Generator().manual_seed(3))
    none = torch.zeros(2, 1, 1)
    image = model.prefill_image(codes, none, none)
    text = torch.zeros(SMALL.layers, 2, SMALL.heads, 0, SMALL.head_width)
    cache, ids, said = (text, text), torch.tensor([[START, *question]] * 2), torch.zeros(2, 0, dtype=torch.long)
    for _ in range(12):
        length = torch.full((2,), cache[0].shape[3] + ids.shape[1])
        logits, *cache_now = model.extend_text(ids, length, *image, *cache)
        cache, ids = (cache_now[0], cache_now[1]), logits.argmax(dim=-1, keepdim=True)
        said = torch.cat((said, ids), dim=1)
    answers = []
    for row in range(2):
        expected = plain(state).answer(codes[row], question, START, END, longest=12)
        assert said[row, : len(expected)].tolist() == expected
        answers.append(expected)
    assert answers[0] != answers[1]  # the picture matters
    assert len(set(answers[0])) > 1


def test_the_task_token_sees_the_picture_as_published() -> None:
    """Layer by layer: the columns of ``<|mmu|>`` depend on the picture, and would not if it were text that sees only what is before it."""
    state, codes, none = show_o_state(), torch.stack((torch.zeros(N), torch.arange(N))).long(), torch.zeros(2, 1, 1)
    model = imported(state)
    key, _ = model.prefill_image(codes, none, none)  # (L, B, H, C, W)
    assert float((key[1:, 0, :, 0] - key[1:, 1, :, 0]).abs().max()) > 0.01
    alone = UnifiedTransformer(replace(SMALL, task_sees_image=False)).eval()
    alone.load_state_dict(model.state_dict())
    key, _ = alone.prefill_image(codes, none, none)
    assert torch.equal(key[:, 0, :, 0], key[:, 1, :, 0])


def test_answers_by_features_are_the_plain_greedy_ones_token_for_token() -> None:
    """A system prompt, then an encoder's vectors through the projector, which every row sees; the question without its start."""
    configuration = replace(SMALL, understanding="features", system_tokens=4, semantic=FeatureShape(9, 16, image_size=28))
    state, system, question = show_o_state(configuration, seed=9), [8, 1, 30, 2], [4, 9, 2]
    model = UnifiedTransformer(configuration).eval().requires_grad_(requires_grad=False)
    model.load_state_dict(dict(showo_checkpoint.renamed(state, configuration)))
    models, answers = Models(configuration, model, system_ids=tuple(system)), []
    layout = TokenLayout.of(configuration, START, END)
    for features in 8 * torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(3)):
        image = TorchBackend(models).run("mmu_prefill", {"semantic": features[None].numpy()})
        empty = np.zeros((SMALL.layers, 1, SMALL.heads, 0, SMALL.head_width), dtype=np.float32)

        def extend(text: Ids, lengths: Ids, cache: Any, image: Any = image) -> Any:
            feeds = {"text_ids": text, "text_lengths": lengths, **image, "text_key": cache[0], "text_value": cache[1]}
            outputs = TorchBackend(models).run("mmu_extend", feeds)
            return outputs["logits"], (outputs["next_text_key"], outputs["next_text_value"])

        ids, lengths = left_pad([layout.question(question)], layout.pad)
        assert ids.tolist() == [question]
        (said,) = answer(extend, (empty, empty), ids, lengths, end_of_text=END, max_tokens=10)
        expected = plain(state).answer_by_features(features, system, question, END, longest=10)
        assert [*said, END][: len(expected)] == expected
        answers.append(expected)
    assert answers[0] != answers[1]  # the picture matters


def test_answer_logits_equal_the_plain_sequence_in_training_form() -> None:
    state, none = show_o_state(seed=1), torch.zeros(2, 1, 1)
    codes = torch.randint(0, V, (2, N), generator=torch.Generator().manual_seed(5))
    model, reader, text = imported(state), plain(state), torch.tensor([[START, 4, 9, 2]] * 2)
    hidden, _ = model.understanding_states(codes, none, none, text, torch.arange(4).expand(2, 4), torch.zeros(2, 4, dtype=torch.long))
    ends = torch.tensor([[reader.mmu, reader.soi, reader.eoi]] * 2)
    ids = torch.cat((ends[:, :2], codes + reader.first_code, ends[:, 2:], text), dim=1)
    column = torch.arange(ids.shape[1])
    allowed = (column[None, :] <= column[:, None]) | (column[None, :] <= N + 2)
    expected = reader.logits(ids, allowed[None])[:, -4:, : SMALL.text_vocabulary]
    assert float((model.text_scores(hidden) - expected).abs().max()) <= TOLERANCE


def test_codes_and_pixels_equal_the_plain_tokenizer() -> None:
    state = magvit_state()
    tokenizer = Magvit2Tokenizer(SMALL_TOKENIZER).eval().requires_grad_(requires_grad=False)
    tokenizer.load_state_dict(dict(magvit2_checkpoint.renamed(state)))
    pixels = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(4)) * 2 - 1
    codes = tokenizer.encode(pixels)
    expected = plain_magvit2.encoded(state, pixels, encoder_blocks(SMALL_TOKENIZER))
    assert codes.shape == (3, N)
    assert codes.dtype == torch.int64
    assert codes.tolist() == expected.tolist()
    assert len(set(codes.flatten().tolist())) > 4
    drawn = plain_magvit2.decoded(state, expected, 4, decoder_blocks(SMALL_TOKENIZER))
    assert float(drawn.std()) > 0.1
    assert float((tokenizer.decode(codes) - drawn.clamp(-1, 1)).abs().max()) <= TOLERANCE


# From folder to folder -----------------------------------------------------------------------------------------------

Save = Callable[[Path, dict[str, Tensor]], None]


def save_safetensors(folder: Path, state: dict[str, Tensor]) -> None:
    save_file(state, folder / "pytorch_model.safetensors")


def save_bin(folder: Path, state: dict[str, Tensor]) -> None:
    torch.save(state, folder / "pytorch_model.bin")


def save_shards(folder: Path, state: dict[str, Tensor]) -> None:
    names = sorted(state)
    places: dict[str, str] = {}
    for part in range(2):
        own = names[part::2]
        save_file({name: state[name] for name in own}, folder / f"part-{part}.safetensors")
        places |= dict.fromkeys(own, f"part-{part}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def folders(
    tmp_path: Path, state: dict[str, Tensor], magvit: dict[str, Tensor], save: Save = save_safetensors, **config: Any
) -> tuple[Path, Path]:
    rows = {
        "show-o": {"_class_name": "Showo", "vocab_size": 83, "llm_vocab_size": 40, "codebook_size": 32, "num_vq_tokens": N, **config},
        "magvitv2": {"_class_name": "MAGVITv2"},
    }
    for (name, row), tensors in zip(rows.items(), (state, magvit), strict=True):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(row))
        save(tmp_path / name, tensors)
    return tmp_path / "show-o", tmp_path / "magvitv2"


@pytest.mark.parametrize("save", [save_safetensors, save_bin, save_shards])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_import_writes_checkpoints_that_load(tmp_path: Path, save: Save, dtype: torch.dtype) -> None:
    with_clip = replace(SMALL, **READS_FEATURES)
    state = {name: tensor.to(dtype) for name, tensor in show_o_state(with_clip).items()}
    magvit, lines = magvit_state(), list[str]()
    showo, tokenizer = folders(tmp_path, state, magvit, save, w_clip_vit=True)
    out = tmp_path / "out"
    assert import_show_o(showo, tokenizer, out, dry_run=True, base=SMALL, progress=lines.append) == []
    assert not out.exists()
    assert "(63 tensors)" in lines[0]
    written = import_show_o(showo, tokenizer, out, base=SMALL, progress=lines.append)
    assert [file.name for file in written] == ["unified.safetensors", "tokenizer.safetensors"]
    assert sorted(file.name for file in out.iterdir()) == sorted(file.name for file in written)
    assert load_file(out / "unified.safetensors")["text_head.weight"].dtype == dtype
    model = UnifiedTransformer(with_clip)
    metadata = load_weights(out / "unified.safetensors", model)
    assert ModelConfiguration.from_json(json.loads(metadata["configuration"])) == with_clip
    for name, tensor in showo_checkpoint.renamed(state, with_clip):
        assert torch.equal(model.state_dict()[name], tensor.float()), name
    loaded = load_tokenizer(out)
    assert loaded.configuration == SMALL_TOKENIZER
    assert torch.equal(loaded.state_dict()["encoder.conv_in.weight"], magvit["encoder.conv_in.weight"])
    assert torch.equal(model.state_dict()["projector.2.bias"], state["mm_projector.2.bias"].float())


def test_the_exporter_reads_what_was_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = show_o_state()
    showo, magvit = folders(tmp_path, state, magvit_state())
    import_show_o(showo, magvit, tmp_path / "out", base=SMALL, progress=lambda _: None)
    known = {"show-o": SMALL, "encoded": replace(SMALL, semantic=FeatureShape(1, 8))}
    monkeypatch.setattr("export.onnx_export.configuration_named", known.__getitem__)
    models = load_models(tmp_path / "out", tmp_path / "out", None, "show-o")
    assert models.configuration == SMALL
    assert models.transformer is not None
    assert torch.equal(models.transformer.embedding.text.weight, state["showo.model.embed_tokens.weight"][:50])
    assert isinstance(models.image_tokenizer, Magvit2Tokenizer)
    assert set(models.graphs) == {"t2i_prefill", "t2i_step", "mmu_prefill", "mmu_extend", "image_encode", "image_decode"}
    with pytest.raises(InputError, match="--encoders FOLDER"):
        load_models(tmp_path / "out", tmp_path / "out", None, "encoded")
    (tmp_path / "out" / "unified.safetensors").write_bytes(b"half a file")
    with pytest.raises(InputError, match="missing or damaged"):
        load_models(tmp_path / "out", tmp_path / "out", None, "show-o")


def test_a_shortened_checkpoint_is_exported_with_its_own_layers(tmp_path: Path) -> None:
    short = replace(SMALL, layers=1)
    showo, magvit = folders(tmp_path, show_o_state(short), magvit_state())
    import_show_o(showo, magvit, tmp_path / "out", base=short, progress=lambda _: None)
    assert load_models(tmp_path / "out", tmp_path / "out", None, "show-o").configuration == short


def test_the_size_comes_from_the_configuration_or_is_asked_for(tmp_path: Path) -> None:
    showo, magvit = folders(tmp_path, show_o_state(), magvit_state(), num_vq_tokens=64)
    assert recognize(showo, magvit, base=SMALL).configuration.tokenizer.image_size == 128
    assert recognize(showo, magvit, size=128, base=SMALL).configuration.tokenizer.image_size == 128
    (showo / "config.json").unlink()
    with pytest.raises(InputError, match="give --size 256 or --size 512"):
        recognize(showo, magvit, base=SMALL)
    assert recognize(showo, magvit, size=64, base=SMALL).configuration == SMALL
    with pytest.raises(InputError, match="multiple of 16"):
        recognize(showo, magvit, size=70, base=SMALL)


def test_every_difference_is_listed_in_one_error(tmp_path: Path) -> None:
    state, magvit = show_o_state(), magvit_state()
    del state["showo.model.layers.1.mlp.fc2.bias"]
    state["showo.model.layers.3.mlp.fc2.bias"] = torch.zeros(32)
    state["showo.model.layers.0.mlp.fc1.weight"] = torch.zeros(60, 32)
    state["showo.model.final_layernorm.bias"] = torch.zeros(32, dtype=torch.int64)
    del magvit["decoder.up.1.upsample.conv.weight"]
    showo, tokenizer = folders(tmp_path, state, magvit, vocab_size=99)
    with pytest.raises(InputError) as caught:
        import_show_o(showo, tokenizer, tmp_path / "out", base=SMALL)
    said = str(caught.value)
    for line in (
        f"{showo}: this is no Show-o checkpoint (5 differences)",
        "config.json: vocab_size is 99, must be 83",
        "missing    showo.model.layers.1.mlp.fc2.bias 32",
        "unexpected showo.model.layers.3.mlp.fc2.bias 32",
        "misshapen  showo.model.layers.0.mlp.fc1.weight is 60x32, must be 64x32",
        "not float  showo.model.final_layernorm.bias is torch.int64",
        f"{tokenizer}: this is no MAGVIT-v2 checkpoint (1 differences)",
        "missing    decoder.up.1.upsample.conv.weight 32x32x3x3",
    ):
        assert line in said
    assert not (tmp_path / "out").exists()


def test_a_size_that_contradicts_the_configuration_is_refused(tmp_path: Path) -> None:
    showo, magvit = folders(tmp_path, show_o_state(), magvit_state(), num_vq_tokens=64)
    with pytest.raises(InputError, match=r"--size 64: .*config\.json says 64 tokens, which is 128 pixels"):
        recognize(showo, magvit, size=64, base=SMALL)


def test_exchanged_folders_are_named_as_such(tmp_path: Path) -> None:
    showo, magvit = folders(tmp_path, show_o_state(), magvit_state())
    for first, second, complaint in ((magvit, showo, "swapped"), (showo, showo, "holds Show-o"), (magvit, magvit, "holds MAGVIT-v2")):
        with pytest.raises(InputError, match=complaint) as caught:
            recognize(first, second, size=64, base=SMALL)
        assert "\n" not in str(caught.value)


def test_a_failure_while_writing_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    showo, magvit = folders(tmp_path, show_o_state(), magvit_state())
    disk_usage = shutil.disk_usage
    sizes = iter((2**40, 0))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: disk_usage(path)._replace(free=next(sizes)))
    with pytest.raises(OutputError, match="MiB free"):
        import_show_o(showo, magvit, tmp_path / "out", base=SMALL, progress=lambda _: None)
    assert not (tmp_path / "out").exists()


def broken_bin(folder: Path, _state: dict[str, Tensor]) -> None:
    """A file that would run code."""
    torch.save({"showo.lm_head.weight": Poison(folder.parent / "touched")}, folder / "pytorch_model.bin")


def truncated(save: Save) -> Save:
    def write(folder: Path, state: dict[str, Tensor]) -> None:
        save(folder, state)
        for file in (*folder.glob("*.safetensors"), *folder.glob("*.bin")):
            file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])

    return write


def without(name: str) -> Callable[[dict[str, Tensor]], None]:
    return lambda state: state.__delitem__(name)


def spoilt(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], None]:
    return lambda state: state.__setitem__(name, change(state[name]))


NORM, CODES = "showo.model.layers.1.self_attn.q_layernorm.weight", "quantize.embedding"


@pytest.mark.parametrize(
    ("damage", "save", "complaint"),
    [
        (without(NORM), save_safetensors, f"missing    {NORM} 8"),
        (lambda state: state.__setitem__("showo.more", torch.zeros(2)), save_safetensors, "unexpected showo.more 2"),
        (spoilt(NORM, lambda tensor: tensor[:7]), save_safetensors, f"misshapen  {NORM} is 7, must be 8"),
        (spoilt(NORM, lambda tensor: tensor * torch.nan), save_safetensors, f"NaN or infinite values in {NORM} (8 of 8)"),
        (spoilt(NORM, lambda tensor: tensor / 0), save_bin, f"NaN or infinite values in {NORM} (8 of 8)"),
        (spoilt(CODES, lambda tensor: tensor.flip(1)), save_safetensors, f"{CODES} orders its codes differently"),
        (spoilt("encoder.conv_in.bias", lambda tensor: tensor / 0), save_safetensors, "NaN or infinite values in encoder.conv_in.bias"),
        (lambda _: None, truncated(save_safetensors), "cannot be read as safetensors"),
        (lambda _: None, truncated(save_shards), "cannot be read as safetensors"),
        (lambda _: None, truncated(save_bin), "cannot be read as PyTorch weights"),
        (lambda _: None, broken_bin, "would run code"),
    ],
)
def test_damaged_checkpoints_end_in_one_line_and_leave_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *,
    damage: Callable[[dict[str, Tensor]], None],
    save: Save,
    complaint: str,
) -> None:
    monkeypatch.setattr("export.checkpoints.random_weights.CONFIGURATIONS", {"show-o": SMALL})
    both = show_o_state() | magvit_state()
    names = set(show_o_state())
    with contextlib.suppress(KeyError):
        damage(both)
    state = {name: tensor for name, tensor in both.items() if name in names or name.startswith("showo.")}
    showo, magvit = folders(tmp_path, state, {name: tensor for name, tensor in both.items() if name not in state}, save)
    code = run(["import-showo", "--showo", str(showo), "--magvit", str(magvit), "--out", str(tmp_path / "out")])
    said = capsys.readouterr()
    assert code == 2
    assert complaint in said.err
    assert not said.out
    lines = said.err.strip().splitlines()
    assert len(lines) <= 2, lines  # a heading and its one difference, or one line
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "touched").exists()


class Poison:
    """What a hostile .bin holds: code that runs when it is unpickled."""

    def __init__(self, touched: Path) -> None:
        self.touched = touched

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.touched,))


def test_pickles_are_not_executed(tmp_path: Path) -> None:
    file, touched = tmp_path / "pytorch_model.bin", tmp_path / "touched"
    torch.save({"a": Poison(touched)}, file)
    with pytest.raises(InputError, match="would run code"):
        open_weights(tmp_path)
    file.write_bytes(pickle.dumps({"a": Poison(touched)}))
    with pytest.raises(InputError):
        open_weights(tmp_path)
    assert not touched.exists()
    torch.save({"a": {"b": torch.zeros(1)}}, file)
    with pytest.raises(InputError, match="not a plain table"):
        open_weights(tmp_path)


def test_damaged_and_absent_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        open_weights(tmp_path / "nowhere")
    (tmp_path / "readme.txt").write_text("hello")
    with pytest.raises(InputError, match=r"found readme\.txt"):
        open_weights(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}))
    save_file({"a": torch.zeros(1)}, tmp_path / "one.safetensors")
    with pytest.raises(InputError, match=r"1 of 2 shards are missing: two\.safetensors"):
        open_weights(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "../one.safetensors"}}))
    with pytest.raises(InputError, match="plain file names"):
        open_weights(tmp_path)
    (tmp_path / "pytorch_model.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(InputError, match="Git LFS pointer"):
        open_weights(tmp_path)


def test_interrupted_writing_leaves_nothing(tmp_path: Path) -> None:
    infos = {name: TensorInfo((2, 3), torch.float32) for name in ("a", "b")}

    def broken() -> Any:
        yield "a", torch.ones(2, 3)
        raise InputError("the source ends here")

    with pytest.raises(InputError, match="ends here"):
        write_streamed(tmp_path / "x.safetensors", infos, broken(), {})
    with pytest.raises(InputError, match="never came, b among them"):
        write_streamed(tmp_path / "x.safetensors", infos, [("a", torch.ones(2, 3))], {})
    with pytest.raises(InputError, match="b 3x2 has no place"):
        write_streamed(tmp_path / "x.safetensors", infos, [("b", torch.ones(3, 2))], {})
    huge = {"a": TensorInfo((1 << 50,), torch.float32)}
    with pytest.raises(OutputError, match="MiB free"):
        write_streamed(tmp_path / "x.safetensors", huge, [], {})
    assert list(tmp_path.iterdir()) == []


def test_command_refuses_a_wrong_folder_in_plain_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    showo, magvit = folders(tmp_path, show_o_state(), magvit_state(), num_vq_tokens=256)
    code = run(["import-showo", "--showo", str(showo), "--magvit", str(magvit), "--out", str(tmp_path / "out"), "--dry-run"])
    said = capsys.readouterr().err
    assert code == 2
    assert "vocab_size is 83, must be 58498" in said
    assert "misshapen  showo.lm_head.bias is 83, must be 58498" in said
