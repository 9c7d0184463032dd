"""Rows of external data sets as dictionaries: folders with sidecar files, JSON, JSONL, CSV, parquet and WebDataset tars.

All are read as a stream: a table of a million rows needs the memory of one.  An unreadable row (an invalid line, a missing sidecar file)
is yielded as an error in its place, so that the caller can count it.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.data.external.stored import ParquetCell, TarMember
from f2edge.errors import InputError

Row = Mapping[str, Any]
#: Position of a row ("line 7") and the row, or the error.
Placed = tuple[str, Row | InputError]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_DELIMITERS = ",\t;|"
_LARGEST_FIELD = 16 << 20
_BATCH_ROWS = 64
_GLANCED = 1000
_TEXT_SUFFIXES = ("txt", "text", "caption")


@dataclass(frozen=True)
class Table:
    """A table that can be read repeatedly.

    Attributes:
        kind: description of the source.
        base: folder that image paths are relative to.
        rows: returns an iterator from the first row.
    """

    kind: str
    base: Path
    rows: Callable[[], Iterator[Placed]]


def open_table(path: Path) -> Table:
    """Open a file or folder as a table.

    Raises:
        InputError: ``path`` does not exist or is not a known kind of data set.
    """
    if path.is_dir():
        return _open_folder(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file or folder; give a folder of images, or one of: {', '.join(_READERS)}")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path}: unknown kind of file {path.suffix!r}; known are {', '.join(_READERS)} and folders of images")
    return Table(f"{path.suffix[1:].upper()} file", path.parent, lambda: reader(path))


def _open_folder(folder: Path) -> Table:
    """Open a folder: its tables (one file, or shards of one kind) if there are any, else images with a .txt or .json beside each."""
    glance = list(itertools.islice(_pictures(folder), _GLANCED))
    sidecars = {image.with_suffix(suffix) for image in glance for suffix in (".txt", ".json")}
    tables = sorted(file for file in folder.iterdir() if file.suffix.lower() in _READERS and file.is_file() and file not in sidecars)
    tables = [file for file in tables if not (glance and file.suffix.lower() == ".json" and _beside_image(file))]
    named = [file for file in tables if file.stem.lower() in {"metadata", "captions", "annotations", "data", "train"}]
    tables = named[:1] if named else tables
    if tables:
        kinds = {file.suffix.lower() for file in tables}
        if len(kinds) > 1:
            raise InputError(f"{folder}: tables of several kinds ({', '.join(file.name for file in tables)}); give the path of one of them")
        reader = _READERS[kinds.pop()]
        return Table(f"folder with {', '.join(file.name for file in tables[:3])}", folder, lambda: _chained(reader, tables))
    if not glance:
        raise InputError(f"{folder}: neither images ({', '.join(IMAGE_SUFFIXES)}) nor a table ({', '.join(_READERS)}) in this folder")
    some = f"{len(glance)}{' or more' if len(glance) == _GLANCED else ''}"
    if not any(file.is_file() for file in sidecars):
        raise InputError(f"{folder}: {some} images, but no .txt or .json beside them and no table; write captions or questions first")
    return Table(f"folder of {some} images with files beside them", folder, lambda: _read_sidecars(folder))


def _pictures(folder: Path) -> Iterator[Path]:
    """Yield the images of a folder and its subfolders in the order of their names, folder by folder."""
    for place, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(name for name in files if name.lower().endswith(IMAGE_SUFFIXES)):
            yield Path(place, name)


def _beside_image(file: Path) -> bool:
    return any(file.with_suffix(suffix).is_file() for suffix in IMAGE_SUFFIXES)


def _chained(reader: Callable[[Path], Iterator[Placed]], files: list[Path]) -> Iterator[Placed]:
    for file in files:
        for place, row in reader(file):
            yield (f"{file.name}, {place}" if len(files) > 1 else place), row


def _read_sidecars(folder: Path) -> Iterator[Placed]:
    """Yield images with ``stem.txt`` (one caption per line) or ``stem.json`` (a row, a caption or a list of captions)."""
    for image in _pictures(folder):
        try:
            yield image.name, {"image": str(image.absolute()), **_sidecar(image)}
        except (OSError, ValueError) as error:
            yield image.name, InputError(str(error))


def _sidecar(image: Path) -> Row:
    text, data = image.with_suffix(".txt"), image.with_suffix(".json")
    found: dict[str, Any] = {}
    if data.is_file():
        content = json.loads(data.read_text(encoding="utf-8-sig"))
        found.update(content if isinstance(content, dict) else {"caption": content})
    if text.is_file():
        found["caption"] = [line.strip() for line in text.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if not found:
        raise InputError("no .txt or .json beside the image")
    return {name: value for name, value in found.items() if name != "image"}


def _read_jsonl(path: Path) -> Iterator[Placed]:
    with path.open(encoding="utf-8-sig", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield f"line {number}", InputError(f"not valid JSON ({error})")
                continue
            yield f"line {number}", row if isinstance(row, dict) else InputError(f"a {type(row).__name__}, not an object")


def _read_json(path: Path) -> Iterator[Placed]:
    """Yield the rows of a JSON file; a list is streamed, an object of another layout is read as a whole."""
    for number, row in enumerate(_streamed(path) if _is_list(path) else _whole(path), start=1):
        yield f"entry {number}", row if isinstance(row, dict) else InputError(f"a {type(row).__name__}, not an object")


def _is_list(path: Path) -> bool:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return file.read(1 << 16).lstrip()[:1] == "["


def _streamed(path: Path) -> Iterator[Any]:
    import ijson

    with path.open("rb") as file:
        if file.read(3) != b"\xef\xbb\xbf":
            file.seek(0)
        try:
            yield from ijson.items(file, "item", use_float=True)
        except (ijson.JSONError, ValueError) as error:
            raise InputError(f"{path}: not valid JSON ({' '.join(str(error).split())}); repair or download the file again") from error


def _whole(path: Path) -> list[Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error}); repair or download the file again") from error
    return _json_rows(path, content)


def _json_rows(path: Path, content: Any) -> list[Any]:
    """Return the rows of COCO images and annotations, an object with one list, or an object of image name → text or row."""
    if isinstance(content, dict) and isinstance(content.get("images"), list) and isinstance(content.get("annotations"), list):
        return _coco_rows(path, content["images"], content["annotations"])
    if isinstance(content, dict):
        lists = {name: value for name, value in content.items() if isinstance(value, list) and value and isinstance(value[0], dict)}
        named = [lists[name] for name in ("data", "annotations", "rows", "train") if name in lists] or list(lists.values())
        if named and not all(name.lower().endswith(IMAGE_SUFFIXES) for name in content):
            return list(named[0])
        if content and all(isinstance(value, str | list | dict) for value in content.values()):
            return [{"image": key, **(value if isinstance(value, dict) else {"caption": value})} for key, value in content.items()]
    raise InputError(f"{path}: expected a list of objects, or an object that holds one or maps image names to captions")


def _coco_rows(path: Path, images: list[Any], annotations: list[Any]) -> list[Any]:
    try:
        rows = {image["id"]: {"image": image["file_name"], "caption": []} for image in images}
        for annotation in annotations:
            rows[annotation["image_id"]]["caption"].append(annotation["caption"])
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: looks like COCO captions, but an image or annotation lacks {error}") from error
    return list(rows.values())


def _read_csv(path: Path) -> Iterator[Placed]:
    csv.field_size_limit(_LARGEST_FIELD)
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        header = file.readline()
        delimiter = max(_DELIMITERS, key=header.count)
        file.seek(0)
        reader = csv.reader(file, delimiter=delimiter, skipinitialspace=True)
        names = [name.strip() for name in next(reader, [])]
        if not any(names):
            raise InputError(f"{path}: the first line names no columns; write them there")
        for row in reader:
            if not row:
                continue
            if len(row) != len(names):
                yield f"line {reader.line_num}", InputError(f"{len(row)} fields where the first line names {len(names)}")
            else:
                yield f"line {reader.line_num}", {name: value.strip() for name, value in zip(names, row, strict=True)}


def _read_parquet(path: Path) -> Iterator[Placed]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise InputError(f"{path}: reading parquet needs pyarrow; install it with: pip install 'f2edge[train]'") from error
    number = 0
    try:
        with ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                first = number
                for batch in file.iter_batches(batch_size=_BATCH_ROWS, row_groups=[group]):
                    for row in batch.to_pylist():
                        number += 1
                        yield f"row {number}", _placed_bytes(row, path, group, number - first - 1)
    except (ArrowException, OSError) as error:
        raise InputError(f"{path}: no readable parquet after row {number} ({error}); download the file again") from error


def _placed_bytes(row: dict[str, Any], path: Path, group: int, number: int) -> Row:
    """Return the row with the place of image bytes instead of the bytes."""
    found = dict(row)
    for name, value in row.items():
        if (isinstance(value, dict) and isinstance(value.get("bytes"), bytes)) or (isinstance(value, bytes) and value):
            found[name] = ParquetCell(str(path.absolute()), group, number, name)
    return found


def _read_tar(path: Path) -> Iterator[Placed]:
    """Yield the samples of a WebDataset shard: members with one name up to its first dot, one after the other."""
    try:
        with tarfile.open(path, "r:") as tar:
            for key, members in itertools.groupby((m for m in tar if m.isfile()), _sample_key):
                yield f"sample {key}", _tar_row(tar, path, key, list(members))
                tar.members = []  # type: ignore[attr-defined]  # it keeps every header it has read
    except tarfile.TarError as error:
        raise InputError(f"{path}: no readable tar ({error}); a compressed one must be unpacked first: gunzip") from error


def _sample_key(member: tarfile.TarInfo) -> str:
    folder, _, name = member.name.rpartition("/")
    return f"{folder}/{name.partition('.')[0]}".lstrip("./")


def _tar_row(tar: tarfile.TarFile, path: Path, key: str, members: list[tarfile.TarInfo]) -> Row | InputError:
    row: dict[str, Any] = {"__key__": key}
    image = {}
    for member in members:
        kind = member.name.rpartition("/")[2].partition(".")[2].lower()
        if f".{kind}".endswith(IMAGE_SUFFIXES):
            image = {"image": TarMember(str(path.absolute()), member.offset_data, member.size)}
        elif kind == "json" or kind in _TEXT_SUFFIXES:
            file = tar.extractfile(member)
            assert file is not None
            text = file.read(_LARGEST_FIELD).decode("utf-8-sig", errors="replace")
            try:
                value = json.loads(text) if kind == "json" else [line.strip() for line in text.splitlines() if line.strip()]
            except (ValueError, RecursionError) as error:
                return InputError(f"{member.name}: not valid JSON ({error})")
            row.update(value if isinstance(value, dict) else {"caption" if kind in _TEXT_SUFFIXES else kind: value})
    return {**row, **image}


_READERS: Mapping[str, Callable[[Path], Iterator[Placed]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
    ".tar": _read_tar,
}
