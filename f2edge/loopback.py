"""Whether an address stays on this machine: what a server asks before it listens, and a client before it shows its token."""

from __future__ import annotations

import ipaddress


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine and no other; of names, "localhost" alone is trusted to."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
