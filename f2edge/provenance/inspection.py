"""Reading of all marks of origin in a picture file: label, watermark and content credentials.

>>> marks = find_marks("face.png")                                                          # doctest: +SKIP
>>> marks.label.seed, marks.watermarks["public"].found                                      # doctest: +SKIP
(7, True)

Files are untrusted and pass the image guard first.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from f2edge.imaging.guard import kind_of, read_file
from f2edge.imaging.images import load_image
from f2edge.provenance.c2pa import Credentials, installed, read_credentials
from f2edge.provenance.label import LIMITS, Label, read_label
from f2edge.provenance.watermark import PUBLIC, Watermark, WatermarkDetection


@dataclass(frozen=True)
class Marks:
    """Marks found in one file.

    Attributes:
        label: XMP label, or None.
        watermarks: detection result by the name of its key.
        credentials: content credentials; None if absent or not read.
        credentials_read: whether the extra for content credentials is installed.
    """

    label: Label | None
    watermarks: Mapping[str, WatermarkDetection]
    credentials: Credentials | None
    credentials_read: bool

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the marks found: "xmp", "watermark", "c2pa"; an invalid signature does not count."""
        found = {
            "xmp": self.label is not None,
            "watermark": any(detection.found for detection in self.watermarks.values()),
            "c2pa": self.credentials is not None and self.credentials.state != "invalid",
        }
        return tuple(name for name, there in found.items() if there)

    @property
    def synthetic(self) -> bool:
        """Whether a mark states that a model generated all or part of the picture.  False proves nothing: marks can be lost."""
        signed = self.credentials.source_type if self.credentials is not None and "c2pa" in self.names else None
        statements = [self.label, Label(signed) if signed else None]
        return "watermark" in self.names or any(label is not None and label.synthetic for label in statements)


def find_marks(file: str | os.PathLike[str] | bytes, keys: Mapping[str, Watermark] | None = None, anchors: bytes = b"") -> Marks:
    """Return all marks of a file.

    Args:
        file: a path, or the bytes of a file.
        keys: watermarks to look for, by name; by default the public one.
        anchors: PEM certificates of trusted signers.

    Raises:
        ImageError: the file is missing, damaged or not a picture.
    """
    data = bytes(file) if isinstance(file, bytes) else read_file(file, LIMITS)
    name = "the image" if isinstance(file, bytes) else os.fspath(file)
    label = read_label(data, name=name)
    image = load_image(data, limits=LIMITS)
    found = {key: mark.detect(image) for key, mark in (keys or {"public": PUBLIC}).items()}
    kind, readable = kind_of(data), installed()
    assert kind is not None  # the guard let it pass
    return Marks(label, found, read_credentials(data, kind, anchors) if readable else None, readable)
