"""Checks of addresses and certificates that server and client share."""

from __future__ import annotations

import ipaddress
import os
import ssl
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path

from f2edge.errors import InputError

_LARGEST_BYTES = 1 << 20  # every authority that a system trusts, and more
_END = b"-----END CERTIFICATE-----"


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


def check_dates(path: Path, chain: bytes, now_s: float | None = None) -> float:
    """Check that the first certificate of a chain is valid now; return when it expires, as ``time.time()``.

    Args:
        path: file of the chain, for the message.
        chain: its bytes.
        now_s: time as ``time.time()``; None for the current one.

    Raises:
        InputError: the certificate has expired, is not valid yet, or cannot be parsed.
    """
    dates = _dates(path, chain)
    now = time.time() if now_s is None else now_s
    if now > dates[1]:
        raise InputError(f"{path}: the certificate expired at {_iso(dates[1])}; renew it")
    if now < dates[0]:
        raise InputError(f"{path}: the certificate is not valid before {_iso(dates[0])}; check it and the clock")
    return dates[1]


def _dates(path: Path, chain: bytes) -> tuple[float, float]:
    """Return the first and the last second of a chain's first certificate."""
    with tempfile.NamedTemporaryFile(suffix=".pem") as file:  # OpenSSL's decoder, which only takes files, stops at the first one
        file.write(chain.partition(_END)[0] + _END + b"\n")
        file.flush()
        try:
            found = ssl._ssl._test_decode_cert(file.name)  # type: ignore[attr-defined]  # noqa: SLF001  there is no public decoder
            return ssl.cert_time_to_seconds(found["notBefore"]), ssl.cert_time_to_seconds(found["notAfter"])
        except (ssl.SSLError, KeyError, ValueError) as error:
            raise InputError(f"{path}: holds no certificate that can be read; give a PEM chain") from error


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")
