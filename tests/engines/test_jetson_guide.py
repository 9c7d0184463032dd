"""The Jetson guide names only commands, options, profiles and messages that there are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import engines.cli
import export.cli
import f2edge.cli.main
from engines.profile import profile_names

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "jetson.md").read_text(encoding="utf-8")
APPS = {"python -m engines": engines.cli.app, "python -m export": export.cli.app, "f2edge": f2edge.cli.main.app}
COMMANDS = [
    (app, words.group(2), words.group(3))
    for app in APPS
    for words in re.finditer(rf"(?:^|`)({re.escape(app)}) ([a-z]+)(?: ([^`\n#]*))?", GUIDE, re.MULTILINE)
]


def command(app: str, name: str) -> Any:
    group: Any = get_command(APPS[app])
    found = group.commands.get(name)
    assert found is not None, f"{app} has no command {name}"
    return found


def options(of: Any) -> set[str]:
    return {text for parameter in of.params for text in parameter.opts}


def test_the_guide_has_commands() -> None:
    assert {(app, name) for app, name, _ in COMMANDS} >= {
        ("python -m engines", "build"),
        ("python -m engines", "verify"),
        ("f2edge", "generate"),
    }


@pytest.mark.parametrize(("app", "name", "rest"), COMMANDS, ids=[f"{app} {name}" for app, name, _ in COMMANDS])
def test_every_command_and_option_exists(app: str, name: str, rest: str | None) -> None:
    known = options(command(app, name))
    assert {word for word in (rest or "").split() if word.startswith("-")} <= known


def test_options_of_the_builder_exist() -> None:
    (table,) = re.findall(r"\| 8 GB is tight \|.*?\n\n", GUIDE, re.DOTALL)
    named = set(re.findall(r"--[a-z][a-z-]+", table))
    assert len(named) >= 6
    assert named <= options(command("python -m engines", "build"))


def test_profiles_exist() -> None:
    (line,) = re.findall(r"^Profiles: (.*)\. Plans", GUIDE, re.MULTILINE)
    assert set(re.findall(r"`([^`]+)`", line)) <= set(profile_names())


def test_messages_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| `([^`]+)` \|", GUIDE[GUIDE.index("| message | cure |") :], re.MULTILINE)
    sources = "".join(p.read_text(encoding="utf-8") for folder in ("engines", "f2edge/backends") for p in (ROOT / folder).rglob("*.py"))
    assert len(rows) >= 6
    for row in rows:
        for piece in row.split("…"):
            words = piece.strip(" ,")
            assert words == "plans" or words in sources, f"{words!r} is said nowhere"
