"""Bundles from elsewhere: a folder, a web address or a Hugging Face repository, installed whole and verified or not at all.

>>> install("https://example.org/bundles/mine")                                             # doctest: +SKIP
>>> install("hf:owner/name@main", sha256="5f3c…")                                           # doctest: +SKIP

The manifest is read first; it names every file with size and SHA-256, so nothing else is fetched, and nothing larger.  Complete files are kept in
the user's cache by their SHA-256, so that a download that broke off goes on and a second one needs no network.  Only ``add`` opens connections:
loading a bundle never does.
"""  # noqa: E501

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from urllib.error import URLError
from urllib.parse import quote, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from f2edge.bundle.bundle import LARGEST_MANIFEST_BYTES, MANIFEST, NAME, Bundle, user_folder
from f2edge.bundle.manifest import FileEntry, parse_manifest
from f2edge.bundle.seal import check_seal
from f2edge.errors import BundleError, BundleNotFoundError, ChecksumError, InputError, OutputError
from f2edge.transport import is_loopback

#: Where plain names are looked up: an address or a folder.
NAMES = "F2EDGE_BUNDLES"
_HUGGING_FACE = re.compile(r"(?:hf:|https://huggingface\.co/)([\w.-]+/[\w.-]+?)(?:@([\w./-]+))?/?")
_TIMEOUT_S = 30.0
_CHUNK_BYTES = 1 << 20

Progress = Callable[[int, int], None]


def install(
    source: str, *, name: str | None = None, sha256: str | None = None, replace: bool = False, progress: Progress = lambda _d, _t: None
) -> Bundle:
    """Install a bundle into the user's folder and return it.

    Args:
        source: a folder, an address ("https://…" of the folder with its manifest), "hf:owner/name@revision", or a name below the address or
            folder in the environment variable F2EDGE_BUNDLES.
        name: under which it is installed; by default the manifest's.
        sha256: of the manifest, from somebody you trust: the seals inside a bundle find damage, not forgery.
        replace: take the place of an installed bundle of that name.
        progress: called with bytes done and bytes in all.

    Raises:
        BundleNotFoundError: there is none.
        BundleError, ChecksumError: it is damaged, or of an unknown version.
        InputError: the name is taken or not one, or the address is not served over TLS.
        OutputError: the user's folder cannot be written.
    """
    base = _base(source)
    data = _manifest(base)
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256.lower():
        raise ChecksumError(f"{base}/{MANIFEST}: its SHA-256 is {hashlib.sha256(data).hexdigest()}, not the one given; do not use it")
    check_seal(data)
    manifest = parse_manifest(data)
    chosen = name or manifest.name
    if not NAME.fullmatch(chosen):
        raise InputError(f"bundle name {chosen[:60]!r}: use letters, digits, '.', '_' and '-'; give another with --name")
    target = user_folder() / chosen
    if target.exists() and not replace:
        raise InputError(f"bundle {chosen!r} is installed already ({target}); give --replace, or another --name")
    with _new_folder(target) as folder:
        done, total = 0, sum(entry.size for entry in manifest.files.values())
        for inner, entry in manifest.files.items():
            place = folder / inner
            place.parent.mkdir(parents=True, exist_ok=True)
            for size in _file(base, inner, entry, place):
                done += size
                progress(done, total)
        (folder / MANIFEST).write_bytes(data)
        Bundle.load(folder)  # as every later use will
    return Bundle.load(target)


def cache_folder() -> Path:
    """Return the folder of downloaded files; it may not exist."""
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("f2edge", appauthor=False)) / "downloads"


