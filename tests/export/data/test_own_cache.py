"""Token caches of other people's pictures: the same from every form of table, whole after any interruption, bad pictures named."""

from __future__ import annotations

import io
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from export.checkpoints.parts import PartNames
from export.data.cache_format import quantized, relative_loss
from export.data.cache_plan import CacheRequest, sizes_of
from export.data.caching import write_cache
from export.data.external.index import Index, Texts
from export.data.tokens import TokenCache
from f2edge.errors import InputError
from f2edge.spec.configuration import PAPER, SHIPPED
from tests.support.own_faces import write_faces, write_tables

COUNT, GRID = 12, SHIPPED.tokenizer.grid


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("own")
    return write_tables(folder, write_faces(folder, COUNT))


def request(data: Path, out: Path, **changes: Any) -> CacheRequest:
    base = CacheRequest(data, out, PartNames("nano", "nano"), SHIPPED, shard_rows=5, batch=4, validation=3, bf16=False)
    return replace(base, **changes)


def files(out: Path) -> dict[str, str]:
    """Checksums of all shards."""
    return {str(path.parent.name): path.read_text() for path in sorted(out.glob("shard-*/sums.json"))}


@pytest.fixture(scope="module")
def cache(forms: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> TokenCache:
    return write_cache(request(forms["jsonl"], tmp_path_factory.mktemp("tokens") / "jsonl"), report=lambda _: None)


@pytest.mark.parametrize("form", ["json", "csv", "parquet", "tar"])
def test_every_form_of_table_gives_the_same_cache(forms: dict[str, Path], cache: TokenCache, tmp_path: Path, form: str) -> None:
    out: list[str] = []
    other = write_cache(request(forms[form], tmp_path / "c"), report=out.append)
    assert files(other.directory) == files(cache.directory)
    assert np.array_equal(np.load(other.directory / "order.npy"), np.load(cache.directory / "order.npy"))
    assert "title" in out[0]
    assert "captions" in out[0]


def test_rows_carry_their_texts_and_the_split_is_at_the_end(forms: dict[str, Path], cache: TokenCache) -> None:
    rows = [json.loads(line) for line in forms["jsonl"].read_text().splitlines()]
    order = np.load(cache.directory / "order.npy")
    assert sorted(order.tolist()) == list(range(COUNT))
    assert cache.validation_rows == 3
    for row, number in enumerate(order.tolist()):
        face = cache.face(row)
        assert isinstance(face, Texts)
        assert face.captions == (rows[number]["title"],)
        assert len(face.questions) == 4
    assert cache.regions.shape == (COUNT, 12, GRID, GRID)
    assert cache.semantic[[3, 7]].dtype == np.float16


@pytest.mark.parametrize("features", ["int8", "later"])
def test_features_in_eight_bits_or_later_are_close(forms: dict[str, Path], cache: TokenCache, tmp_path: Path, features: str) -> None:
    other = write_cache(request(forms["jsonl"], tmp_path / "c", features=features), report=lambda _: None)
    wanted, found = cache.semantic[:].astype(np.float32), other.semantic[:].astype(np.float32)
    error = float(np.sqrt(((wanted - found) ** 2).mean() / (wanted**2).mean()))
    assert error < (0.01 if features == "int8" else 0.2)  # JPEG changes the pictures of the latter
    assert other.semantic.shape == cache.semantic.shape
    codes, scale = quantized(wanted)
    assert codes.dtype == np.int8
    assert scale.shape == wanted.shape[:2]
    assert relative_loss(wanted) == pytest.approx(cache.about["loss_8bit"], rel=0.05)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_run_killed_at_any_moment_is_completed_without_a_lost_or_doubled_row(
    forms: dict[str, Path], cache: TokenCache, tmp_path: Path
) -> None:
    out = tmp_path / "c"
    command = [sys.executable, "-m", "tests.export.data.cache_program", str(forms["jsonl"]), str(out), "2"]
    for moment in ("request.json", ".index*", "index.sqlite", ".shard-*", "shard-00000[12]"):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
            while run.poll() is None and not list(out.glob(moment)):
                time.sleep(0.005)
            run.send_signal(signal.SIGKILL)
    again = write_cache(request(forms["jsonl"], out, processes=1), report=lambda _: None)
    assert files(again.directory) == files(cache.directory)
    numbers = np.concatenate([np.load(path) for path in sorted(out.glob("shard-*/number.npy"))])
    assert numbers.tolist() == list(range(COUNT))
    assert not list(out.glob(".*")), "drafts of the killed"


def test_a_damaged_shard_and_another_request_are_refused(forms: dict[str, Path], cache: TokenCache, tmp_path: Path) -> None:
    out = tmp_path / "c"
    shutil.copytree(cache.directory, out)
    (out / "meta.json").unlink()
    damaged = out / "shard-000001" / "codes.npy"
    data = bytearray(damaged.read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)
    with pytest.raises(InputError, match=r"codes\.npy: is damaged; delete .*shard-000001"):
        write_cache(request(forms["jsonl"], out), report=lambda _: None)
    with pytest.raises(InputError, match="begun with another features, largest_megapixels"):
        write_cache(request(forms["jsonl"], out, features="int8", largest_megapixels=1.0), report=lambda _: None)


def _empty_file(folder: Path) -> None:
    (folder / "bad.png").write_bytes(b"")


def _text(folder: Path) -> None:
    (folder / "bad.png").write_text("no picture")


def _large(folder: Path) -> None:
    Image.new("L", (7100, 7100)).save(folder / "bad.png", compress_level=1)  # 50 megapixels


def _no_face(folder: Path) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (200, 200, 3), dtype=np.uint8)).save(folder / "bad.png")


