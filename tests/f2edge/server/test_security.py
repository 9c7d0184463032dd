"""Who gets in: the TLS matrix, certificates and tokens that change while the server runs, and addresses that must not be open."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from f2edge.cli.main import run
from f2edge.cli.top import scrape
from f2edge.client.connection import Connection
from f2edge.client.sync import Client
from f2edge.errors import AccessError, InputError, ServerUnavailableError
from f2edge.server.settings import ServerSettings
from f2edge.server.tokens import Tokens, new_token, read_tokens
from f2edge.transport import is_loopback
from f2edge.v1 import face_pb2 as pb
from tests.support.serving import SETTINGS, ScriptedEngine, eventually, photo, scripted, serving, stub

pytestmark = pytest.mark.runtime


def openssl(*arguments: str, folder: Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, cwd=folder, capture_output=True, timeout=30)


def authority(folder: Path, name: str) -> None:
    """``name.pem`` and ``name.key`` of a new certificate authority."""
    subject = ("-subj", f"/CN={name}", "-days", "2")
    openssl("req", "-x509", *_new_key(name), "-out", f"{name}.pem", *subject, folder=folder)


def issue(folder: Path, name: str, ca: str) -> None:
    """``name.pem`` and ``name.key`` for this machine, signed by ``ca``."""
    openssl("req", *_new_key(name), "-out", f"{name}.csr", "-subj", f"/CN={name}", folder=folder)
    (folder / "names.cnf").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    signed = ("-CA", f"{ca}.pem", "-CAkey", f"{ca}.key", "-CAcreateserial", "-days", "2", "-extfile", "names.cnf")
    openssl("x509", "-req", "-in", f"{name}.csr", *signed, "-out", f"{name}.pem", folder=folder)


def _new_key(name: str) -> tuple[str, ...]:
    return ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", f"{name}.key")


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two authorities; a server and a client of the first, a client of the second."""
    folder = tmp_path_factory.mktemp("pki")
    for ca in ("ca", "other_ca"):
        authority(folder, ca)
    for name, ca in (("server", "ca"), ("client", "ca"), ("intruder", "other_ca")):
        issue(folder, name, ca)
    return folder


@contextmanager
def secure(pki: Path, **changes: Any) -> Iterator[str]:
    settings = replace(SETTINGS, tls_cert=pki / "server.pem", tls_key=pki / "server.key", **changes)
    with serving(scripted(ScriptedEngine()), settings) as server:
        yield server.address


def connect(address: str, patience_s: float = 1.0, **how: Any) -> str:
    """What the server answers, or the name of the error."""
    with Client(Connection(address, **how), connect_s=patience_s) as client:
        try:
            return client.bundle.name
        except (AccessError, ServerUnavailableError) as error:
            return type(error).__name__


def welcome(address: str, **how: Any) -> str:
    """The same where the server should answer: a busy machine may take a while."""
    return connect(address, 20.0, **how)


def identity(pki: Path, name: str) -> dict[str, Any]:
    return {"cert_file": pki / f"{name}.pem", "key_file": pki / f"{name}.key"}


# TLS -------------------------------------------------------------------------------------------------------------------------------------


def test_the_matrix_of_server_tls(pki: Path) -> None:
    with secure(pki) as address:
        assert welcome(address, ca_file=pki / "ca.pem") == "scripted"
        assert welcome(address, ca_file=pki / "ca.pem", **identity(pki, "client")) == "scripted"
        assert connect(address, ca_file=pki / "other_ca.pem") == "ServerUnavailableError"
        assert connect(address) == "ServerUnavailableError"  # plaintext
        assert connect(f"grpcs://{address}") == "ServerUnavailableError"  # the system's authorities


