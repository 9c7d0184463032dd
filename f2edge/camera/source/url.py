"""Parser of ``--source`` and redaction of credentials, which appear in no log, event, error or recording.

>>> parse_source("rtsp://admin:secret@10.0.0.5/stream").shown
'rtsp://***@10.0.0.5/stream'
>>> parse_source("csi://1").kind
'csi'
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from f2edge.errors import InputError

_SCHEMES = ("rtsp", "rtsps", "http", "https", "rtmp", "udp", "tcp")
_SECRET_KEY = re.compile(r"(?i)([?&;][^=&;#]*(?:pass|pwd|token|secret|key|auth|user|login|sig)[^=&;#]*=)[^&;#\s]*")
_ADDRESS = re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://)(\S*)")
_KINDS = "demo, a webcam's number, a video file, a folder of images, a named pipe, rtsp://…, csi://0 or - (MJPEG from stdin)"


@dataclass(frozen=True)
class SourceUrl:
    """Parsed source.

    Attributes:
        kind: demo, webcam, stream, csi, file, folder, pipe or stdin.
        value: number, path or address with its credentials; never displayed.
        shown: display name without credentials.
        live: whether frames arrive in real time, so that late ones are dropped; otherwise every frame is processed.
    """

    kind: str
    value: str = field(repr=False)
    shown: str
    live: bool


def parse_source(text: str) -> SourceUrl:
    """Parse a source.

    Raises:
        InputError: unknown kind, or missing file or folder.  The message contains no credentials.
    """
    if text == "demo":
        return SourceUrl("demo", "", "demo", live=True)
    if text == "-":
        return SourceUrl("stdin", "", "stdin", live=True)
    if text.isdecimal() and len(text) <= 3:
        return SourceUrl("webcam", text, f"webcam {int(text)}", live=True)
    return _address(text) if "://" in text else _path(text)


def _address(text: str) -> SourceUrl:
    scheme, _, rest = text.partition("://")
    if scheme.lower() == "csi":
        if not (rest.isdecimal() and len(rest) <= 2):
            raise InputError(f"--source {redact(text)}: write csi:// and the number of the camera, as in csi://0")
        return SourceUrl("csi", rest, f"csi {int(rest)}", live=True)
    if scheme.lower() not in _SCHEMES:
        raise InputError(f"--source {redact(text)}: unknown; give {_KINDS}")
    if not rest.strip("/"):
        raise InputError(f"--source {redact(text)}: the address has no host")
    return SourceUrl("stream", f"{scheme}://{_encoded(rest)}", redact(text), live=True)


def _encoded(rest: str) -> str:
    """Return an address after its scheme with ``/``, ``?`` and ``#`` in a password encoded; FFmpeg would else misread the host."""
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    port = authority.rpartition(":")[2]
    if "@" in authority or "@" not in rest or ":" not in authority or authority.startswith("[") or port.isdecimal():
        return rest
    credentials, _, host = rest.rpartition("@")
    return f"{quote(credentials, safe=':%')}@{host}"


def _path(text: str) -> SourceUrl:
    if not text:
        raise InputError(f"--source is empty; give {_KINDS}")
    path = Path(text)
    with suppress(OSError):  # a name that is too long, or a folder without permission
        if path.is_fifo():
            return SourceUrl("pipe", text, text, live=True)
        if path.is_dir():
            return SourceUrl("folder", text, text, live=False)
        if path.is_file():
            return SourceUrl("file", text, text, live=False)
    raise InputError(f"--source {text[:200]!r}: no such file or folder; give {_KINDS}")


def redact(text: str) -> str:
    """Return a text with the credentials of every address in it replaced by ``***``.

    Everything between ``://`` and the last ``@`` is replaced, since a password may contain slashes, question marks or ``@``; so are the
    values of parameters named like secrets.
    """
    return _ADDRESS.sub(lambda found: found[1] + _bare(found[2]), text)


def _bare(address: str) -> str:
    _, mark, host = address.rpartition("@")
    return _SECRET_KEY.sub(r"\1***", ("***@" if mark else "") + host)
