"""The studio: a page at ``/`` for people, made of three files that are sent as they are.

They load nothing from elsewhere, and the policy that goes with them lets a browser load nothing from elsewhere either.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from types import MappingProxyType

#: Path → file and type.
FILES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "/": ("index.html", "text/html; charset=utf-8"),
        "/studio.css": ("studio.css", "text/css; charset=utf-8"),
        "/studio.js": ("studio.js", "text/javascript; charset=utf-8"),
    }
)
HEADERS: Mapping[str, str] = MappingProxyType(
    {
        "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
        "referrer-policy": "no-referrer",
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
    }
)


def read_page(path: str) -> tuple[str, bytes]:
    """Return type and content of one of :data:`FILES`."""
    name, kind = FILES[path]
    return kind, (files("f2edge.http") / "assets" / name).read_bytes()
