"""Checks of addresses and certificates that server and client share."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path

from f2edge.errors import InputError

_LARGEST_BYTES = 1 << 20  # every authority that a system trusts, and more


def is_loopback(host: str) -> bool:
    """Return whether a host is a loopback address or the name "localhost"; other names are not resolved and count as remote."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def read_pem(path: str | os.PathLike[str], what: str, block: str) -> bytes:
    """Return the bytes of a PEM file, checked before a TLS library parses them.

    Args:
        path: file to read.
        what: name of the file in error messages, such as "client key".
        block: required block type: "CERTIFICATE" or "PRIVATE KEY".

    Raises:
        InputError: the file cannot be read, is larger than 1 MiB or holds no such block.
    """
    name = os.fspath(path)
    try:
        with Path(name).open("rb") as file:
            data = file.read(_LARGEST_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{what} {name[:200]}: cannot be read ({reason}); give a PEM file") from error
    if len(data) > _LARGEST_BYTES or b"-----BEGIN " not in data or f"{block}-----".encode() not in data:
        raise InputError(f"{what} {name[:200]}: holds no {block.lower()} in PEM form; give a PEM file that does")
    return data
