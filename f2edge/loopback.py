"""Loopback test, used by servers before they listen in plaintext and by clients before they send a token."""

from __future__ import annotations

import ipaddress


def is_loopback(host: str) -> bool:
    """Return whether a host is a loopback address or the name "localhost"; other names are not resolved and count as remote."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
