"""Bearer tokens: several, by name, kept as hashes in a file that may change while the server runs.

A line of the file is ``NAME sha256:HEX``; blank lines and lines that begin with ``#`` are skipped.  ``f2edge token NAME --token-file
FILE`` makes a token of 256 random bits, shows it once and appends its line, so a plain hash is as good as a slow one.  Removing a line
locks its holder out within a second; a file that has become unreadable keeps the tokens as they were and says so in the log.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
import time
from collections.abc import Mapping
from pathlib import Path

from f2edge.errors import InputError

logger = logging.getLogger(__name__)

_LINE = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,63})\s+sha256:([0-9a-f]{64})")
_LARGEST_FILE_BYTES = 1 << 20
_SCHEME = "bearer "
_LONGEST_TOKEN = 512


class Tokens:
    """The tokens of a file.

    Raises:
        InputError: the file cannot be read or has a line of another form; later on that is only logged.
    """

    def __init__(self, path: Path, *, look_again_s: float = 1.0) -> None:
        self._path = path
        self._look_again_s = look_again_s
        self._stamp = _stamp(path)
        self._hashes = read_tokens(path)
        self._looked = time.monotonic()

    def holder(self, authorization: str) -> str | None:
        """Name behind the value of an ``authorization`` header, None where it is no valid bearer token."""
        self._look()
        if authorization[: len(_SCHEME)].lower() != _SCHEME or len(authorization) > _LONGEST_TOKEN:
            return None
        digest = _hash(authorization[len(_SCHEME) :].strip())
        found = None
        for name, known in self._hashes.items():  # all of them, so that time does not tell which one is near
            if hmac.compare_digest(known, digest):
                found = name
        return found

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked < self._look_again_s:
            return
        self._looked = now
        try:
            stamp = _stamp(self._path)
            if stamp == self._stamp:
                return
            self._hashes = read_tokens(self._path)
            self._stamp = stamp
            logger.info("tokens read again", extra={"tokens": len(self._hashes)})
        except InputError:
            logger.exception("the token file cannot be used any more; the tokens stay as they were")


def read_tokens(path: Path) -> Mapping[str, str]:
    """Hash of each name; raises :class:`InputError` naming the line that is wrong, never its content."""
    try:
        if path.stat().st_size > _LARGEST_FILE_BYTES:
            raise InputError(f"{path}: larger than {_LARGEST_FILE_BYTES >> 20} MiB; this is no token file")
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a token file ({type(error).__name__}); make one with `f2edge token`") from error
    hashes: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        found = _LINE.fullmatch(line.strip())
        if found is None:
            raise InputError(f"{path}: line {number} is not NAME sha256:HEX; make tokens with `f2edge token`")
        if found[1] in hashes:
            raise InputError(f"{path}: line {number} repeats the name {found[1]!r}; give each token its own")
        hashes[found[1]] = found[2]
    return hashes


def new_token(path: Path, name: str) -> str:
    """Make a token and append its line to the file, which only its owner may read.

    Raises:
        InputError: a name that is taken or not plain, or a file that cannot be used.
    """
    if _LINE.fullmatch(f"{name} sha256:{'0' * 64}") is None:
        raise InputError(f"token name {name[:80]!r}: use letters, digits, '.', '_' and '-', at most 64")
    if path.exists() and name in read_tokens(path):
        raise InputError(f"{path}: has a token named {name!r} already; remove its line or choose another name")
    token = secrets.token_urlsafe(32)
    try:
        before = path.read_bytes() if path.exists() else b""
        start = "" if not before or before.endswith(b"\n") else "\n"  # an editor may have left the last line without its end
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "w", encoding="utf-8") as file:
            file.write(f"{start}{name} sha256:{_hash(token)}\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); choose another file") from error
    return token


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        seen = path.stat()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); make a token with `f2edge token`") from error
    return seen.st_mtime_ns, seen.st_size, seen.st_ino