def _base(source: str) -> str:
    """Return the address or folder of a source's manifest."""
    found = _HUGGING_FACE.fullmatch(source)
    if found:
        return f"https://huggingface.co/{found[1]}/resolve/{quote(found[2] or 'main')}"
    if "://" in source:
        return _checked(source.removesuffix(MANIFEST).rstrip("/"))
    if source and Path(source).is_dir():
        return source
    names = os.environ.get(NAMES)
    if NAME.fullmatch(source) and names:
        return _checked(f"{names.rstrip('/')}/{source}")
    raise BundleNotFoundError(f"no bundle {source[:200]!r}: give a folder, an https address, hf:owner/name, or a name with {NAMES} set")


def _checked(address: str) -> str:
    if "://" not in address:
        return address
    parts = urlsplit(address)
    if parts.scheme == "https" or (parts.scheme == "http" and parts.hostname is not None and is_loopback(parts.hostname)):
        return address
    raise InputError(f"{address[:200]}: is not served over TLS; give an https address")


def _manifest(base: str) -> bytes:
    with _opened(base, MANIFEST) as file:
        data = file.read(LARGEST_MANIFEST_BYTES + 1)
    if len(data) > LARGEST_MANIFEST_BYTES:
        raise BundleError(f"{base}/{MANIFEST}: larger than {LARGEST_MANIFEST_BYTES >> 20} MiB; this is not a bundle's manifest")
    return data


def _file(base: str, inner: str, entry: FileEntry, place: Path) -> Iterator[int]:
    """Write one file of a bundle, from the cache where it is there; yields the sizes of its parts."""
    remote = "://" in base
    kept = cache_folder() / entry.sha256
    if remote and kept.is_file() and kept.stat().st_size == entry.size and _digest(kept) == entry.sha256:
        shutil.copyfile(kept, place)
        yield entry.size
        return
    digest, size = hashlib.sha256(), 0
    with _opened(base, inner) as file, place.open("wb") as out:
        while chunk := file.read(min(_CHUNK_BYTES, entry.size + 1 - size)):
            size += len(chunk)
            digest.update(chunk)
            out.write(chunk)
            yield len(chunk)
            if size > entry.size:
                break
    if size != entry.size or digest.hexdigest() != entry.sha256:
        raise ChecksumError(f"{base}/{inner}: differs from what the manifest says; it is damaged or broke off; try again")
    if remote:
        with suppress(OSError):  # the cache is a convenience
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(place, kept.with_suffix(".part"))
            kept.with_suffix(".part").replace(kept)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


class _SecureRedirects(HTTPRedirectHandler):
    """Follows redirections to addresses over TLS only."""

    def redirect_request(self, req: Request, fp: object, code: int, msg: str, headers: object, newurl: str) -> Request | None:  # noqa: PLR0917
        _checked(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]


@contextmanager
def _opened(base: str, inner: str) -> Iterator[BinaryIO]:
    """Open a file of a bundle."""
    where = f"{base}/{inner}"
    try:
        if "://" not in base:
            with Path(where).open("rb") as file:
                yield file
            return
        request = Request(f"{base}/{quote(inner)}", headers={"User-Agent": "f2edge"})  # noqa: S310  the scheme was checked
        with build_opener(_SecureRedirects()).open(request, timeout=_TIMEOUT_S) as response:
            yield response
    except FileNotFoundError as error:
        raise BundleNotFoundError(f"{where}: there is no such file; give the folder that export wrote") from error
    except (URLError, OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise BundleNotFoundError(f"{where}: cannot be fetched ({str(reason)[:100]}); check the address and the network") from error


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """A folder beside the target that takes its place at the end; after a failure nothing has changed."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=".adding-"))
    except OSError as error:
        raise OutputError(f"{target.parent}: cannot be written ({error.strerror}); make room or change its permissions") from error
    old = folder.with_name(folder.name + "-old")
    try:
        (folder / "new").mkdir()
        yield folder / "new"
        if target.exists():
            target.replace(old)
        (folder / "new").replace(target)
    except OSError as error:
        if isinstance(error, InputError):
            raise
        raise OutputError(f"{target}: cannot be written ({error.strerror}); make room or change its permissions") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
