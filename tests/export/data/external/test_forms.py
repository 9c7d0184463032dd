"""Tars, streamed JSON, overruled columns, the index and the schema, on files written by other tools than ours."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image

from export.data.external.columns import parse_columns
from export.data.external.dataset import ExternalDataset, ExternalRow, open_external
from export.data.external.index import Index, build_index
from export.data.external.schema import read_vocabulary
from f2edge.errors import InputError


def png(number: int) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (32, 32), (number * 20 % 256, 90, 10)).save(data, "PNG")
    return data.getvalue()


def pictures(folder: Path, count: int) -> list[str]:
    for number in range(count):
        (folder / f"{number}.png").write_bytes(png(number))
    return [f"{number}.png" for number in range(count)]


def usable(dataset: ExternalDataset) -> list[ExternalRow]:
    return [row for _, row in dataset.rows() if isinstance(row, ExternalRow)]


def test_shards_of_webdataset_are_read_in_place(tmp_path: Path) -> None:
    for shard in range(2):
        with webdataset.TarWriter(str(tmp_path / f"{shard:04d}.tar")) as sink:
            for number in range(3):
                talk = [{"from": "human", "value": "hat?"}, {"from": "gpt", "value": f"no {number}"}]
                row = {"conversations": talk, "image": "elsewhere.jpg"}
                sink.write({"__key__": f"s{shard}/{number}", "png": png(3 * shard + number), "txt": f"face {number}", "json": row})
    dataset = open_external(tmp_path)
    assert {c.name: c.role for c in dataset.columns} == {
        "__key__": "id", "image": "image", "caption": "captions", "conversations": "conversation"
    }  # fmt: skip
    rows = usable(dataset)
    assert [row.captions for row in rows] == [(f"face {n}",) for n in (0, 1, 2, 0, 1, 2)]
    assert rows[4].questions == (("hat?", "no 1"),)
    assert [e.image.getpixel((0, 0)) for e in dataset] == [(n * 20, 90, 10) for n in range(6)]


def test_a_compressed_and_a_cut_tar_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("x.txt"))
    with pytest.raises(InputError, match=r"a\.tar: no readable tar .* gunzip"):
        open_external(tmp_path / "a.tar")


def test_a_list_of_json_is_streamed(tmp_path: Path) -> None:
    (name,) = pictures(tmp_path, 1)
    good = json.dumps({"image": name, "caption": "a face " * 1000})
    (tmp_path / "x.json").write_text(f"[{', '.join([good] * 60)}, {{broken")  # a reader of whole files would give nothing
    rows = open_external(tmp_path / "x.json").rows()
    assert [place for place, _ in (next(rows), next(rows))] == ["entry 1", "entry 2"]
    with pytest.raises(InputError, match="not valid JSON"):
        list(rows)


def test_columns_overrule_the_guess(tmp_path: Path) -> None:
    a, b = pictures(tmp_path, 2)
    row = {"image": a, "other": b, "caption": "wrong", "notes": "right"}
    (tmp_path / "x.jsonl").write_text(json.dumps(row))
    dataset = open_external(tmp_path / "x.jsonl", columns=parse_columns("image=other,captions=notes"))
    (found,) = usable(dataset)
    assert (found.source, found.captions) == (tmp_path / b, ("right",))
    assert "caption  ignored: --columns names another for captions" in dataset.explain()
    for text, words in (
        ("image=gone", "no column 'gone'; found: image, other"),
        ("painting=image", "no role 'painting'"),
        ("image", "ROLE=COLUMN"),
    ):
        with pytest.raises(InputError, match=words):
            open_external(tmp_path / "x.jsonl", columns=parse_columns(text))


def indexed(folder: Path, rows: list[dict[str, Any]], **options: Any) -> Index:
    (folder / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return build_index(open_external(folder / "x.jsonl"), folder / "index.sqlite", **options)


def test_rows_of_one_picture_come_together_and_ids_are_unique(tmp_path: Path) -> None:
    a, b, c = pictures(tmp_path, 3)
    index = indexed(
        tmp_path,
        [
            {"id": 7, "image": a, "caption": "one"},
            {"id": 8, "image": b, "caption": "two"},
            {"id": 7, "image": a, "caption": ["one", "another"]},
            {"id": 8, "image": c, "caption": "of another picture"},
        ],
    )
    assert [(e.number, e.place, e.texts.captions) for e in index.entries(0, 9)] == [
        (0, "line 1", ("one", "another")),
        (1, "line 2", ("two",)),
    ]
    assert list(index.skipped()) == [("line 4", "id '8' was given to another picture before (line 2)")]
    assert index.about == {"rows": 4, "pictures": 2, "joined": 1, "skipped": 1}


def test_too_many_bad_rows_leave_no_index(tmp_path: Path) -> None:
    (a,) = pictures(tmp_path, 1)
    rows = [{"image": a, "caption": "x"}, {"image": a, "caption": ""}, {"image": "gone.png", "caption": "x"}]
    with pytest.raises(InputError, match=r"2 of the first 3 rows.*line 2: neither a caption.*line 3: image 'gone.png'.*--most-skipped"):
        indexed(tmp_path, rows, most_skipped=1)
    assert not list(tmp_path.glob("*index*"))


SCHEMA = {"slots": [
    {"name": "hair_color", "values": ["black", "light_brown"], "question": "hair?", "words": {"light_brown": ["sandy", "Fair"]}},
    {"name": "hat", "values": ["no", "yes"], "question": "hat?", "sensitive": True},
]}  # fmt: skip


def test_a_schema_reads_slots_and_counts_other_words(tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    vocabulary = read_vocabulary(tmp_path / "schema.json")
    (a,) = pictures(tmp_path, 1)
    rows = [
        {"image": a, "hair_color": "Light Brown", "hat": "yes"},
        {"image": a, "hair_color": "fair", "hat": None},
        {"image": a, "hair_color": "teal", "hat": "no"},
    ]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    dataset = open_external(tmp_path / "x.jsonl", vocabulary=vocabulary)
    assert [row.slots for row in usable(dataset)] == [
        {"hair_color": "light_brown", "hat": "yes"},
        {"hair_color": "light_brown"},
        {"hat": "no"},
    ]
    assert vocabulary.unknown == {"hair_color=teal": 1}
    assert vocabulary.schema["hat"].sensitive
    (tmp_path / "y.jsonl").write_text(json.dumps({"image": a, "caption": "x"}))
    with pytest.raises(InputError, match=r"no column is named as one of its slots \(hair_color, hat\); found: image, caption"):
        open_external(tmp_path / "y.jsonl", vocabulary=vocabulary)


@pytest.mark.parametrize("text", ["{", "{}", '{"slots": [{"name": "x", "values": ["only"], "question": "?"}]}', '[{"name": "x"}]'])
def test_a_damaged_schema_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "schema.json").write_text(text)
    with pytest.raises(InputError, match=r"schema .*schema\.json: "):
        read_vocabulary(tmp_path / "schema.json")


def test_parquet_of_many_groups_is_read_by_cell(tmp_path: Path) -> None:
    import pandas as pd

    table = pd.DataFrame({"bild": [png(n) for n in range(7)], "caption": [f"face {n}" for n in range(7)]})
    table.to_parquet(tmp_path / "x.parquet", row_group_size=3)
    images = [np.asarray(e.image)[0, 0, 0] for e in open_external(tmp_path / "x.parquet")]
    assert images == [n * 20 for n in range(7)]


def test_a_folder_named_from_where_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "faces").mkdir()
    (name,) = pictures(tmp_path / "faces", 1)
    (tmp_path / "faces" / name).with_suffix(".txt").write_text("a face")
    monkeypatch.chdir(tmp_path)
    (row,) = usable(open_external("faces"))
    assert row.source == tmp_path / "faces" / name
