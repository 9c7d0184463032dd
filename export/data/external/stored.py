"""Pictures that lie inside other files: members of tar files and cells of parquet files, read when they are needed.

Each names its place, so that an index of a million pictures holds no pixels, and any process can read any of them.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from f2edge.errors import ImageError


@dataclass(frozen=True)
class TarMember:
    """A member of an uncompressed tar file: ``size`` bytes from ``offset``."""

    tar: str
    offset: int
    size: int

    def read(self) -> bytes:
        """Return the member's bytes; raises :class:`ImageError` if the file became shorter or is gone."""
        try:
            with Path(self.tar).open("rb") as file:
                file.seek(self.offset)
                data = file.read(self.size)
        except OSError as error:
            raise ImageError(f"{self.tar}: cannot be read ({error.strerror})") from error
        if len(data) != self.size:
            raise ImageError(f"{self.tar}: ends before byte {self.offset + self.size}; copy it again")
        return data


@dataclass(frozen=True)
class ParquetCell:
    """Image bytes in a parquet file: a column of bytes or of ``{bytes, path}``, by row group and row within it."""

    parquet: str
    group: int
    row: int
    column: str

    def read(self) -> bytes:
        """Return the cell's bytes; raises :class:`ImageError` where there are none."""
        value = _column(self.parquet, self.group, self.column)[self.row].as_py()
        value = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(value, bytes):
            raise ImageError(f"{self.parquet}: row {self.row} of group {self.group} holds no image bytes in {self.column!r}")
        return value


@lru_cache(maxsize=1)
def _column(path: str, group: int, column: str) -> Any:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        return file.read_row_group(group, columns=[column])[column]


#: What :func:`export.data.external.columns.find_image` finds: a file, bytes, or a place inside another file.
Source = Path | bytes | TarMember | ParquetCell


def locator(source: Source) -> str:
    """Return a source as JSON, for an index.  Bytes have no place and raise :class:`TypeError`."""
    if isinstance(source, bytes):
        raise TypeError("bytes have no place")
    return json.dumps(str(source.absolute()) if isinstance(source, Path) else asdict(source), ensure_ascii=False)


def located(text: str) -> Source:
    """Return the source that :func:`locator` wrote."""
    value = json.loads(text)
    if isinstance(value, str):
        return Path(value)
    return TarMember(**value) if "tar" in value else ParquetCell(**value)


def content(source: Source) -> bytes | Path:
    """Return what :func:`f2edge.imaging.images.load_image` reads."""
    return source if isinstance(source, bytes | Path) else source.read()