def test_the_matrix_of_mutual_tls(pki: Path) -> None:
    with secure(pki, client_ca=pki / "ca.pem") as address:
        assert welcome(address, ca_file=pki / "ca.pem", **identity(pki, "client")) == "scripted"
        assert connect(address, ca_file=pki / "ca.pem") == "ServerUnavailableError"
        assert connect(address, ca_file=pki / "ca.pem", **identity(pki, "intruder")) == "ServerUnavailableError"
        assert connect(address, ca_file=pki / "other_ca.pem", **identity(pki, "client")) == "ServerUnavailableError"


def test_a_plain_server_does_not_speak_tls(pki: Path) -> None:
    with serving(scripted(ScriptedEngine())) as server:
        assert connect(server.address, ca_file=pki / "ca.pem") == "ServerUnavailableError"
        assert welcome(server.address) == "scripted"


def test_a_renewed_certificate_is_used_without_a_restart(pki: Path, tmp_path: Path) -> None:
    for name in ("server.pem", "server.key", "ca.pem", "other_ca.pem", "other_ca.key"):
        shutil.copy(pki / name, tmp_path / name)
    with secure(tmp_path) as address:
        assert welcome(address, ca_file=pki / "ca.pem") == "scripted"
        (tmp_path / "server.pem").write_text("half a file")
        assert welcome(address, ca_file=pki / "ca.pem") == "scripted"  # what cannot be used is not used
        issue(tmp_path, "server", "other_ca")
        assert welcome(address, ca_file=pki / "other_ca.pem") == "scripted"
        assert connect(address, ca_file=pki / "ca.pem") == "ServerUnavailableError"


def test_probes_without_tls_or_token_have_a_port_of_their_own_and_nothing_else(pki: Path, token_file: Path) -> None:
    """As the probes of Kubernetes are: health alone answers there, until the end."""
    new_token(token_file, "app")
    settings = replace(SETTINGS, tls_cert=pki / "server.pem", tls_key=pki / "server.key", token_file=token_file, health_port=0)
    with serving(scripted(ScriptedEngine()), settings) as server:
        probed = server.server.health_address
        assert probed not in (None, server.address)
        with grpc.insecure_channel(probed) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            for name in ("", "f2edge.v1.FaceService"):
                request = health_pb2.HealthCheckRequest(service=name)
                assert eventually(lambda request=request: check(request).status == health_pb2.HealthCheckResponse.SERVING)  # type: ignore[misc]
        with stub(str(probed)) as face, pytest.raises(grpc.RpcError) as caught:
            face.GetModel(pb.GetModelRequest())
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


# Tokens ----------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.txt"
    path.write_text("# who may ask\n\n")
    return path


def test_tokens_open_every_method_but_health_needs_none(token_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    ann, bob = new_token(token_file, "ann"), new_token(token_file, "bob")
    with caplog.at_level(logging.INFO, "f2edge"), serving(scripted(ScriptedEngine()), replace(SETTINGS, token_file=token_file)) as server:
        for token in (ann, bob):
            assert welcome(server.address, token=token) == "scripted"
        assert [r.token for r in caplog.records if r.name == "f2edge.server.access"] == ["ann", "bob"]  # type: ignore[attr-defined]
        for wrong in (None, "wrong", ann[:-1], ann + "x", ann.swapcase()):
            assert connect(server.address, token=wrong) == "AccessError"
        assert scrape(f"127.0.0.1:{server.server.metrics_port}").value("f2edge_denied_total") == 5
        with stub(server.address) as face:
            calls: list[Any] = [
                lambda **k: list(face.Generate(pb.GenerateRequest(prompt="a face"), **k)),
                lambda **k: list(face.Ask(pb.AskRequest(image=photo(), question="what?"), **k)),
                lambda **k: face.Analyze(pb.AnalyzeRequest(image=photo()), **k),
                lambda **k: list(face.AnalyzeStream(iter([pb.AnalyzeStreamRequest(image=photo())]), **k)),
            ]
            for call in calls:
                for header in (None, "", ann, f"Basic {ann}", "Bearer ", "Bearer " + "x" * 4000):
                    with pytest.raises(grpc.RpcError) as caught:
                        call(metadata=[("authorization", header)] if header is not None else None)
                    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
                    assert ann not in caught.value.details()
                with pytest.raises(grpc.RpcError) as caught:
                    call(metadata=[("authorization", f"Bearer {ann}"), ("authorization", "Bearer wrong")])
                assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
                assert call(metadata=[("authorization", f"bearer {ann}")])
        with grpc.insecure_channel(server.address) as channel:
            assert health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest()).status
            asked = reflection_pb2.ServerReflectionRequest(list_services="")
            with pytest.raises(grpc.RpcError) as caught:
                list(reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([asked])))
            assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert ann not in caplog.text
    assert bob not in caplog.text


