"""Everything that a picture's file says of its origin: label, watermark and content credentials.

>>> marks = find_marks("face.png")                                                          # doctest: +SKIP
>>> marks.label.seed, marks.watermarks["public"].found                                      # doctest: +SKIP
(7, True)

The file may come from anywhere; it passes the image guard before anything looks at it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from f2edge.imaging.guard import kind_of, read_file
from f2edge.imaging.images import load_image
from f2edge.provenance.c2pa import Credentials, installed, read_credentials
from f2edge.provenance.label import LIMITS, Label, read_label
from f2edge.provenance.watermark import PUBLIC, Detection, Watermark


@dataclass(frozen=True)
class Marks:
    """What was found in one file.

    Attributes:
        label: its XMP statement, None where there is none.
        watermarks: what looking for each mark gave, by the name of its key.
        credentials: content credentials; None where there are none, or where they were not looked for.
        credentials_read: whether they were looked for: the extra is installed.
    """

    label: Label | None
    watermarks: Mapping[str, Detection]
    credentials: Credentials | None
    credentials_read: bool

    @property
    def names(self) -> tuple[str, ...]:
        """Those found: "xmp", "watermark", "c2pa"; a broken signature is not counted."""
        found = {
            "xmp": self.label is not None,
            "watermark": any(detection.found for detection in self.watermarks.values()),
            "c2pa": self.credentials is not None and self.credentials.state != "invalid",
        }
        return tuple(name for name, there in found.items() if there)

    @property
    def synthetic(self) -> bool:
        """Whether one of them says that a model drew the picture, or a part of it.  False says nothing: marks can be lost."""
        signed = self.credentials.source_type if self.credentials is not None and "c2pa" in self.names else None
        statements = [self.label, Label(signed) if signed else None]
        return "watermark" in self.names or any(label is not None and label.synthetic for label in statements)


def find_marks(file: str | os.PathLike[str] | bytes, keys: Mapping[str, Watermark] | None = None, anchors: bytes = b"") -> Marks:
    """Look for every mark.

    Args:
        file: a path, or the bytes of a file.
        keys: the watermarks to look for by name; by default the public one.
        anchors: PEM certificates whose content credentials are trusted.

    Raises:
        ImageError: the file is missing, damaged or no picture.
    """
    data = bytes(file) if isinstance(file, bytes) else read_file(file, LIMITS)
    name = "the image" if isinstance(file, bytes) else os.fspath(file)
    label = read_label(data, name=name)
    image = load_image(data, limits=LIMITS)
    found = {key: mark.detect(image) for key, mark in (keys or {"public": PUBLIC}).items()}
    kind, readable = kind_of(data), installed()
    assert kind is not None  # the guard let it pass
    return Marks(label, found, read_credentials(data, kind, anchors) if readable else None, readable)
