"""The layout of the four houses: no circle of imports, and packages small enough to overlook."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HOUSES = ("f2edge", "export", "engines", "bench")
MOST_MODULES, MOST_AT_THE_FRONT = 20, 14


def modules(house: Path) -> dict[str, Path]:
    """Dotted name → file of every module of a house; a package goes by its own name."""
    names = {path: path.relative_to(house.parent).with_suffix("").parts for path in sorted(house.rglob("*.py"))}
    return {".".join(parts[:-1] if parts[-1] == "__init__" else parts): path for path, parts in names.items()}


def runtime_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes, those inside functions too, without the bodies of ``if TYPE_CHECKING:``."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield from runtime_nodes(other)
        else:
            yield from runtime_nodes(child)


def imports(name: str, path: Path, known: Mapping[str, Path]) -> set[str]:
    """Modules among ``known`` that a module imports; ``from package import module`` counts as the module."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set[str]()
    for node in runtime_nodes(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found |= {full if (full := f"{base}.{alias.name}") in known else base for alias in node.names}
    return (found & known.keys()) - {name}


def circle(house: Path) -> list[str]:
    """The modules of one circle of imports in order, the first again at the end; [] where there is none."""
    known = modules(house)
    try:
        TopologicalSorter({name: imports(name, path, known) for name, path in known.items()}).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))
    return []


@pytest.mark.parametrize("house", HOUSES)
def test_no_import_circle(house: str) -> None:
    assert len(modules(ROOT / house)) > 10
    assert circle(ROOT / house) == []


@pytest.mark.parametrize("house", HOUSES)
def test_packages_are_small(house: str) -> None:
    packages = [path.parent for path in (ROOT / house).rglob("__init__.py")]
    assert packages
    sizes = {str(package.relative_to(ROOT)): sum(path.name != "__init__.py" for path in package.glob("*.py")) for package in packages}
    assert {package: size for package, size in sizes.items() if size > MOST_MODULES} == {}
    assert sizes.get("f2edge", 0) <= MOST_AT_THE_FRONT


@pytest.mark.parametrize(
    ("first", "second", "found"),
    [
        ("from house import second", "import house.first", ["house.first", "house.second"]),
        ("def f():\n    from house.second import x", "from . import first", ["house.first", "house.second"]),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import house.second", "from .first import x", []),
        ("x = 1", "from house.first import x", []),
    ],
)
def test_a_circle_is_found(first: str, second: str, found: list[str], tmp_path: Path) -> None:
    house = tmp_path / "house"
    house.mkdir()
    (house / "__init__.py").touch()
    (house / "first.py").write_text(first, encoding="utf-8")
    (house / "second.py").write_text(second, encoding="utf-8")
    assert sorted(set(circle(house))) == found
