"""Model bundles: the folder that export writes and every backend reads, verified before use.

>>> bundle = Bundle.load("nano")                                                            # doctest: +SKIP
>>> bundle.path("t2i_step"), bundle.layout.image_tokens                                     # doctest: +SKIP

A name is looked up among the embedded bundles (``f2edge/bundles``), then in the user's folder (``f2edge bundles`` prints it); anything
else is a path.  Loading checks the manifest's checksum (:mod:`.seal`), the size and SHA-256 of every file (10 to 15 ms for 16 MB), and
that graphs take weights from listed files only (:mod:`.external_data`); the error names the file.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from f2edge.bundle.external_data import check_external_data
from f2edge.bundle.manifest import FORMAT_VERSION, FileEntry, Manifest, check_manifest, parse_manifest
from f2edge.bundle.seal import check_seal, has_seal, sealed
from f2edge.decoding.presets import Presets, for_edits
from f2edge.decoding.schedule import Schedule
from f2edge.domain import Domain
from f2edge.errors import BundleError, BundleNotFoundError, ChecksumError, OutputError
from f2edge.spec.attributes import AttributeSchema
from f2edge.spec.configuration import ModelConfiguration
from f2edge.spec.layout import TokenLayout
from f2edge.spec.lexicon import Lexicon

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
LEXICON = "lexicon.json"
LARGEST_MANIFEST_BYTES = 8 << 20
_CHUNK_BYTES = 1 << 20
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Bundle:
    """A bundle with a validated manifest and verified files."""

    folder: Path
    manifest: Manifest

    @classmethod
    def load(cls, source: str | os.PathLike[str] | Bundle, *, verify: bool = True) -> Bundle:
        """Open a bundle by name or path.

        Args:
            source: a name ("nano"), a folder, or a bundle that is already open.
            verify: compare every file's SHA-256; sizes and paths are always compared.

        Raises:
            BundleNotFoundError: no such name or folder, or a folder without a manifest.
            ChecksumError: a file differs in size or content.
            BundleError: any other defect; the message names it.
        """
        if isinstance(source, Bundle):
            return source
        folder = find(source)
        data = _manifest_bytes(folder)
        try:
            manifest = parse_manifest(data)
            check_seal(data)
        except BundleError as error:
            raise type(error)(f"{folder}: {error}") from error
        _check_files(folder, manifest, verify=verify)
        bundle = cls(folder, manifest)
        if TOKENIZER not in manifest.files:
            raise BundleError(f"bundle {bundle.name!r}: files does not list {TOKENIZER}; export the bundle again")
        return bundle

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def configuration(self) -> ModelConfiguration:
        return self.manifest.model

    @property
    def layout(self) -> TokenLayout:
        return self.manifest.layout

    @property
    def schema(self) -> AttributeSchema:
        return self.manifest.schema

    @property
    def regions(self) -> tuple[str, ...]:
        """Names of the face parser's regions, in the order of its K channels."""
        return self.manifest.regions

    @property
    def generation(self) -> Schedule:
        """Default schedule of ``generate``."""
        return self.manifest.generation

    @property
    def editing(self) -> Schedule:
        """Default schedule of ``edit``."""
        return self.manifest.editing

    @property
    def presets(self) -> Presets:
        """Named schedules of ``generate``."""
        return self.manifest.presets

    @property
    def editing_presets(self) -> Presets:
        """Named schedules of ``edit``."""
        return for_edits(self.manifest.presets, self.manifest.editing)

    @property
    def faces(self) -> str:
        """Which faces the model knows, one of :data:`f2edge.spec.sensitive.FACES`."""
        return self.manifest.faces

    def domain(self) -> Domain | None:
        """Statistics of the pictures that the model knows; None where the bundle has none."""
        reading, shape = self.manifest.reading, self.configuration.semantic
        if not reading.domain_file or shape is None:
            return None
        return Domain.load(self.folder / reading.domain_file, shape, center=reading.domain_center, scale=reading.domain_scale)

    def lexicon(self) -> Lexicon | None:
        """The words that the model was trained on; None where the bundle has no list of them."""
        if LEXICON not in self.manifest.files:
            return None
        try:
            document = json.loads((self.folder / LEXICON).read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise BundleError(f"bundle {self.name!r}: {LEXICON} cannot be read ({error}); export the bundle again") from error
        return Lexicon.from_json(document)

    @property
    def scores_columns(self) -> bool:
        """Whether one pass of an answer can give logits of several columns."""
        entry = self.manifest.graphs.get("mmu_extend")
        return entry is not None and any(port.name == "scored" for port in entry.inputs)

    @property
    def tokenizer_path(self) -> Path:
        return self.folder / TOKENIZER

    def has(self, graph: str) -> bool:
        """Return whether the bundle has this graph."""
        return graph in self.manifest.graphs

    def path(self, graph: str) -> Path:
        """Return the file of a graph; raises :class:`BundleError` if the bundle lacks it."""
        if graph not in self.manifest.graphs:
            known = ", ".join(self.manifest.graphs)
            raise BundleError(f"bundle {self.name!r} has no graph {graph!r} (it has {known or 'none'}); export it with that graph")
        return self.folder / self.manifest.graphs[graph].file

    @property
    def total_bytes(self) -> int:
        """Total size of the files listed in the manifest."""
        return sum(entry.size for entry in self.manifest.files.values())


@dataclass(frozen=True)
class FoundBundle:
    """An installed bundle; ``origin`` is "embedded" or "user"."""

    name: str
    folder: Path
    origin: str


def embedded_folder() -> Path:
    """Return the folder of the bundles in the wheel."""
    return Path(str(resources.files("f2edge"))) / "bundles"


def user_folder() -> Path:
    """Return the folder of the user's bundles; it may not exist."""
    from platformdirs import user_data_dir

    return Path(user_data_dir("f2edge", appauthor=False)) / "bundles"


def list_bundles() -> list[FoundBundle]:
    """Return the installed bundles; an embedded bundle hides a user's bundle of the same name."""
    found: dict[str, FoundBundle] = {}
    for origin, root in (("embedded", embedded_folder()), ("user", user_folder())):
        for folder in _subfolders(root):
            if (folder / MANIFEST).is_file():
                found.setdefault(folder.name, FoundBundle(folder.name, folder, origin))
    return list(found.values())


def find(source: str | os.PathLike[str]) -> Path:
    """Return the folder of a bundle given by name or path; raises :class:`BundleNotFoundError` listing the known names."""
    text = os.fspath(source)
    if isinstance(source, str) and NAME.fullmatch(text):
        for found in list_bundles():
            if found.name == text:
                return found.folder
    folder = Path(text)
    try:
        is_folder = folder.is_dir()
    except (OSError, ValueError):  # a name that is too long, or a NUL in it
        is_folder = False
    if text and is_folder:
        return folder
    known = ", ".join(found.name for found in list_bundles())
    raise BundleNotFoundError(f"no bundle {text[:200]!r}: neither a known name ({known or 'none installed'}) nor a folder")


def write_manifest(folder: str | os.PathLike[str], document: Mapping[str, Any]) -> Manifest:
    """Complete and write ``manifest.json``: size and sha256 of every file in ``folder``, the format version, checked as loading checks it.

    The document's own ``files`` and ``format_version`` are replaced.  The write is atomic, so a reader sees the old manifest or the new.

    Raises:
        BundleError: the document would be refused at loading; nothing is written then.
        OutputError: the folder cannot be written.
    """
    root = Path(folder)
    files = {
        path.relative_to(root).as_posix(): {"sha256": _sha256(path), "bytes": path.stat().st_size}
        for path in sorted(root.rglob("*"))
        if path.is_file() and path != root / MANIFEST and not path.name.startswith(".")
    }
    complete = {**document, "format_version": FORMAT_VERSION, "files": files}
    data = sealed(complete)
    manifest = check_manifest(json.loads(data))
    _write(root, data)
    return manifest


def seal_bundle(source: str | os.PathLike[str]) -> bool:
    """Add the checksum to the manifest of a bundle that was exported before manifests had one; return whether it was missing.

    Raises:
        BundleError: the bundle has another defect; nothing is written then.
        OutputError: the folder cannot be written.
    """
    folder = find(source)
    data = _manifest_bytes(folder)
    if has_seal(data):
        return False
    manifest = parse_manifest(data)
    _check_files(folder, manifest, verify=True)
    _write(folder, sealed(manifest.document))
    return True


def _write(folder: Path, data: bytes) -> None:
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".manifest-", delete=False) as file:
            file.write(data)
        Path(file.name).chmod(0o644)
        Path(file.name).replace(folder / MANIFEST)
    except OSError as error:
        raise OutputError(f"cannot write {folder / MANIFEST}: {error.strerror}") from error


