"""Atomic writing of pictures; the kind follows from the suffix and is checked before long work starts.

>>> check_writable("face.png")                                                              # doctest: +SKIP
>>> save_image(image, "face.png", label(prompt="a smiling woman", seed=7, bundle="nano"))   # doctest: +SKIP
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from f2edge.errors import OutputError
from f2edge.provenance.label import Label, save_arguments

if TYPE_CHECKING:
    from f2edge.provenance.c2pa import Signer

KINDS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
_QUALITY = {"JPEG": 95, "WEBP": 92}


def image_kind(path: str | os.PathLike[str]) -> str:
    """Return the kind of picture for a path's suffix, "PNG", "JPEG" or "WEBP"; raises :class:`OutputError` for any other."""
    suffix = Path(path).suffix.lower()
    if suffix not in KINDS:
        what = f"of kind {suffix}" if suffix else "without a suffix"
        raise OutputError(f"{os.fspath(path)}: cannot write a picture {what}; use {', '.join(KINDS)}")
    return KINDS[suffix]


def check_writable(path: str | os.PathLike[str]) -> Path:
    """Check that a regular file can be written at a path, by creating and removing an empty one beside it.

    Symbolic links are followed: the file that they name is written, the link stays.

    Raises:
        OutputError: the path is a folder, device, pipe or socket, or its folder cannot be written.
    """
    target = Path(path)
    try:
        place = _place(target)
        if target.is_dir():
            raise OutputError(f"{target}: is a folder; give the name of a file")
        if not place.parent.is_dir():
            raise OutputError(
                f"{target}: the folder {place.parent if target.is_symlink() else target.parent} does not exist; create it first"
            )
        with contextlib.suppress(FileNotFoundError):
            target.lstat()  # raises for an invalid file name
        with tempfile.NamedTemporaryFile(dir=place.parent, prefix=".f2edge-"):
            return target
    except (OSError, ValueError) as error:
        if isinstance(error, OutputError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{str(target)[:200]}: cannot be written ({reason}); choose another folder") from error


def save_image(image: Image.Image, path: str | os.PathLike[str], metadata: Label | None = None, signer: Signer | None = None) -> Path:
    """Write a picture atomically and return its path.

    Args:
        image: RGB picture.
        path: file name ending in .png, .jpg, .jpeg or .webp.
        metadata: label; every generated picture has one.
        signer: signs the label as content credentials.

    Raises:
        OutputError: unknown suffix, or the file cannot be written.
    """
    kind, target = image_kind(path), Path(path)
    write_atomically(target, encode(image, kind, metadata, signer=signer))
    return target


def encode(image: Image.Image, kind: str, metadata: Label | None, *, quality: int = 0, signer: Signer | None = None) -> bytes:
    """Return the bytes of a labelled "PNG", "JPEG" or "WEBP"; ``quality`` 1 … 100, 0 selects the default."""
    buffer = io.BytesIO()
    arguments = {"quality": quality or _QUALITY[kind]} if kind in _QUALITY else {}
    image.save(buffer, kind, **arguments, **({} if metadata is None else save_arguments(metadata, kind)))
    data = buffer.getvalue()
    return data if signer is None or metadata is None else signer.sign(data, kind, metadata)


def write_atomically(target: Path, data: bytes | memoryview, *, durable: bool = False) -> None:
    """Write a regular file atomically: a temporary file beside the target is renamed.  Symbolic links are followed.

    Args:
        target: file to write.
        data: its bytes.
        durable: create missing folders, and flush to disk before renaming, so that the file survives a power loss.

    Raises:
        OutputError: the file cannot be written, or the target is a device, pipe or socket; the temporary file is removed.
    """
    temporary: Path | None = None
    try:
        place = _place(target)
        if durable:
            place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=place.parent, prefix=".f2edge-", delete=False) as file:
            temporary = Path(file.name)
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(place)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"{target}: cannot be written ({error.strerror}); choose another folder") from error


def _place(target: Path) -> Path:
    """Return the path that is written for a target, links followed; raises :class:`OutputError` for a device, pipe or socket."""
    place = Path(os.path.realpath(target))
    if place.exists() and not (place.is_file() or place.is_dir()):
        raise OutputError(f"{target}: is a device, pipe or socket; give the name of a file")
    return place


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