def test_who_shows_no_token_is_turned_away_before_anything_is_read(token_file: Path) -> None:
    """A stream that is open but silent would else wait for ever, and a picture would be received for nothing."""
    silence = threading.Event()
    with serving(scripted(ScriptedEngine()), replace(SETTINGS, token_file=token_file)) as server, stub(server.address) as face:
        call = face.AnalyzeStream((pb.AnalyzeStreamRequest() for _ in range(1) if silence.wait(20)), timeout=5)
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
        silence.set()
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_tokens_are_read_again(token_file: Path) -> None:
    ann = new_token(token_file, "ann")
    tokens = Tokens(token_file, look_again_s=0.0)
    assert tokens.holder(f"Bearer {ann}") == "ann"
    bob = new_token(token_file, "bob")
    assert eventually(lambda: tokens.holder(f"Bearer {bob}") == "bob")
    token_file.write_text("\n".join(line for line in token_file.read_text().splitlines() if not line.startswith("ann")))
    assert eventually(lambda: tokens.holder(f"Bearer {ann}") is None)
    assert tokens.holder(f"Bearer {bob}") == "bob"
    token_file.write_text("nonsense\n")
    assert tokens.holder(f"Bearer {bob}") == "bob"  # a file that cannot be used changes nothing
    token_file.unlink()
    assert tokens.holder(f"Bearer {bob}") == "bob"


def test_a_removed_token_is_locked_out_within_a_second(token_file: Path) -> None:
    ann = new_token(token_file, "ann")
    with serving(scripted(ScriptedEngine()), replace(SETTINGS, token_file=token_file)) as server:
        assert welcome(server.address, token=ann) == "scripted"
        token_file.write_text("")
        start = time.monotonic()
        assert eventually(lambda: connect(server.address, token=ann) == "AccessError")
        assert time.monotonic() - start < 5


def test_a_token_file_keeps_no_token(token_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = token_file.with_name("new.txt")
    assert run(["token", "ann", "--token-file", str(path)]) == 0
    token = capsys.readouterr().out.strip()
    assert len(token) == 43
    assert token not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    assert Tokens(path).holder(f"Bearer {token}") == "ann"
    assert run(["token", "ann", "--token-file", str(path)]) == 2
    assert "has a token named 'ann' already" in capsys.readouterr().err


def test_a_token_goes_on_a_line_of_its_own(token_file: Path) -> None:
    new_token(token_file, "ann")
    token_file.write_text(token_file.read_text().rstrip("\n"))  # as some editors leave it
    new_token(token_file, "bob")
    assert list(read_tokens(token_file)) == ["ann", "bob"]


@pytest.mark.parametrize(
    "content", ["ann", "ann sha256:12", f"a/b sha256:{'0' * 64}", f"ann md5:{'0' * 64}", f"ann sha256:{'0' * 64}\n" * 2, "\xff\xfe"]
)
def test_a_token_file_is_checked_without_being_quoted(token_file: Path, content: str) -> None:
    token_file.write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError) as caught:
        read_tokens(token_file)
    assert content not in str(caught.value)