def _subfolders(root: Path) -> Iterator[Path]:
    try:
        yield from sorted(entry for entry in root.iterdir() if entry.is_dir())
    except OSError:  # the folder is missing or unreadable: no bundles
        return


def _manifest_bytes(folder: Path) -> bytes:
    path = folder / MANIFEST
    try:
        if path.stat().st_size > LARGEST_MANIFEST_BYTES:
            raise BundleError(f"{path}: larger than {LARGEST_MANIFEST_BYTES >> 20} MiB; this is not a bundle's manifest")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise BundleNotFoundError(f"{folder}: no {MANIFEST} in it, so it is not a bundle; give the folder that export wrote") from error
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}); copy or export the bundle again") from error


def _check_files(folder: Path, manifest: Manifest, *, verify: bool) -> None:
    """Check that every listed file is whole and inside the folder, and that graphs take weights from no other files."""
    for name, entry in manifest.files.items():
        _check_file(folder, name, entry, verify=verify)
    for graph in manifest.graphs.values():
        check_external_data(folder, graph.file, manifest.files)


def _check_file(folder: Path, name: str, entry: FileEntry, *, verify: bool) -> None:
    path = folder / name
    try:
        if not path.resolve().is_relative_to(folder.resolve()):
            raise BundleError(f"{path}: leads outside the bundle's folder; copy the file itself into it")
        if not path.is_file():
            raise BundleError(f"{path}: missing from the bundle; copy or export the bundle again")
        size = path.stat().st_size
        if size != entry.size:
            raise ChecksumError(f"{path}: has {size} bytes, the manifest says {entry.size}; copy or export the bundle again")
        if verify and _sha256(path) != entry.sha256:
            raise ChecksumError(f"{path}: its SHA-256 differs from the manifest's: the file is damaged; copy or export the bundle again")
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle, before Python 3.13
        raise BundleError(f"{path}: cannot be read ({type(error).__name__}); copy or export the bundle again") from error


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
