"""Content credentials with a chain made here: signed, read, broken, and refused where they cannot be made."""

from __future__ import annotations

import builtins
import io
import json
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from f2edge.cli.main import run
from f2edge.errors import ImageError, InputError
from f2edge.provenance.c2pa import Credentials, Signer, installed, read_credentials
from f2edge.provenance.inspection import find_marks
from f2edge.provenance.label import EDITED, GENERATED, label
from f2edge.provenance.saving import encode, save_image
from f2edge.v1 import face_pb2 as pb
from tests.support.serving import ScriptedEngine, scripted, serving, stub

pytest.importorskip("c2pa", reason="the extra f2edge[c2pa] is not installed")
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

KINDS = ("PNG", "JPEG", "WEBP")


def name(of: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, of), x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Testers")])


def usage(*, signs: bool) -> x509.KeyUsage:
    """Of a leaf, which signs, or of an authority, which certifies."""
    rest = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only", "decipher_only"), False
    )
    return x509.KeyUsage(digital_signature=signs, key_cert_sign=not signs, crl_sign=not signs, **rest)


def private_pem(key: Any, password: bytes | None = None) -> bytes:
    hidden = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    pem: bytes = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, hidden)
    return pem


def certificates(leaf_key: Any) -> tuple[bytes, bytes]:
    """A chain for the key, leaf first, and its root."""
    root_key = ec.generate_private_key(ec.SECP256R1())
    root_id = x509.SubjectKeyIdentifier.from_public_key(root_key.public_key())
    now = datetime.now(timezone.utc)

    def begun(subject: str, key: Any, *, authority: bool) -> x509.CertificateBuilder:
        builder = x509.CertificateBuilder().subject_name(name(subject)).issuer_name(name("test root")).public_key(key)
        builder = builder.serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        builder = builder.add_extension(x509.BasicConstraints(authority, None), critical=True)
        return builder.add_extension(usage(signs=not authority), critical=True)

    root = begun("test root", root_key.public_key(), authority=True).add_extension(root_id, critical=False).sign(root_key, hashes.SHA256())
    leaf = (
        begun("test signer", leaf_key.public_key(), authority=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(root_id), critical=False)
        .sign(root_key, hashes.SHA256())
    )
    pems = [certificate.public_bytes(serialization.Encoding.PEM) for certificate in (leaf, root)]
    return b"".join(pems), pems[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """chain.pem, key.pem, root.pem, and files that cannot be used."""
    made = tmp_path_factory.mktemp("signing")
    key = ec.generate_private_key(ec.SECP256R1())
    chain, root = certificates(key)
    for file, data in (
        ("chain.pem", chain),
        ("root.pem", root),
        ("key.pem", private_pem(key)),
        ("locked.pem", private_pem(key, b"password")),
        ("other.pem", private_pem(ec.generate_private_key(ec.SECP256R1()))),
        ("strange.pem", private_pem(ec.generate_private_key(ec.SECP256K1()))),
        ("text.pem", b"no PEM"),
        ("junk.pem", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
    ):
        (made / file).write_bytes(data)
    return made


@pytest.fixture(scope="module")
def signer(folder: Path) -> Signer:
    return Signer.load(folder / "chain.pem", folder / "key.pem")


def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, size=(48, 64, 3), dtype=np.uint8))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("edited", [False, True])
def test_a_signed_file_says_who_and_what(signer: Signer, folder: Path, kind: str, edited: bool) -> None:
    said = label(prompt="a face", seed=7, bundle="nano", edited=edited)
    plain, signed = (encode(image(), kind, said, signer=s) for s in (None, signer))
    found = read_credentials(signed, kind)
    source = EDITED if edited else GENERATED
    assert found == Credentials("valid", "test signer, Testers", source)
    assert read_credentials(signed, kind, (folder / "root.pem").read_bytes()) == Credentials("trusted", "test signer, Testers", source)
    assert read_credentials(plain, kind) is None
    pixels = [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in (plain, signed)]
    assert np.array_equal(pixels[0], pixels[1])
    marks = find_marks(signed)
    assert (marks.names, marks.synthetic) == (("xmp", "c2pa"), True)
    assert marks.label == said


