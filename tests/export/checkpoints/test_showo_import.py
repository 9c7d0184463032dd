"""Published checkpoints from folder to folder: files of every kind are imported, damaged ones end in one line and leave nothing."""

from __future__ import annotations

import contextlib
import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from export.checkpoints import showo as showo_checkpoint
from export.checkpoints.import_showo import import_show_o, recognize
from export.checkpoints.showo import READS_FEATURES
from export.checkpoints.weight_files import TensorInfo, open_weights, write_streamed
from export.cli import run
from export.model.magvit2 import Magvit2Tokenizer
from export.model.transformer import UnifiedTransformer
from export.onnx_export import load_models
from export.training.checkpoint import load_weights
from export.training.tokenizer import load_tokenizer
from f2edge.errors import InputError, OutputError
from f2edge.spec.configuration import FeatureShape, ModelConfiguration
from tests.support.small_showo import SMALL, SMALL_TOKENIZER, Save, folders, magvit_state, save_safetensors, show_o_state


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
        f"{tokenizer}: this is no MAGVIT-v2 checkpoint: missing    decoder.up.1.upsample.conv.weight 32x32x3x3",
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
    assert len(said.err.strip().splitlines()) == 1, said.err
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
