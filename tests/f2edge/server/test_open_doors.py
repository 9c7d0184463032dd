"""What must not be open, taken over or used up: live sockets, metrics on the network, scrapers that wait, certificates out of date."""

from __future__ import annotations

import logging
import socket
import threading
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from prometheus_client import CollectorRegistry, Gauge

from f2edge.cli.main import run
from f2edge.errors import InputError
from f2edge.server import metrics
from f2edge.server.metrics import MOST_SCRAPES, serve_metrics
from f2edge.server.security import Certificates
from f2edge.server.settings import ServerSettings
from f2edge.transport import check_dates
from f2edge.v1 import face_pb2 as pb
from tests.support.serving import SETTINGS, ScriptedEngine, eventually, scripted, serving, stub


def settings(**changes: object) -> ServerSettings:
    return ServerSettings(**{**SETTINGS.__dict__, **changes})


# Sockets ---------------------------------------------------------------------------------------------------------------------------------


def test_a_second_server_does_not_take_over_a_live_socket(tmp_path: Path) -> None:
    host = f"unix:{tmp_path}/f2edge.sock"
    with serving(scripted(ScriptedEngine()), settings(host=host)) as first:
        inode = (tmp_path / "f2edge.sock").stat().st_ino
        with pytest.raises(InputError, match="another server answers there"), serving(scripted(ScriptedEngine()), settings(host=host)):
            pass
        assert (tmp_path / "f2edge.sock").stat().st_ino == inode
        with stub(first.address) as face:
            assert face.GetModel(pb.GetModelRequest(), timeout=10).name


def test_a_socket_that_a_killed_server_left_is_used_again(tmp_path: Path) -> None:
    path = tmp_path / "f2edge.sock"
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.listen()
    left.close()
    assert path.is_socket()
    with serving(scripted(ScriptedEngine()), settings(host=f"unix:{path}")) as server, stub(server.address) as face:
        assert face.GetModel(pb.GetModelRequest(), timeout=10).name


# Metrics ---------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_metrics_beyond_this_machine_need_a_word(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", "--metrics-port", "0", "--metrics-host", host]) == 2
    assert "--metrics-insecure" in capsys.readouterr().err
    assert ServerSettings(metrics_host=host, metrics_port=0, metrics_insecure=True).metrics_host == host
    assert ServerSettings(metrics_host=host).metrics_port is None  # nothing is served


def metrics_threads() -> int:
    return sum("process_request_thread" in thread.name for thread in threading.enumerate())


@pytest.mark.slow
def test_idle_scrapers_are_bounded_and_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "LONGEST_S", 1.0)
    registry = CollectorRegistry()
    Gauge("f2edge_x", "A gauge.", registry=registry).set(7)
    stop, port = serve_metrics(registry, "127.0.0.1", 0)
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(100)]
    try:
        for slow in idle[::2]:
            slow.sendall(b"GET /metr")
        assert eventually(lambda: metrics_threads() >= 1)
        assert metrics_threads() <= MOST_SCRAPES
        assert eventually(lambda: metrics_threads() == 0)  # a drip of bytes does not keep a place
        with socket.create_connection(("127.0.0.1", port), timeout=10) as honest:
            honest.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            page = b""
            while data := honest.recv(4096):
                page += data
        assert b"f2edge_x 7.0" in page
    finally:
        for slow in idle:
            slow.close()
        stop()


# Certificates ----------------------------------------------------------------------------------------------------------------------------


def certificate(folder: Path, begins: timedelta, ends: timedelta) -> tuple[Path, Path]:
    """A self-signed certificate that is valid between these distances from now, and its key."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(timezone.utc)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(7)
    made = builder.not_valid_before(now + begins).not_valid_after(now + ends).sign(key, hashes.SHA256())
    (folder / "tls.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "tls.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder / "tls.crt", folder / "tls.key"


DAY = timedelta(days=1)
TIMES = {"expired": (-2 * DAY, -DAY, "the certificate expired at"), "future": (DAY, 2 * DAY, "the certificate is not valid before")}


@pytest.mark.parametrize(("begins", "ends", "reason"), TIMES.values(), ids=TIMES)
def test_a_certificate_out_of_date_is_refused_at_start(
    begins: timedelta, ends: timedelta, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chain, key = certificate(tmp_path, begins, ends)
    with pytest.raises(InputError, match=reason):
        Certificates(settings(tls_cert=chain, tls_key=key))
    assert run(["serve", "--port", "0", "--tls-cert", str(chain), "--tls-key", str(key), "-q"]) == 2
    assert reason in capsys.readouterr().err


def test_an_expired_renewal_is_logged_and_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    chain, key = certificate(tmp_path, -DAY, DAY)
    certificates = Certificates(settings(tls_cert=chain, tls_key=key))
    assert certificates._fetch() is None
    certificate(tmp_path, -2 * DAY, -DAY)
    with caplog.at_level(logging.ERROR):
        assert certificates._fetch() is None
    assert "those in use stay" in caplog.text
    certificate(tmp_path, -DAY, DAY)
    assert isinstance(certificates._fetch(), grpc.ServerCertificateConfiguration)


def test_a_certificate_that_expires_in_use_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain, key = certificate(tmp_path, -DAY, DAY)
    certificates = Certificates(settings(tls_cert=chain, tls_key=key))
    later = time.time() + 2 * DAY.total_seconds()
    monkeypatch.setattr("f2edge.server.security.time.time", lambda: later)
    with caplog.at_level(logging.ERROR):
        certificates._fetch()
        certificates._fetch()
    assert caplog.text.count("has expired; renew") == 1


def test_the_dates_are_those_of_the_first_certificate(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    old, _ = certificate(tmp_path / "old", -2 * DAY, -DAY)
    new, _ = certificate(tmp_path, -DAY, DAY)
    chain = new.read_bytes() + old.read_bytes()
    assert abs(check_dates(new, chain) - time.time() - DAY.total_seconds()) < 60
    with pytest.raises(InputError, match="expired"):
        check_dates(new, old.read_bytes() + new.read_bytes())
    with pytest.raises(InputError, match="holds no certificate that can be read"):
        check_dates(new, b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