@pytest.mark.parametrize(
    ("make", "detector", "words"),
    [
        (_empty_file, "aligned", "is empty (0 bytes)"),
        (_text, "aligned", "is not a JPEG, PNG or WebP"),
        (_large, "aligned", "7100 x 7100 pixels, more than 40 million"),
        (_no_face, "haar", "no face found by haar; if the pictures are cut to faces already, say --aligned"),
    ],
)
def test_bad_pictures_are_counted_named_and_limited(tmp_path: Path, make: Callable[[Path], None], detector: str, words: str) -> None:
    from skimage import data

    good = Image.fromarray(data.astronaut())  # type: ignore[no-untyped-call]
    rows = []
    for number, box in enumerate(((0, 0, 512, 512), (60, 0, 460, 400), (100, 0, 400, 300))):
        good.crop(box).save(tmp_path / f"{number}.png")
        rows.append({"image": f"{number}.png", "caption": f"an astronaut {number}"})
    make(tmp_path)
    rows.insert(1, {"image": "bad.png", "caption": "bad"})
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    asked = request(tmp_path / "x.jsonl", tmp_path / "c", detector=detector, validation=1, most_skipped=0)
    with pytest.raises(InputError, match="1 rows cannot be used, allowed are 0: line 2"):
        write_cache(asked, report=lambda _: None)
    assert not (asked.out / "meta.json").exists(), "nothing that could be taken for a cache"
    cache = write_cache(replace(asked, most_skipped=1), report=lambda _: None)
    (line,) = (asked.out / "skipped.jsonl").read_text().splitlines()
    assert json.loads(line)["place"] == "line 2"
    assert words in json.loads(line)["reason"]
    assert len(cache) == 3


def test_a_wrong_column_leaves_nothing_behind(forms: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--columns: no column 'nothing'"):
        write_cache(request(forms["jsonl"], tmp_path / "c", columns="image=nothing"), report=lambda _: None)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("only words")
    with pytest.raises(InputError, match="neither images"):
        write_cache(request(tmp_path / "texts", tmp_path / "c"), report=lambda _: None)
    assert not (tmp_path / "c").exists()


def test_sizes_are_known_before_it_starts(tmp_path: Path, cache: TokenCache) -> None:
    clip = sizes_of(replace(request(tmp_path, tmp_path), configuration=PAPER), 130_000)
    assert clip["semantic, fp16"] == pytest.approx(68.2e9, rel=0.01)
    assert clip["semantic, int8"] < 0.51 * clip["semantic, fp16"]
    assert clip["semantic, later"] < 0.1 * clip["semantic, fp16"]
    told = sum(v for k, v in sizes_of(request(tmp_path, tmp_path), COUNT).items() if k in {"codes", "semantic, fp16", "identity"})
    held = sum(p.stat().st_size for name in ("codes", "semantic", "identity") for p in cache.directory.glob(f"shard-*/{name}.npy"))
    assert held == pytest.approx(told, rel=0.05)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_million_rows_stream_in_flat_memory(tmp_path: Path) -> None:
    """Index of 1 M rows over 1,000 pictures, in a process whose peak memory is compared with that of 100,000 rows."""
    picture = io.BytesIO()
    Image.new("RGB", (32, 32)).save(picture, "PNG")
    for number in range(1000):
        (tmp_path / f"{number}.png").write_bytes(picture.getvalue())
    peaks = []
    for count in (100_000, 1_000_000):
        with (tmp_path / f"{count}.jsonl").open("w") as file:
            file.writelines(
                f'{{"image": "{n % 1000}.png", "question": "what is {n % 50}?", "answer": "it is {n % 50}"}}\n' for n in range(count)
            )
        data, index = tmp_path / f"{count}.jsonl", tmp_path / f"{count}.sqlite"
        program = (
            "import resource; from pathlib import Path\n"
            "from export.data.external.dataset import open_external\nfrom export.data.external.index import build_index\n"
            f"build_index(open_external({str(data)!r}), Path({str(index)!r}))\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        found = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
        peaks.append(int(found.stdout))
    assert Index(tmp_path / "1000000.sqlite").about["rows"] == 1_000_000
    assert peaks[1] < peaks[0] * 1.1


def test_a_model_without_encoders_has_no_features(forms: dict[str, Path], tmp_path: Path) -> None:
    plain = replace(SHIPPED, name="show-o", semantic=None, identity=None, sequence_experts=False)
    cache = write_cache(request(forms["csv"], tmp_path / "c", parts=PartNames("nano"), configuration=plain), report=lambda _: None)
    assert cache.semantic.shape == cache.identity.shape == (COUNT, 0, 0)
    assert cache.codes.shape == (COUNT, SHIPPED.image_tokens)
    assert cache.regions.shape == (COUNT, 0, GRID, GRID)
