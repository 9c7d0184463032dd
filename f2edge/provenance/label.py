"""Labels of generated pictures: each file says, to machines, that a model made it, which one, and from what.

The label is an XMP packet with IPTC's ``DigitalSourceType``: ``trainedAlgorithmicMedia`` for a generated face,
``compositeWithTrainedAlgorithmicMedia`` for an edited picture (IPTC NewsCodes, https://cv.iptc.org/newscodes/digitalsourcetype/).  Any
XMP reader shows it; PNG files repeat it as text chunks.  A label is a statement, not a proof: whoever re-encodes a picture can drop it.
The mark in its pixels stays (:mod:`f2edge.provenance.watermark`); a signed statement is :mod:`f2edge.provenance.c2pa`.

>>> read_label("face.png").seed                                                             # doctest: +SKIP
7
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET
from xml.sax.saxutils import quoteattr

from f2edge.imaging.guard import ImageLimits, decode, read_file

GENERATED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
EDITED = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"

_IPTC = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
_XMP = "http://ns.adobe.com/xap/1.0/"
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_F2EDGE = "urn:f2edge:label:1"
_LARGEST_PACKET_BYTES = 1 << 16
#: What is read to look for marks: every size that f2edge writes, and more.
LIMITS = ImageLimits(largest_bytes=64 << 20, smallest_side=1, largest_pixels=4096 * 4096, largest_ratio=4096)


@dataclass(frozen=True)
class Label:
    """What a generated picture says of itself.

    Attributes:
        source_type: :data:`GENERATED` or :data:`EDITED`, or another IPTC source type found in a foreign file.
        software: "f2edge" and its version.
        bundle, prompt, seed: the model and the request; None where the file does not say.
    """

    source_type: str
    software: str = ""
    bundle: str | None = None
    prompt: str | None = None
    seed: int | None = None

    @property
    def synthetic(self) -> bool:
        """Whether a model made the picture, or a part of it."""
        return self.source_type.endswith(("/trainedAlgorithmicMedia", "/compositeWithTrainedAlgorithmicMedia"))


def label(*, prompt: str, seed: int, bundle: str, edited: bool = False) -> Label:
    """The label of a picture that this f2edge makes."""
    from f2edge import __version__

    return Label(EDITED if edited else GENERATED, f"f2edge {__version__}", bundle, prompt, seed)


def xmp_packet(content: Label) -> bytes:
    """The label as an XMP packet.  It holds no time and no name, so the same request gives the same file."""
    own = {"bundle": content.bundle, "prompt": content.prompt, "seed": content.seed}
    attributes = [
        f"Iptc4xmpExt:DigitalSourceType={quoteattr(content.source_type)}",
        f"xmp:CreatorTool={quoteattr(content.software)}",
        *(f"f2edge:{key}={quoteattr(str(value))}" for key, value in own.items() if value is not None),
    ]
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{_RDF}"><rdf:Description rdf:about="" '
        f'xmlns:Iptc4xmpExt="{_IPTC}" xmlns:xmp="{_XMP}" xmlns:f2edge="{_F2EDGE}" {" ".join(attributes)}/>'
        '</rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
    ).encode()


def save_arguments(content: Label, kind: str) -> dict[str, Any]:
    """Arguments of Pillow's ``save`` that put the label into a "PNG", "JPEG" or "WEBP" file."""
    packet = xmp_packet(content)
    if kind != "PNG":
        return {"xmp": packet}
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    chunks.add_itxt("XML:com.adobe.xmp", packet.decode())
    for key, value in (("Software", content.software), ("prompt", content.prompt), ("seed", content.seed), ("bundle", content.bundle)):
        if value is not None:
            chunks.add_itxt(key, str(value))
    return {"pnginfo": chunks}


def read_label(file: str | os.PathLike[str] | bytes, *, name: str = "the image") -> Label | None:
    """The label of a picture, None where it carries no IPTC source type.

    Args:
        file: a path, or the bytes of a file.
        name: what errors call bytes.

    Raises:
        ImageError: the file is missing, damaged or no picture.
    """
    data = bytes(file) if isinstance(file, bytes) else read_file(file, LIMITS)
    name = name if isinstance(file, bytes) else str(Path(file))
    packet = decode(data, name=name, limits=LIMITS).info.get("xmp") or b""
    if not packet or len(packet) > _LARGEST_PACKET_BYTES:
        return None
    try:
        # XMP in these files is UTF-8.  In UTF-16 (which has NULs) the parser would see a document type that the next line does not.
        text = packet if isinstance(packet, str) else packet.decode("utf-8")
        # A packet of a stranger: no document type, hence no entities to expand.
        return None if "<!" in text or "\0" in text else _label_of(ET.fromstring(text))  # noqa: S314
    except (ET.ParseError, ValueError):
        return None


def _label_of(root: ET.Element) -> Label | None:
    """Properties may stand as attributes of a Description or as its child elements; both are XMP."""
    found: dict[str, str] = {}
    for description in root.iter(f"{{{_RDF}}}Description"):
        found |= {key: str(value) for key, value in description.attrib.items()}
        found |= {child.tag: child.text for child in description if child.text}
    source_type = found.get(f"{{{_IPTC}}}DigitalSourceType")
    if source_type is None:
        return None
    seed = found.get(f"{{{_F2EDGE}}}seed", "")
    return Label(
        source_type=source_type,
        software=found.get(f"{{{_XMP}}}CreatorTool", ""),
        bundle=found.get(f"{{{_F2EDGE}}}bundle"),
        prompt=found.get(f"{{{_F2EDGE}}}prompt"),
        seed=int(seed) if seed.isascii() and seed.isdigit() and len(seed) < 20 else None,
    )