def test_a_changed_picture_breaks_the_signature(signer: Signer, folder: Path) -> None:
    said = label(prompt="a face", seed=7, bundle="nano")
    signed = bytearray(encode(image(), "JPEG", said, signer=signer))
    signed[-40] ^= 1
    anchors = (folder / "root.pem").read_bytes()
    found = read_credentials(bytes(signed), "JPEG", anchors)
    assert found is not None
    assert found.state == "invalid"
    assert "assertion.dataHash.mismatch" in found.problems
    assert "c2pa" not in find_marks(bytes(signed)).names


@pytest.mark.parametrize("kind", ["P-384", "Ed25519", "RSA"])
def test_other_kinds_of_keys(tmp_path: Path, kind: str) -> None:
    make: dict[str, Callable[[], Any]] = {
        "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
        "Ed25519": ed25519.Ed25519PrivateKey.generate,
        "RSA": lambda: rsa.generate_private_key(65537, 2048),
    }
    key = make[kind]()
    (tmp_path / "chain.pem").write_bytes(certificates(key)[0])
    (tmp_path / "key.pem").write_bytes(private_pem(key))
    signer = Signer.load(tmp_path / "chain.pem", tmp_path / "key.pem")
    found = read_credentials(encode(image(), "PNG", label(prompt="p", seed=1, bundle="b"), signer=signer), "PNG")
    assert found is not None
    assert found.state == "valid"


