"""Documents name only commands, options, files, modules and pages that exist."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.main import get_command

import bench.cli
import engines.cli
import export.cli
import f2edge.cli.main

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*.py")])
APPS: dict[str, typer.Typer] = {
    "python -m export": export.cli.app,
    "python -m engines": engines.cli.app,
    "python -m bench": bench.cli.app,
    "f2edge": f2edge.cli.main.app,
}
HOUSES = "f2edge|export|engines|bench|tests|docs|examples|proto|deploy"
COMMAND = re.compile(rf"(?<![\w./-])({'|'.join(APPS)}) ([a-z][a-z-]*)((?:[^`\n#\\|]|\\\n)*)")
SPAN = re.compile(r"`([^`\n]+)`")
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(rf"(?<![\w/.-])((?:{HOUSES})/[\w./*-]*\w(?:\.\w+)?/?)")
MODULE = re.compile(r"(?<![\w./-])((?:f2edge|export|engines|bench)(?!\.v1\.)(?:\.[A-Za-z_]\w*)+)")
LINK = re.compile(r"\]\(([^)\s#]+)[^)]*\)")
#: Made by commands, or examples of a name.
MADE = {"engines/plugins/compiled", "docs/images/camera.jpg"}


def text(document: Path) -> str:
    return document.read_text(encoding="utf-8")


def code(document: Path) -> str:
    """Return what stands as code: fenced blocks of the shell or without a language, and spans."""
    content = text(document)
    blocks = [block for language, block in FENCE.findall(content) if language in ("", "bash")]
    return "\n".join([*blocks, *SPAN.findall(FENCE.sub("", content))])


def commands(document: Path) -> Iterator[tuple[str, str, str]]:
    for found in COMMAND.finditer(code(document)):
        yield found[1], found[2], found[3]


def command(app: str, words: str, rest: str) -> Any:
    """Return the command, or the subcommand that its next word names; None where it does not exist."""
    found: Any = get_command(APPS[app]).commands.get(words)  # type: ignore[attr-defined]
    inner, following = getattr(found, "commands", None), [*rest.split(maxsplit=1), "…"][0]
    return found if inner is None or following.startswith(("-", "…")) else inner.get(following)


def options(of: Any) -> set[str]:
    own = {text for parameter in of.params for text in (*parameter.opts, *parameter.secondary_opts)} | {"--help", "-h"}
    return own.union(*(options(inner) for inner in getattr(of, "commands", {}).values()))


def missing_file(name: str) -> bool:
    return not (any(ROOT.glob(name)) if "*" in name else (ROOT / name).exists())


def resolves(name: str) -> bool:
    """Return whether a dotted name is a module, or an attribute of one."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


def test_documents_have_commands_files_and_modules() -> None:
    assert len(DOCUMENTS) >= 20
    everything = "\n".join(map(code, DOCUMENTS))
    assert len(COMMAND.findall(everything)) >= 100
    assert len(FILE.findall(everything)) >= 60


@pytest.mark.parametrize("document", DOCUMENTS, ids=[str(path.relative_to(ROOT)) for path in DOCUMENTS])
def test_commands_and_options_exist(document: Path) -> None:
    for app, name, rest in commands(document):
        found = command(app, name, rest)
        assert found is not None, f"{app} {name}{rest.rstrip()}: no such command"
        given = {word.split("=")[0].strip(".,;:)") for word in rest.split(" | ")[0].split(" && ")[0].split() if word.startswith("--")}
        assert given <= options(found), f"{app} {name}: no option {', '.join(sorted(given - options(found)))}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=[str(path.relative_to(ROOT)) for path in DOCUMENTS])
def test_files_and_modules_exist(document: Path) -> None:
    content = code(document)
    files = {found.rstrip("/") for found in FILE.findall(content)} - MADE
    assert [name for name in sorted(files) if missing_file(name)] == []
    assert [name for name in sorted(set(MODULE.findall(content))) if not resolves(name) and missing_file(name.replace(".", "/"))] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=[str(path.relative_to(ROOT)) for path in DOCUMENTS])
def test_links_lead_somewhere(document: Path) -> None:
    links = {link for link in LINK.findall(text(document)) if "://" not in link} if document.suffix == ".md" else set()
    assert [link for link in sorted(links) if not (document.parent / link).exists()] == []


def test_the_layout_in_the_readme_names_every_package() -> None:
    rows = re.findall(r"^\| `(f2edge|export|engines|bench)/` [^|]*\| ([^|]*) \|$", text(ROOT / "README.md"), re.MULTILINE)
    assert len(rows) == 4
    for house, packages in rows:
        there = {path.parent.relative_to(ROOT / house).as_posix() for path in (ROOT / house).rglob("*/__init__.py")}
        inner = {name.rsplit("/", 1)[-1] for name in there} - {house}
        assert set(SPAN.findall(packages)) == inner, house


def test_each_behaviour_is_found_in_two_files_at_most() -> None:
    rows = re.findall(r"^\| [^|`]+ \| (`[^|]+) \|$", text(ROOT / "CONTRIBUTING.md").partition("| behaviour | open |")[2], re.MULTILINE)
    assert len(rows) >= 10
    for row in rows:
        files = re.findall(r"`([\w/]+\.py)`(?: \(([^)]*)\))?", row)
        assert 1 <= len(files) <= 2, row
        for file, names in files:
            source = text(ROOT / file)
            assert all(re.search(rf"(def|class) {name}\b", source) for name in SPAN.findall(names)), f"{file}: {names}"


def test_the_types_of_a_request_are_where_the_page_says() -> None:
    rows = re.findall(r"^\| (`[^|]+`) \| `([\w/]+\.py)` \|", text(ROOT / "docs/life-of-a-request.md"), re.MULTILINE)
    assert len(rows) > 10
    for names, file in rows:
        assert all(f"class {name}" in text(ROOT / file) for name in SPAN.findall(names)), f"{file}: {names}"


def test_the_first_program_of_the_readme_runs(tmp_path: Path) -> None:
    (program, *_) = [block for language, block in FENCE.findall(text(ROOT / "README.md")) if language == "python"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) >= 2
