"""Content credentials (C2PA): a signed statement in the file of who made the picture and with what; needs the extra ``f2edge[c2pa]``.

>>> signer = Signer.load("chain.pem", "key.pem")                                            # doctest: +SKIP
>>> save_image(image, "face.png", label(prompt="a face", seed=7, bundle="nano"), signer)    # doctest: +SKIP

The certificate is the user's: a chain of PEM certificates, leaf first, whose leaf may sign (digitalSignature) and is meant for it
(emailProtection or another purpose that C2PA allows); a self-signed leaf is refused.  Nothing is fetched from anywhere, neither when
signing (no time stamp) nor when reading.  A signed file has its own identity, so two of the same picture differ; their pixels do not.

Signing takes under a millisecond and adds 3 KB and the chain.  Who is trusted is for the reader to say: without anchors a good signature
is "valid", with the anchor that its chain leads to it is "trusted".
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from threading import Lock
from typing import Any

from f2edge.errors import InputError
from f2edge.pem import read_pem
from f2edge.provenance.label import Label

MIME_TYPES: Mapping[str, str] = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}
_SETTINGS: Mapping[str, Any] = {
    "builder": {"thumbnail": {"enabled": False}},
    "verify": {"verify_after_sign": False, "remote_manifest_fetch": False, "ocsp_fetch": False},
}
#: Not being known to a reader who gave no anchors is no fault of a signature.
_UNTRUSTED = "signingCredential.untrusted"


@dataclass(frozen=True)
class Credentials:
    """What a file's content credentials say.

    Attributes:
        state: "trusted", "valid" (whole, by a signer that the reader does not know) or "invalid".
        signer: common name and organisation of the certificate, as it says.
        source_type: IPTC digital source type of the first action that gives one.
        problems: codes of C2PA of what is wrong.
    """

    state: str
    signer: str = ""
    source_type: str | None = None
    problems: tuple[str, ...] = ()


class Signer:
    """A certificate chain and its key.  Safe to use from several threads."""

    def __init__(self, chain: bytes, key: bytes, algorithm: str) -> None:
        c2pa = _library()
        self._signer = c2pa.Signer.from_info(c2pa.C2paSignerInfo(algorithm, chain, key, None))
        self._lock = Lock()

    @classmethod
    def load(cls, chain: str | os.PathLike[str], key: str | os.PathLike[str]) -> Signer:
        """Read PEM files and sign once on trial.

        Raises:
            InputError: a file that cannot be read, a key of an unsuitable kind, a chain that does not belong to it or may not sign,
                or the extra is not installed.
        """
        _library()
        chain_pem, key_pem = read_pem(chain, "certificate chain", "CERTIFICATE"), read_pem(key, "key", "PRIVATE KEY")
        try:
            made = cls(chain_pem, key_pem, _algorithm(key_pem, key))
            signed = made.sign(_smallest_png(), "PNG", Label("http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"))
        except _library().C2paError as error:
            raise InputError(
                f"{os.fspath(chain)}: cannot sign content credentials ({error}); give a chain, leaf first, that may"
            ) from error
        found = read_credentials(signed, "PNG")
        if found is None or found.state == "invalid":
            problems = ", ".join(found.problems) if found else "no manifest"
            raise InputError(f"{os.fspath(chain)}: its signature is not valid ({problems}); give the chain of {os.fspath(key)}")
        return made

    def sign(self, data: bytes, kind: str, label: Label) -> bytes:
        """The bytes of a "PNG", "JPEG" or "WEBP" file with a manifest that says what ``label`` says of its source."""
        name, _, version = label.software.partition(" ")
        action = {"action": "c2pa.created", "digitalSourceType": label.source_type}
        manifest = {
            "claim_generator_info": [{"name": name or "f2edge", "version": version}],
            "assertions": [{"label": "c2pa.actions", "data": {"actions": [action]}}],
        }
        signed = io.BytesIO()
        with self._lock, _library().Builder.from_json(json.dumps(manifest), _context(b"")) as builder:
            builder.sign(self._signer, MIME_TYPES[kind], io.BytesIO(data), signed)
        return signed.getvalue()


def installed() -> bool:
    """Whether content credentials can be read and written here."""
    return find_spec("c2pa") is not None


def read_credentials(data: bytes, kind: str, anchors: bytes = b"") -> Credentials | None:
    """The content credentials of a picture's file; None where it has none.

    Args:
        data: the file, which has passed the image guard.
        kind: "PNG", "JPEG" or "WEBP".
        anchors: PEM certificates whose signatures are trusted.

    Raises:
        InputError: the extra is not installed.
    """
    c2pa = _library()
    try:
        reader = c2pa.Reader.try_create(MIME_TYPES[kind], io.BytesIO(data), context=_context(anchors))
        if reader is None:
            return None
        with reader:
            store = json.loads(reader.json())
    except (c2pa.C2paError, ValueError):
        return Credentials("invalid", problems=("manifest.unreadable",))
    return _credentials_of(store)


def read_anchors(path: str | os.PathLike[str]) -> bytes:
    """PEM certificates whose signatures are trusted; :class:`InputError` where the file holds none, or the extra is not installed."""
    _library()
    from cryptography.x509 import load_pem_x509_certificates

    data = read_pem(path, "trust anchors", "CERTIFICATE")
    try:
        load_pem_x509_certificates(data)  # the library takes a damaged one for none
    except ValueError as error:
        raise InputError(f"trust anchors {os.fspath(path)}: hold no certificate that can be read; give PEM certificates") from error
    return data


def _credentials_of(store: Mapping[str, Any]) -> Credentials:
    """Of a manifest store as the library tells it; a stranger wrote it, so nothing is taken for granted."""
    failures = _at(store, "validation_results", "activeManifest", "failure", kind=list)
    problems = tuple(dict.fromkeys(str(_at(failure, "code", kind=str)) for failure in failures))
    state = str(_at(store, "validation_state", kind=str)).lower()
    manifest = _at(store, "manifests", _at(store, "active_manifest", kind=str), kind=dict)
    names = [_at(manifest, "signature_info", key, kind=str) for key in ("common_name", "issuer")]
    sources = [
        source
        for assertion in _at(manifest, "assertions", kind=list)
        for action in _at(assertion, "data", "actions", kind=list)
        if (source := _at(action, "digitalSourceType", kind=str))
    ]
    return Credentials(
        state=state if state in ("trusted", "valid") else "invalid",
        signer=", ".join(filter(None, names)),
        source_type=sources[0] if sources else None,
        problems=tuple(problem for problem in problems if problem != _UNTRUSTED or state == "invalid"),
    )


def _at(table: Any, *path: str, kind: type) -> Any:
    """What stands at a path of nested tables, an empty ``kind`` where there is nothing of that kind."""
    for key in path:
        table = table.get(key) if isinstance(table, dict) else None
    return table if isinstance(table, kind) else kind()


def _library() -> Any:
    try:
        import c2pa
    except ImportError as error:
        raise InputError("content credentials need the extra: pip install 'f2edge[c2pa]'") from error
    return c2pa


@lru_cache(maxsize=8)
def _context(anchors: bytes) -> Any:
    trust = {"trust": {"trust_anchors": anchors.decode("ascii", errors="replace")}} if anchors else {}
    return _library().Context.from_dict({**_SETTINGS, **trust})


def _algorithm(key: bytes, path: str | os.PathLike[str]) -> str:
    """C2PA's name of the signature that a private key makes."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        private = load_pem_private_key(key, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InputError(f"key {os.fspath(path)}: is no private key that opens without a password; give a PKCS #8 key as PEM") from error
    if isinstance(private, ec.EllipticCurvePrivateKey) and private.curve.name in ("secp256r1", "secp384r1", "secp521r1"):
        return {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}[private.curve.name]
    if isinstance(private, ed25519.Ed25519PrivateKey):
        return "ed25519"
    if isinstance(private, rsa.RSAPrivateKey):
        return "ps256"
    raise InputError(f"key {os.fspath(path)}: of a kind that C2PA does not know; use P-256, P-384, P-521, Ed25519 or RSA")


def _smallest_png() -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (1, 1)).save(buffer, "PNG")
    return buffer.getvalue()