@pytest.mark.parametrize(
    ("chain", "key", "message"),
    [
        ("missing.pem", "key.pem", "cannot be read"),
        ("text.pem", "key.pem", "holds no certificate in PEM form"),
        ("junk.pem", "key.pem", "cannot sign"),
        ("root.pem", "key.pem", "cannot sign"),
        ("chain.pem", "locked.pem", "not an unencrypted private key"),
        ("chain.pem", "chain.pem", "holds no private key"),
        ("chain.pem", "strange.pem", "of a type that C2PA does not support"),
        ("chain.pem", "other.pem", "chain.pem: "),
    ],
)
def test_what_cannot_sign_is_refused_at_once(folder: Path, chain: str, key: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Signer.load(folder / chain, folder / key)


def test_threads_share_a_signer(signer: Signer) -> None:
    said = label(prompt="a face", seed=7, bundle="nano")
    with ThreadPoolExecutor(4) as threads:
        signed = list(threads.map(lambda kind: (kind, encode(image(), kind, said, signer=signer)), KINDS * 8))
    assert {found.state for kind, data in signed if (found := read_credentials(data, kind))} == {"valid"}
    assert len({data for _, data in signed}) == len(signed), "each file has its own identity"


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_broken_manifests_are_invalid_and_nothing_worse(signer: Signer, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(KINDS))
    valid = bytearray(encode(image(), kind, label(prompt="p", seed=1, bundle="b"), signer=signer))
    for _ in range(data.draw(st.integers(1, 5))):
        place = data.draw(st.integers(0, len(valid) - 1))
        valid[place : place + data.draw(st.integers(1, 4))] = data.draw(st.binary(max_size=4))
    try:
        found = find_marks(bytes(valid)).credentials
    except ImageError:
        return
    assert found is None or found.state in ("valid", "invalid")


def test_the_command_line_signs_and_verifies(
    signer: Signer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with serving(scripted(ScriptedEngine())) as server:
        sign = ("--sign-cert", str(folder / "chain.pem"), "--sign-key", str(folder / "key.pem"))
        assert run(["generate", "a face", "--server", server.address, "-o", "face.webp", "--json", *sign]) == 0
    assert json.loads(capsys.readouterr().out)["marks"] == ["xmp", "c2pa"]
    assert run(["verify-image", "face.webp", "--trust", str(folder / "root.pem"), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["files"]
    assert row["credentials"] == {"state": "trusted", "signer": "test signer, Testers", "source_type": GENERATED, "problems": []}
    save_image(image(), "plain.png")
    assert run(["verify-image", "face.webp", "plain.png"]) == 1
    assert "valid: test signer, Testers" in capsys.readouterr().out
    assert run(["verify-image", "face.webp", "--trust", str(folder / "junk.pem")]) == 2
    assert "trust anchors" in capsys.readouterr().err


def test_a_server_signs_its_replies(signer: Signer) -> None:
    served = scripted(ScriptedEngine())
    object.__setattr__(served, "signer", signer)
    with serving(served) as server, stub(server.address) as face:
        picture = list(face.Generate(pb.GenerateRequest(prompt="a face")))[-1].result.picture
    assert list(picture.provenance.marks) == ["xmp", "c2pa"]
    found = read_credentials(picture.image, "PNG")
    assert found is not None
    assert (found.state, found.source_type) == ("valid", GENERATED)


def test_without_the_extra_signing_is_refused_and_reading_left_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(module: str, *arguments: Any, **more: Any) -> Any:
        if module == "c2pa":
            raise ImportError(module)
        return real(module, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"pip install 'f2edge\[c2pa\]'"):
        Signer.load(folder / "chain.pem", folder / "key.pem")
    monkeypatch.setattr("f2edge.provenance.inspection.installed", lambda: False)
    marks = find_marks(encode(image(), "PNG", None))
    assert (marks.credentials, marks.credentials_read) == (None, False)
    assert installed()


# Damaged stores --------------------------------------------------------------------------------------------------------------------------


def store_of(png: bytes) -> tuple[int, int]:
    """Where the body of the ``caBX`` chunk begins and ends."""
    place = png.index(b"caBX")
    return place + 4, place + 4 + int.from_bytes(png[place - 4 : place], "big")


def with_store(png: bytes, body: bytes) -> bytes:
    begin, end = store_of(png)
    crc = zlib.crc32(b"caBX" + body).to_bytes(4, "big")
    return png[: begin - 8] + len(body).to_bytes(4, "big") + b"caBX" + body + crc + png[end + 4 :]


@pytest.fixture(scope="module")
def signed_png(signer: Signer) -> bytes:
    return encode(image(), "PNG", label(prompt="a face", seed=7, bundle="nano"), signer=signer)


def test_damage_in_a_store_never_changes_what_a_valid_one_says(signed_png: bytes) -> None:
    """A third of a store is padding, which the signature leaves out; everything that is reported is signed."""
    begin, end = store_of(signed_png)
    whole = signed_png[begin:end]
    assert with_store(signed_png, whole) == signed_png
    true = read_credentials(signed_png, "PNG")
    assert true is not None
    found = []
    for position in np.random.default_rng(3).integers(0, len(whole), 150).tolist():
        body = bytearray(whole)
        body[position] ^= 1 + position % 255
        found.append(read_credentials(with_store(signed_png, bytes(body)), "PNG"))
    assert sum(one is not None and one.state == "invalid" for one in found) > 50
    assert {one for one in found if one is not None and one.state != "invalid"} == {true}


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_cut_store_is_invalid_or_none(signed_png: bytes, share: float) -> None:
    begin, end = store_of(signed_png)
    found = read_credentials(with_store(signed_png, signed_png[begin : begin + int(share * (end - begin))]), "PNG")
    assert found is None or found.state == "invalid"


def test_two_stores_are_not_valid(signed_png: bytes) -> None:
    begin, end = store_of(signed_png)
    twice = signed_png[: end + 4] + signed_png[begin - 8 : end + 4] + signed_png[end + 4 :]
    found = read_credentials(twice, "PNG")
    assert found is None or found.state == "invalid"
    assert "c2pa" not in find_marks(twice).names
