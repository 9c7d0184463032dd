"""HTTPS with the files that gRPC uses: servers and clients by certificate, and certificates that are renewed."""

from __future__ import annotations

import shutil
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from f2edge.errors import InputError
from f2edge.server.settings import ServerSettings
from tests.f2edge.http.test_rest import HTTP
from tests.f2edge.server.test_security import authority, issue
from tests.support.serving import ScriptedEngine, eventually, scripted, serving


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pki")
    authority(folder, "ca")
    for name in ("server", "renewed", "client"):
        issue(folder, name, "ca")
    return folder


@contextmanager
def secure(folder: Path, **changes: Any) -> Iterator[str]:
    settings = replace(HTTP, tls_cert=folder / "server.pem", tls_key=folder / "server.key", **changes)
    with serving(scripted(ScriptedEngine()), settings) as thread:
        assert thread.server.http_address is not None
        yield thread.server.http_address


def get(address: str, folder: Path, *own: str) -> httpx.Response:
    context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    if own:
        context.load_cert_chain(*(str(folder / name) for name in own))
    return httpx.get(f"{address}/v1/model", verify=context, timeout=20, trust_env=False)


def test_tls_is_that_of_grpc(pki: Path) -> None:
    with secure(pki) as address:
        assert address.startswith("https://")
        assert get(address, pki).status_code == 200
        with pytest.raises(httpx.ConnectError):  # an authority that did not sign it
            httpx.get(f"{address}/v1/model", timeout=20, trust_env=False)
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"{address.replace('https', 'http')}/v1/model", timeout=20, trust_env=False)


def test_clients_show_a_certificate_where_one_is_wanted(pki: Path) -> None:
    with secure(pki, client_ca=pki / "ca.pem") as address:
        assert get(address, pki, "client.pem", "client.key").status_code == 200
        with pytest.raises(httpx.HTTPError):
            get(address, pki)


def test_a_renewed_certificate_is_used(pki: Path, tmp_path: Path) -> None:
    for name in ("server.pem", "server.key", "ca.pem"):
        shutil.copy(pki / name, tmp_path / name)

    def served(address: str) -> str:
        host, _, port = address.removeprefix("https://").rpartition(":")
        return ssl.get_server_certificate((host, int(port)))

    with secure(tmp_path) as address:
        before = served(address)
        (tmp_path / "server.pem").write_text("half", encoding="utf-8")
        assert served(address) == before
        shutil.copy(pki / "renewed.key", tmp_path / "server.key")
        shutil.copy(pki / "renewed.pem", tmp_path / "server.pem")
        assert eventually(lambda: served(address) != before)
        assert get(address, tmp_path).status_code == 200


def test_a_changed_authority_of_clients_is_used(pki: Path, tmp_path: Path) -> None:
    authority(tmp_path, "other")
    issue(tmp_path, "guest", "other")
    shutil.copy(pki / "ca.pem", tmp_path / "clients.pem")
    own, guest = (str(pki / "client.pem"), str(pki / "client.key")), (str(tmp_path / "guest.pem"), str(tmp_path / "guest.key"))

    def admitted(address: str, *files: str) -> bool:
        try:
            return get(address, pki, *files).status_code == 200
        except httpx.HTTPError:
            return False

    with secure(pki, client_ca=tmp_path / "clients.pem") as address:
        assert admitted(address, *own)
        assert not admitted(address, *guest)
        shutil.copy(tmp_path / "other.pem", tmp_path / "clients.pem")
        assert eventually(lambda: admitted(address, *guest))
        assert not admitted(address, *own)
        (tmp_path / "clients.pem").write_text("half")
        assert not eventually(lambda: not admitted(address, *guest), 2.5)


def test_a_key_of_another_certificate_is_named(pki: Path) -> None:
    settings: ServerSettings = replace(HTTP, tls_cert=pki / "server.pem", tls_key=pki / "client.key")
    with pytest.raises(InputError, match="key belongs to the certificate"), serving(None, settings):
        pass