# Addresses -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost", "unix:/tmp/f2edge.sock"])
def test_this_machine_needs_no_tls(host: str) -> None:
    assert ServerSettings(host=host).is_local


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "example.org", "localhost.example.org", "", "127.0.0.1.example.org", "*"])
def test_other_addresses_need_tls_or_a_flag(host: str, pki: Path) -> None:
    assert not is_loopback(host)
    with pytest.raises(InputError, match="needs TLS"):
        ServerSettings(host=host)
    assert ServerSettings(host=host, insecure=True).insecure
    assert ServerSettings(host=host, tls_cert=pki / "server.pem", tls_key=pki / "server.key").tls


def test_a_client_sends_its_token_in_plaintext_to_this_machine_only() -> None:
    assert Connection("localhost:1", "secret").metadata == (("authorization", "Bearer secret"),)
    assert Connection("grpcs://example.org:1", "secret").tls
    for address in ("example.org:1", "10.0.0.7:1", "127.0.0.1.example.org:1"):
        with pytest.raises(InputError) as caught:
            Connection(address, "secret")
        assert "secret" not in str(caught.value)
    with pytest.raises(InputError):
        Connection("localhost:1", "two\nlines")


@pytest.mark.parametrize(
    "address", ["localhost:1", "[::1]:65535", "grpcs://example.org:443", "dns:///name:1", "ipv4:127.0.0.1:1,127.0.0.1:2"]
)
def test_addresses_as_grpc_has_them_are_taken(address: str) -> None:
    assert Connection(address).target == address.removeprefix("grpcs://")


@pytest.mark.parametrize(
    "address", ["", "grpcs://", "localhost", "::1:1", "localhost:0", "http://localhost:1", "a b:1", "user@host:1", "h\u00a0:1"]
)
def test_other_addresses_are_refused_at_once(address: str) -> None:
    with pytest.raises(InputError, match="give host:port"):
        Connection(address)


def test_a_file_that_is_no_pem_is_named_before_anybody_is_called(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no PEM")
    with pytest.raises(InputError, match=r"ca\.pem: holds no certificate in PEM form"):
        Connection("localhost:1", ca_file=tmp_path / "ca.pem").credentials()


def test_an_ipv6_address_may_stand_in_brackets() -> None:
    assert ServerSettings(host="[::1]", port=1).target == ServerSettings(host="::1", port=1).target == "[::1]:1"


def test_a_client_takes_its_credentials_from_the_environment() -> None:
    environment = {"F2EDGE_TOKEN": "t", "F2EDGE_CA_FILE": "ca.pem", "F2EDGE_CERT_FILE": "c.pem", "F2EDGE_KEY_FILE": "k.pem"}
    found = Connection.from_environment("example.org:1", environment)
    assert (found.token, found.ca_file, found.cert_file, found.key_file) == ("t", Path("ca.pem"), Path("c.pem"), Path("k.pem"))
    assert found.tls
    assert not Connection.from_environment("localhost:1", {}).tls
    with pytest.raises(InputError, match="both cert_file and key_file"):
        Connection("localhost:1", cert_file=Path("c.pem"))
    with pytest.raises(InputError, match=r"ca\.pem: cannot be read"):
        found.credentials()


@pytest.mark.parametrize("missing", ["server.pem", "server.key"])
def test_a_server_without_its_files_does_not_start(pki: Path, tmp_path: Path, missing: str) -> None:
    for name in ("server.pem", "server.key"):
        if name != missing:
            shutil.copy(pki / name, tmp_path / name)
    with pytest.raises(InputError, match=missing), secure(tmp_path):
        pass
    shutil.copy(pki / ("server.key" if missing == "server.pem" else "server.pem"), tmp_path / missing)
    with pytest.raises(InputError, match="in PEM form"), secure(tmp_path):
        pass


def test_a_socket_serves_without_a_port(tmp_path: Path) -> None:
    path = f"unix:{os.path.relpath(tmp_path)}/s"
    with serving(scripted(ScriptedEngine()), replace(SETTINGS, host=path)) as server:
        assert server.address == path
        assert welcome(path) == "scripted"
