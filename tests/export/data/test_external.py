"""Real files in the shapes people have: what is recognised, what comes out, what is refused and what is only counted."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from export.data.external.columns import sniff, turns_of
from export.data.external.dataset import ExternalDataset, open_external
from f2edge.errors import InputError

COLORS = ((200, 30, 30), (30, 200, 30), (30, 30, 200))


def encoded(number: int, form: str = "PNG") -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (40, 32), COLORS[number % 3]).save(data, form, quality=95)
    return data.getvalue()


def write_images(folder: Path, count: int = 3, form: str = "PNG") -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{number}.{'jpg' if form == 'JPEG' else form.lower()}" for number in range(count)]
    for number, name in enumerate(names):
        (folder / name).write_bytes(encoded(number, form))
    return names


def roles(dataset: ExternalDataset) -> dict[str, str]:
    return {column.name: column.role for column in dataset.columns}


CONVERSATION = [
    {"from": "human", "value": "<image>\nWhat color is the hair?"},
    {"from": "gpt", "value": "Red."},
    {"from": "human", "value": "Any hat?\n<image>"},
    {"from": "gpt", "value": "No."},
]
TURNS = (("What color is the hair?", "Red."), ("Any hat?", "No."))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_folder_with_text_files_beside_the_images(tmp_path: Path, form: str) -> None:
    for number, name in enumerate(write_images(tmp_path / "deep", form=form)):
        (tmp_path / "deep" / name).with_suffix(".txt").write_text(f"face {number}\n\nsecond caption {number}\n", encoding="utf-8")
    dataset = open_external(tmp_path)
    examples = list(dataset)
    assert [e.captions for e in examples] == [(f"face {n}", f"second caption {n}") for n in range(3)]
    assert all(e.image.mode == "RGB" and e.image.size == (40, 32) for e in examples)
    for example, color in zip(examples, COLORS, strict=True):
        pixel = example.image.getpixel((5, 5))
        assert isinstance(pixel, tuple)
        assert max(abs(a - b) for a, b in zip(pixel, color, strict=True)) < 12
    assert dataset.report() == "0 unusable rows"


def test_folder_with_json_files_beside_the_images_counts_what_is_missing(tmp_path: Path) -> None:
    names = write_images(tmp_path, 4)
    (tmp_path / names[0]).with_suffix(".json").write_text(json.dumps({"caption": "one", "conversations": CONVERSATION}))
    (tmp_path / names[1]).with_suffix(".json").write_text(json.dumps(["two", "deux"]))
    (tmp_path / names[2]).with_suffix(".json").write_text("{broken")
    dataset = open_external(tmp_path)
    examples = list(dataset)
    assert [e.captions for e in examples] == [("one",), ("two", "deux")]
    assert examples[0].questions == TURNS
    assert dataset.broken == 2
    assert "2.png" in dataset.report()
    assert "3.png: no .txt or .json" in dataset.report()


@pytest.mark.parametrize("column", ["image", "image_path", "file_name", "img", "path"])
@pytest.mark.parametrize("text", ["caption", "text", "Description", "long_captions"])
def test_jsonl_by_column_names(tmp_path: Path, column: str, text: str) -> None:
    names = write_images(tmp_path / "images")
    rows = [{column: f"images/{name}", text: f"a face {name}", "score": 0.5} for name in names]
    (tmp_path / "faces.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    dataset = open_external(tmp_path / "faces.jsonl")
    assert roles(dataset) == {column: "image", text: "captions", "score": "ignored"}
    assert [e.captions for e in dataset] == [(f"a face {name}",) for name in names]
    assert [e.captions for e in dataset] == [(f"a face {name}",) for name in names], "a second iteration starts anew"


def test_llava_json_with_ids_and_conversations(tmp_path: Path) -> None:
    names = write_images(tmp_path)
    rows = [{"id": str(n), "image": name, "conversations": CONVERSATION} for n, name in enumerate(names)]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    dataset = open_external(tmp_path / "train.json")
    assert roles(dataset) == {"id": "id", "image": "image", "conversations": "conversation"}
    assert [e.questions for e in dataset] == [TURNS] * 3
    assert "conversations  conversation of a user and a model" in dataset.explain()


def test_an_id_alone_finds_the_image(tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    (tmp_path / "faces.json").write_text(json.dumps({"data": [{"id": n, "question": "hat?", "answer": "no"} for n in range(3)]}))
    dataset = open_external(tmp_path / "faces.json")
    assert [e.questions for e in dataset] == [(("hat?", "no"),)] * 3


def test_json_from_image_name_to_text(tmp_path: Path) -> None:
    names = write_images(tmp_path)
    (tmp_path / "captions.json").write_text(json.dumps({name: [f"face {name}"] for name in names}))
    assert [e.captions for e in open_external(tmp_path)] == [(f"face {name}",) for name in names]


def test_coco_captions(tmp_path: Path) -> None:
    names = write_images(tmp_path / "images", 2)
    content = {
        "images": [{"id": 7 + n, "file_name": name} for n, name in enumerate(names)],
        "annotations": [{"image_id": 8, "caption": "b"}, {"image_id": 7, "caption": "a"}, {"image_id": 8, "caption": "c"}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(content))
    assert [e.captions for e in open_external(tmp_path / "coco.json")] == [("a",), ("b", "c")]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_csv_with_any_delimiter_and_packed_json(tmp_path: Path, delimiter: str) -> None:
    names = write_images(tmp_path)
    packed = json.dumps([{"question": "hat?", "answer": "no"}]).replace('"', '""')
    lines = [delimiter.join(("file_name", "sentence", "qa"))]
    lines += [delimiter.join((name, '"a face, smiling; happy | old"', f'"{packed}"')) for name in names]
    (tmp_path / "x.csv").write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8")
    dataset = open_external(tmp_path / "x.csv")
    assert roles(dataset) == {"file_name": "image", "sentence": "captions", "qa": "pairs"}
    assert [(e.captions, e.questions) for e in dataset] == [(("a face, smiling; happy | old",), (("hat?", "no"),))] * 3


def test_parquet_with_embedded_bytes_and_shards(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for shard in range(2):
        rows: list[dict[str, Any]] = [
            {
                "image": {"bytes": encoded(n), "path": None},
                "text": [f"s{shard}", f"n{n}"],
                "question": "hat?",
                "answer": "no",
                "age": 30 + n,
            }
            for n in range(3)
        ]
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / f"shard-{shard}.parquet")
    dataset = open_external(tmp_path)
    assert roles(dataset) == {"image": "image", "text": "captions", "question": "question", "answer": "answer", "age": "ignored"}
    examples = list(dataset)
    assert [e.captions for e in examples] == [(f"s{s}", f"n{n}") for s in range(2) for n in range(3)]
    assert [e.image.getpixel((0, 0)) for e in examples[:3]] == list(COLORS)
    assert "embedded images, 6 of the first 6 found" in dataset.explain()
    assert "age" in dataset.explain()
    assert "no text" in dataset.explain()


def test_a_single_column_of_sentences_is_taken_for_captions(tmp_path: Path) -> None:
    names = write_images(tmp_path)
    rows = [{"image": name, "what": "a man with a long beard", "split": "train"} for name in names]
    (tmp_path / "m.json").write_text(json.dumps(rows))
    assert roles(open_external(tmp_path / "m.json")) == {"image": "image", "what": "captions", "split": "ignored"}


def test_broken_rows_are_counted_up_to_the_limit(tmp_path: Path) -> None:
    write_images(tmp_path, 2)
    (tmp_path / "cut.png").write_bytes(encoded(0)[:40])
    (tmp_path / "text.png").write_text("no image at all")
    rows = [
        '{"image": "0.png", "caption": "good"}',
        "{broken",
        '{"image": "gone.png", "caption": "x"}',
        '{"image": "cut.png", "caption": "x"}',
        '{"image": "text.png", "caption": "x"}',
        '{"image": "1.png", "caption": ""}',
        '{"image": "https://example.org/1.png", "caption": "x"}',
        '{"image": "1.png", "caption": "good too"}',
    ]
    (tmp_path / "m.jsonl").write_text("\n".join(rows))
    dataset = open_external(tmp_path / "m.jsonl")
    assert [e.captions for e in dataset] == [("good",), ("good too",)]
    assert dataset.broken == 6
    assert "line 2: not valid JSON" in dataset.report()
    assert "gone.png" in dataset.report()
    with pytest.raises(InputError, match=r"3 unusable rows.*most_broken"):
        list(open_external(tmp_path / "m.jsonl", most_broken=2))


def _empty(folder: Path) -> Path:
    return folder


def _no_sidecars(folder: Path) -> Path:
    write_images(folder)
    return folder


def _absent(folder: Path) -> Path:
    return folder / "nothing.json"


def _unknown_kind(folder: Path) -> Path:
    (folder / "x.xml").write_text("<a/>")
    return folder / "x.xml"


def _no_images(folder: Path) -> Path:
    (folder / "x.jsonl").write_text('{"caption": "a face", "score": 1}')
    return folder / "x.jsonl"


def _no_text(folder: Path) -> Path:
    write_images(folder)
    (folder / "x.jsonl").write_text('{"image": "0.png", "score": 1}')
    return folder / "x.jsonl"


def _lost_images(folder: Path) -> Path:
    (folder / "x.jsonl").write_text('{"image": "0.png", "caption": "a"}')
    return folder / "x.jsonl"


def _web_images(folder: Path) -> Path:
    (folder / "x.jsonl").write_text('{"image": "https://example.org/0.png", "caption": "a"}')
    return folder / "x.jsonl"


def _bad_json(folder: Path) -> Path:
    (folder / "x.json").write_text("[{]")
    return folder / "x.json"


def _bad_parquet(folder: Path) -> Path:
    (folder / "x.parquet").write_bytes(b"PAR1 nothing")
    return folder / "x.parquet"


def _two_kinds(folder: Path) -> Path:
    (folder / "x.jsonl").write_text("{}")
    (folder / "y.csv").write_text("a,b")
    return folder


def _empty_csv(folder: Path) -> Path:
    (folder / "x.csv").write_text("")
    return folder / "x.csv"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_empty, "neither images"),
        (_no_sidecars, "no .txt or .json beside"),
        (_absent, "no such file"),
        (_unknown_kind, "unknown kind of file '.xml'"),
        (_no_images, r"no column holds images; found: caption \(captions\), score .*expected image"),
        (_no_text, r"no column holds text; found: image .*score .*expected caption"),
        (_lost_images, "none of the first 1 images"),
        (_web_images, "download the images first"),
        (_bad_json, "not valid JSON"),
        (_bad_parquet, "no readable parquet"),
        (_two_kinds, "several kinds"),
        (_empty_csv, "names no columns"),
    ],
)
def test_what_cannot_be_used_is_refused_with_a_reason(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_external(make(tmp_path))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("q", "a"), ("question", "answer")),
        (("Query", "Model_Response"), ("question", "answer")),
        (("question_id", "image_url"), ("ignored", "ignored")),
        (("caption", "negative_prompt"), ("captions", "ignored")),
    ],
)
def test_names_of_text_columns(tmp_path: Path, names: tuple[str, str], expected: tuple[str, str]) -> None:
    columns = sniff([{names[0]: "one", names[1]: "two"}], tmp_path)
    assert tuple(column.role for column in columns) == expected


def test_question_without_answers_is_no_use(tmp_path: Path) -> None:
    columns = sniff([{"image": b"x", "question": "hat?"}], tmp_path)
    assert {column.name: column.role for column in columns} == {"image": "image", "question": "ignored"}
    assert columns[1].reason == "questions without a column of answers"


@pytest.mark.parametrize("value", [None, "text", [1], [{"from": "human"}], [{"from": "gpt", "value": "alone"}], {"from": "human"}])
def test_what_is_no_conversation_has_no_turns(value: object) -> None:
    assert turns_of(value) == []
