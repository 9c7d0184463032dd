"""The model of paper behind the engine's tests."""

from __future__ import annotations

import pytest

from f2edge.bundle.bundle import Bundle
from tests.support.engine_fake import Bench
from tests.support.paper_model import paper_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return paper_bundle(tmp_path_factory.mktemp("bundles") / "paper")


@pytest.fixture
def bench(bundle: Bundle) -> Bench:
    return Bench(bundle)
