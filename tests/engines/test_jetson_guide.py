"""The Jetson guide names only builder options, profiles and messages that exist; tests/docs covers its commands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from typer.main import get_command

import engines.cli
from engines.profile import profile_names

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "jetson.md").read_text(encoding="utf-8")


def options(of: Any) -> set[str]:
    return {text for parameter in of.params for text in parameter.opts}


def test_options_of_the_builder_exist() -> None:
    (table,) = re.findall(r"\| 8 GB is tight \|.*?\n\n", GUIDE, re.DOTALL)
    group: Any = get_command(engines.cli.app)
    named = set(re.findall(r"--[a-z][a-z-]+", table))
    assert len(named) >= 6
    assert named <= options(group.commands["build"])


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
