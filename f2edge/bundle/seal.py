"""Checksum of a bundle's manifest, over every byte of the file.

The checksum is the document's first key.  It is the SHA-256 of the file with 64 zeros in the checksum's place, so the manifest stays one
file that is replaced atomically.  It detects damage, not forgery: the checksum has no key.

>>> check_seal(sealed({"name": "nano"}))
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from f2edge.errors import BundleError, ChecksumError

KEY = "checksum"
_BLANK = b"0" * 64
_HEAD = b'{\n "checksum": "'


def sealed(document: Mapping[str, Any]) -> bytes:
    """Return a manifest's bytes with their checksum.

    Raises:
        BundleError: the document is not plain JSON with finite numbers.
    """
    rest = {key: value for key, value in document.items() if key != KEY}
    try:
        data = json.dumps({KEY: _BLANK.decode(), **rest}, indent=1, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise BundleError(f"manifest: {error}; it must be plain JSON with finite numbers") from error
    return _HEAD + _digest(data) + data[len(_HEAD) + len(_BLANK) :]


def has_seal(data: bytes) -> bool:
    """Return whether a manifest's bytes begin with a checksum, right or wrong."""
    return data.startswith(_HEAD)


def check_seal(data: bytes) -> None:
    """Check the checksum of a manifest's bytes.

    Raises:
        BundleError: there is none.
        ChecksumError: it differs.
    """
    if not has_seal(data):
        raise BundleError("manifest: has no checksum; export the bundle again, or add it to one that you trust with `f2edge verify --seal`")
    end = len(_HEAD) + len(_BLANK)
    if data[len(_HEAD) : end] != _digest(_HEAD + _BLANK + data[end:]):
        raise ChecksumError("manifest: its checksum differs: the file is damaged; copy or export the bundle again")


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest().encode()
