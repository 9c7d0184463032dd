"""Files that an ONNX graph takes its weights from, read without the ``onnx`` package.

ONNX Runtime opens whatever path a tensor's ``external_data`` names, so a graph could read files that its bundle does not list.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from f2edge.bundle.checked_json import inner_path, show
from f2edge.bundle.onnx_messages import message
from f2edge.errors import BundleError

_KEY = b"location"


def check_external_data(folder: Path, graph: str, files: Mapping[str, Any]) -> None:
    """Check that a graph's weights lie in files that the manifest lists.

    Args:
        folder: folder of the bundle.
        graph: path of the graph in it.
        files: listed files by their paths in it.

    Raises:
        BundleError: a weight's file is outside the folder or not listed, or the graph cannot be parsed.
    """
    for location in sorted(external_locations(_with_references(folder / graph))):
        try:
            listed = (PurePosixPath(graph).parent / inner_path(location)).as_posix() in files
        except BundleError:
            listed = False
        if not listed:
            raise BundleError(
                f"{folder / graph}: takes weights from {show(location)}, which the manifest does not list; copy or export the bundle again"
            )


def _with_references(path: Path) -> bytes:
    """Return the bytes of a graph that may have external data, or none; graphs with gigabytes of weights inside are only searched."""
    if not path.stat().st_size:
        return b""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data[:] if data.find(_KEY) >= 0 else b""


def external_locations(model: bytes) -> set[str]:
    """Return the file names in the ``external_data`` of an ONNX model's bytes; raises :class:`BundleError` if they cannot be parsed."""
    from google.protobuf.message import DecodeError

    try:
        return {
            entry.value.decode("utf-8", "backslashreplace") for entry in _entries(message("Model").FromString(model)) if entry.key == _KEY
        }
    except (DecodeError, RecursionError) as error:
        raise BundleError("an ONNX graph cannot be parsed; copy or export the bundle again") from error


def _entries(parsed: Any) -> Iterator[Any]:
    for field, value in parsed.ListFields():
        for inner in value if field.is_repeated else (value,):
            if field.message_type is None:
                continue
            if field.message_type.name == "Entry":
                yield inner
            else:
                yield from _entries(inner)
