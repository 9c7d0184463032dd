"""What development installs and runs: the lock file fits ``pyproject.toml``, and the hooks are those of ``make test``."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
LOCK = (ROOT / "requirements-dev.lock").read_text(encoding="utf-8")
ENTRY = re.compile(r"^([a-z0-9].*?) \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.MULTILINE)
#: Installed before, in the build for the machine.
OUTSIDE = {"torch"}


def project() -> dict[str, Any]:
    document: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return document


def wanted(extra: str) -> list[Requirement]:
    """Return the dependencies of the package with an extra, the extras that it names included."""
    table = project()
    found = [Requirement(text) for text in table["dependencies"]]
    waiting, seen = [extra], {extra}
    while waiting:
        for requirement in map(Requirement, table["optional-dependencies"][waiting.pop()]):
            if requirement.name == table["name"]:
                waiting += requirement.extras - seen
                seen |= requirement.extras
            else:
                found.append(requirement)
    return found


def locked() -> dict[str, set[Version]]:
    """Return the versions of each package, one for each range of Python versions."""
    versions: dict[str, set[Version]] = {}
    for entry, _ in ENTRY.findall(LOCK):
        requirement = Requirement(entry)
        (pin,) = requirement.specifier
        versions.setdefault(canonicalize_name(requirement.name), set()).add(Version(pin.version))
    return versions


def test_every_line_of_the_lock_is_a_pinned_version_with_hashes() -> None:
    assert len(ENTRY.findall(LOCK)) > 100
    rest = [line for line in ENTRY.sub("", LOCK).splitlines() if not line.startswith("#")]
    assert rest == []
    assert "://" not in LOCK


def test_the_lock_has_what_development_needs() -> None:
    versions, needed = locked(), [r for r in wanted("dev") if r.name not in OUTSIDE]
    assert len(needed) > 30
    for requirement in needed:
        found = versions.get(canonicalize_name(requirement.name), set())
        assert found, f"{requirement} is not locked; run `make lock`"
        assert all(requirement.specifier.contains(version) for version in found), f"{requirement}, locked {found}; run `make lock`"


def test_the_lock_keeps_the_constraints() -> None:
    constraints = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    versions = locked()
    assert {r.name for r in constraints} - set(versions) == OUTSIDE
    assert all(r.specifier.contains(v) for r in constraints for v in versions.get(canonicalize_name(r.name), ()))


def test_hooks_are_the_tools_of_make_test() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert repository["repo"] == "local"
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8")
    for hook in repository["hooks"]:
        words = [word for word in hook["entry"].split() if not word.startswith("--")]
        assert f"$(BIN)/{' '.join(words)}" in recipe, hook["id"]
        assert hook["language"] == "system"
