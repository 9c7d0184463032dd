"""Checks asked for by the clients and the command line, of a server."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from f2edge.cli.main import run
from f2edge.client.aio import AsyncClient
from f2edge.client.sync import Client
from f2edge.errors import InputError
from f2edge.imaging.images import load_image
from f2edge.results import Check
from tests.support.serving import ScriptedEngine, ServerThread, photo

pytestmark = pytest.mark.runtime

CHECK = Check(0.5, ("hat",), 2, 1)


def test_clients_ask_for_checks_and_tell_of_them(server: ServerThread, engine: ScriptedEngine) -> None:
    picture = load_image(photo())
    with Client(server.address) as client:
        assert [face.check for face in client.generate("a hat", check=True)] == [CHECK]
        assert client.edit(picture, "a hat", "hair", check=3).check == CHECK
        assert client.generate("a hat")[0].check is None
        with pytest.raises(InputError, match="check"):
            client.generate("a hat", check=9)
    assert [request.check for request, _, _ in engine.submitted] == [2, 3, 0]

    async def both() -> None:
        async with AsyncClient(server.address) as other:
            assert (await other.generate("a hat", check=True))[0].check == CHECK
            assert (await other.edit(picture, "a hat", "hair", check=True)).check == CHECK

    asyncio.run(both())


def test_the_command_line_says_what_a_picture_lacks(server: ServerThread, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, words = tmp_path / "face.png", ["--check", "--server", server.address, "-o"]
    assert run(["generate", "a hat", *words, str(out)]) == 0
    assert "shows 1 of 2 attributes asked for, after 1 repairs; missing: hat" in "".join(capsys.readouterr())
    assert run(["generate", "a hat", *words, str(out), "--json"]) == 0
    (face,) = json.loads(capsys.readouterr().out)["faces"]
    assert face["check"] == {"score": 0.5, "missing": ["hat"], "named": 2, "repairs": 1}
    assert run(["edit", str(out), "a hat", "--region", "hair", *words, str(tmp_path / "edited.png"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["check"]["missing"] == ["hat"]
