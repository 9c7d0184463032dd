"""Fixtures that many tests share: a tiny model of every organ with random weights, bundles of it, and a server with a scripted engine.

Tracing takes half a minute, so the bundles are kept in pytest's cache under a digest of every source file that shapes them; of several
workers (``pytest -n``) one makes them.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from export.graph.trace import Models
    from tests.support.serving import ScriptedEngine, ServerThread

if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same cases in every run: a failure tells of the change and not of the day.  ``--hypothesis-profile=default`` draws new ones.
settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
settings.load_profile("repeatable")

_ROOT = Path(__file__).parent.parent
_SOURCES = (
    "export/bundle_writer.py",
    "tests/support/tiny_model.py",
    "export/graph/*.py",
    "export/quantize/*.py",
    "export/model/*.py",
    "f2edge/bundle/*.py",
    "f2edge/spec/*.py",
)
RECIPES = ("fp32", "int8", "int8-vnni")


def _digest() -> str:
    """Of the sources and the versions that decide what a tiny bundle is."""
    import onnxscript
    import torch

    digest = hashlib.sha256(f"{torch.__version__} {onnxscript.__version__}".encode())
    for pattern in _SOURCES:
        for path in sorted(_ROOT.glob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@pytest.fixture(scope="session")
def tiny_models() -> Models:
    """Random models of :data:`tests.support.tiny_model.TINY`; needs PyTorch."""
    from tests.support.tiny_model import random_models

    return random_models()


@pytest.fixture(scope="session")
def tiny_bundles(pytestconfig: Any) -> dict[str, Path]:
    """Bundles of ``tiny_models`` by recipe."""
    from filelock import FileLock

    from export.bundle_writer import trace_all
    from export.data.text.tokenizer import train_text_tokenizer
    from tests.support.tiny_model import TINY, random_bundle, random_models

    folder = pytestconfig.cache.mkdir("tiny-bundles") / _digest()
    bundles = {recipe: folder / recipe / "tiny" for recipe in RECIPES}
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        if not all((bundle / "manifest.json").is_file() for bundle in bundles.values()):
            traced, text = trace_all(random_models()), folder / "tokenizer.json"
            train_text_tokenizer(text, vocabulary=TINY.text_vocabulary)
            for recipe, bundle in bundles.items():
                random_bundle(bundle, recipe=recipe, text_tokenizer_path=text, traced=traced)
    return bundles


@pytest.fixture(scope="session")
def tiny_bundle(tiny_bundles: dict[str, Path]) -> Path:
    """The fp32 bundle of ``tiny_models``."""
    return tiny_bundles["fp32"]


@pytest.fixture(scope="session")
def tiny_int8_bundle(tiny_bundles: dict[str, Path]) -> Path:
    """The int8 bundle of ``tiny_models``."""
    return tiny_bundles["int8"]


@pytest.fixture
def engine() -> ScriptedEngine:
    """What ``server`` runs, to be watched and disturbed."""
    from tests.support.serving import ScriptedEngine

    return ScriptedEngine()


@pytest.fixture
def server(engine: ScriptedEngine) -> Iterator[ServerThread]:
    """A server with ``engine``."""
    from tests.support.serving import scripted, serving

    with serving(scripted(engine)) as running:
        yield running


@pytest.fixture
def face(server: ServerThread) -> Iterator[Any]:
    """A plain gRPC stub of ``server``."""
    from tests.support.serving import stub

    with stub(server.address) as made:
        yield made


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Without PyTorch (an installed wheel) only modules marked ``runtime`` are read: the others import what is not there."""
    if importlib.util.find_spec("torch") is not None or not collection_path.name.startswith("test_"):
        return None
    return "pytest.mark.runtime" not in collection_path.read_text(encoding="utf-8") or None
