"""The folder that a command writes: checked before, built under another name beside it, and renamed when it is complete.

A command that is killed leaves its unfinished folder, which the next one to the same place removes.

>>> with replaced_folder(Path("bundles/nano")) as folder:  # doctest: +SKIP
...     (folder / "manifest.json").write_text("{}")
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from f2edge.bundle.bundle import MANIFEST
from f2edge.errors import F2EdgeError, OutputError

_BUILDING, _OLD = "building", "-old"


def check_destination(out: Path, needed_bytes: int = 0) -> None:
    """Check that a bundle can be written to ``out``, with a temporary file beside it.

    Args:
        out: folder of the bundle.
        needed_bytes: minimum free space.

    Raises:
        OutputError: the folder cannot be written, the disk is too full, or the folder contains something other than a bundle.
    """
    if out.name in ("", ".."):
        raise OutputError(f"cannot write the bundle {str(out)!r}: a bundle takes its folder's name; give a named one, as bundles/mine")
    try:
        if out.exists() and not out.is_dir():
            raise OutputError(f"cannot write the bundle {out}: a file of that name exists; choose another folder")
        if out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).is_file():
            raise OutputError(f"cannot write the bundle {out}: the folder holds other things, and no {MANIFEST}; choose a new folder")
        parent = next(folder for folder in out.absolute().parents if folder.exists())
        with tempfile.TemporaryFile(dir=parent):
            free = shutil.disk_usage(parent).free
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"cannot write the bundle {out}: {error.strerror}; choose a folder that you may write") from error
    if free < needed_bytes:
        raise OutputError(
            f"cannot write the bundle {out}: it takes at least {needed_bytes / 2**20:.0f} MiB, the disk has {free / 2**20:.0f} MiB free; "
            "make room or choose another disk"
        )


@contextmanager
def replaced_folder(out: Path) -> Iterator[Path]:
    """Yield a new folder that replaces ``out`` if the block succeeds, and is removed if it fails.

    Raises:
        OutputError: as :func:`check_destination`, or the disk is full.
    """
    check_destination(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _clear(out)
        building = Path(tempfile.mkdtemp(prefix=f".{out.name}-{_BUILDING}-", dir=out.parent))
    except OSError as error:
        raise OutputError(f"cannot write the bundle {out}: {error.strerror}; choose a folder that you may write") from error
    try:
        building.chmod(0o755)
        with _held(building):
            yield building
            _replace(out, building)
    except OSError as error:
        if isinstance(error, F2EdgeError):
            raise
        reason = error.strerror or str(error)
        raise OutputError(f"cannot write the bundle {out}: {reason}; free some space or choose another folder") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _replace(out: Path, building: Path) -> None:
    """Replace ``out`` by ``building``; if the second rename fails, restore ``out``."""
    old = building.with_name(f"{building.name}{_OLD}")
    if out.exists():
        out.rename(old)
    try:
        building.rename(out)
    except BaseException:
        if old.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Lock a folder while the block runs; yield whether that could be done.  A killed process holds no locks.  Nothing on Windows."""
    if sys.platform == "win32":
        yield False
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        yield False
    else:
        yield True
    finally:
        os.close(descriptor)


def _clear(out: Path) -> None:
    """Remove what killed commands left beside ``out``; of a bundle that one was about to replace, put it back."""
    name = re.compile(rf"\.{re.escape(out.name)}-{_BUILDING}-\w{{8}}({_OLD})?")
    found = {folder.with_name(folder.name.removesuffix(_OLD)) for folder in out.parent.iterdir() if name.fullmatch(folder.name)}
    for building in found:
        old = building.with_name(f"{building.name}{_OLD}")
        with _held(building if building.exists() else old) as free:
            if free:
                if old.exists() and not out.exists():
                    old.rename(out)
                for folder in (building, old):
                    shutil.rmtree(folder, ignore_errors=True)
