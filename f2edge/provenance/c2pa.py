"""Content credentials (C2PA): a signed statement of origin inside the file; needs the extra ``f2edge[c2pa]``.

>>> signer = Signer.load("chain.pem", "key.pem")                                            # doctest: +SKIP
>>> save_image(image, "face.png", label(prompt="a face", seed=7, bundle="nano"), signer)    # doctest: +SKIP

The user supplies the certificate chain as PEM, leaf first.  The leaf needs the key usage digitalSignature and an extended key usage that
C2PA allows, such as emailProtection; a self-signed leaf is refused.  Neither signing (no time stamp) nor reading uses the network.  Every
signed file gets a new identifier, so two signatures of one picture differ; their pixels do not.

Signing takes under a millisecond and adds 3 KB and the chain.  Without trust anchors a good signature reads as "valid"; with the anchor
of its chain, as "trusted".
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
from f2edge.provenance.label import Label
from f2edge.transport import read_pem

MIME_TYPES: Mapping[str, str] = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}
_SETTINGS: Mapping[str, Any] = {
    "builder": {"thumbnail": {"enabled": False}},
    "verify": {"verify_after_sign": False, "remote_manifest_fetch": False, "ocsp_fetch": False},
}
#: Status code of a signature whose signer is not among the anchors; not an error when no anchors are given.
_UNTRUSTED = "signingCredential.untrusted"


@dataclass(frozen=True)
class Credentials:
    """Content credentials read from a file.

    Attributes:
        state: "trusted", "valid" (intact, signer not among the anchors) or "invalid".
        signer: common name and organisation from the certificate; unverified unless "trusted".
        source_type: IPTC digital source type of the first action that gives one.
        problems: C2PA status codes of the failures.
    """

    state: str
    signer: str = ""
    source_type: str | None = None
    problems: tuple[str, ...] = ()


class Signer:
    """Signer with a certificate chain and its key; thread-safe."""

    def __init__(self, chain: bytes, key: bytes, algorithm: str) -> None:
        c2pa = _library()
        self._signer = c2pa.Signer.from_info(c2pa.C2paSignerInfo(algorithm, chain, key, None))
        self._lock = Lock()

    @classmethod
    def load(cls, chain: str | os.PathLike[str], key: str | os.PathLike[str]) -> Signer:
        """Read PEM files and check them with a trial signature.

        Raises:
            InputError: a file cannot be read, the key is of an unsupported type, the chain does not match the key or may not sign,
                or the extra is not installed.
        """
        _library()
        chain_pem, key_pem = read_pem(chain, "certificate chain", "CERTIFICATE"), read_pem(key, "key", "PRIVATE KEY")
        try:
            made = cls(chain_pem, key_pem, _algorithm(key_pem, key))
            signed = made.sign(_smallest_png(), "PNG", Label("http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"))
        except _library().C2paError as error:
            raise InputError(
                f"{os.fspath(chain)}: cannot sign content credentials ({error}); give a chain, leaf first, that is allowed to sign"
            ) from error
        found = read_credentials(signed, "PNG")
        if found is None or found.state == "invalid":
            problems = ", ".join(found.problems) if found else "no manifest"
            raise InputError(f"{os.fspath(chain)}: its signature is not valid ({problems}); give the chain of {os.fspath(key)}")
        return made

    def sign(self, data: bytes, kind: str, label: Label) -> bytes:
        """Return the bytes of a "PNG", "JPEG" or "WEBP" file with a signed manifest that states ``label``'s source type."""
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
    """Return whether the C2PA library is installed."""
    return find_spec("c2pa") is not None


def read_credentials(data: bytes, kind: str, anchors: bytes = b"") -> Credentials | None:
    """Return the content credentials of a picture's file, or None.

    Args:
        data: bytes of a file that has passed the image guard.
        kind: "PNG", "JPEG" or "WEBP".
        anchors: PEM certificates of trusted signers.

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
    """Return the PEM certificates of a file of trust anchors.

    Raises:
        InputError: the file holds no readable certificate, or the extra is not installed.
    """
    _library()
    from cryptography.x509 import load_pem_x509_certificates

    data = read_pem(path, "trust anchors", "CERTIFICATE")
    try:
        load_pem_x509_certificates(data)  # the library ignores damaged certificates
    except ValueError as error:
        raise InputError(f"trust anchors {os.fspath(path)}: hold no certificate that can be read; give PEM certificates") from error
    return data


def _credentials_of(store: Mapping[str, Any]) -> Credentials:
    """Return the credentials of a manifest store; the store is untrusted, so every type is checked."""
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
    """Return the value at a path of nested tables, or an empty ``kind`` if it is absent or of another type."""
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
    """Return C2PA's name of a private key's signature algorithm."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        private = load_pem_private_key(key, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InputError(f"key {os.fspath(path)}: is not an unencrypted private key; give a PKCS #8 key as PEM") from error
    if isinstance(private, ec.EllipticCurvePrivateKey) and private.curve.name in ("secp256r1", "secp384r1", "secp521r1"):
        return {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}[private.curve.name]
    if isinstance(private, ed25519.Ed25519PrivateKey):
        return "ed25519"
    if isinstance(private, rsa.RSAPrivateKey):
        return "ps256"
    raise InputError(f"key {os.fspath(path)}: of a type that C2PA does not support; use P-256, P-384, P-521, Ed25519 or RSA")


def _smallest_png() -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (1, 1)).save(buffer, "PNG")
    return buffer.getvalue()
