"""A machine with TensorRT, pycuda and a GPU of paper, and bundles that its builder takes."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.builder import BuildRequest, build
from f2edge.bundle.bundle import MANIFEST, Bundle, write_manifest
from tests.support.tensorrt.cuda_double import CudaDouble, install
from tests.support.tensorrt.tensorrt_double import tensorrt_double

#: For the paper GPU (:class:`tests.support.tensorrt.cuda_double.CudaDouble`): an Orin Nano.
PROFILE = "orin-nano"


class Machine:
    """What a test needs of it: the device, the library, and where this user's files are."""

    def __init__(self, cuda: CudaDouble, trt: Any, user: Path) -> None:
        self.cuda, self.trt, self.user = cuda, trt, user

    def build(self, bundle: Path, **options: Any) -> Path:
        """Plans of a bundle; their folder."""
        return build(bundle, BuildRequest(**{"profile": PROFILE, "force": True, **options})).folder

    def calls(self, owner: str, method: str) -> list[dict[str, Any]]:
        """Arguments of every call so far."""
        return [bound for o, m, bound in self.trt.calls if (o, m) == (owner, method)]


def machine(
    monkeypatch: pytest.MonkeyPatch,
    user: Path,
    version: str = "10.3.0",
    *,
    integrated: bool = False,
    graphs: bool = True,
    library: str = "pycuda",
) -> Machine:
    """Put the doubles where ``import`` finds them, and the user's folders into ``user``."""
    cuda = CudaDouble(integrated=integrated)
    trt = tensorrt_double(version, cuda)
    install(monkeypatch, cuda, library=library, graphs=graphs)
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(user / name))
    return Machine(cuda, trt, user)


def planned_bundle(source: Path, folder: Path) -> Path:
    """A bundle with plans of TensorRT 10.3 for up to two pictures and four answers at once."""
    path = tensorrt_bundle(source, folder / "tiny")
    with pytest.MonkeyPatch.context() as patch:
        machine(patch, folder).build(path, image_rows=2, answer_rows=4)
    return path


def tensorrt_bundle(source: Path, folder: Path) -> Path:
    """A copy of a bundle that says it is for TensorRT."""
    shutil.copytree(source, folder)
    document = json.loads((folder / MANIFEST).read_text())
    for row in document["graphs"].values():
        row["recipe"] = {"name": "fp16"}
    write_manifest(folder, {**document, "flavour": "tensorrt"})
    return Bundle.load(folder).folder


def extend_feeds(bundle: Bundle, rows: int, columns: int, earlier: int) -> dict[str, Any]:
    """Inputs of "mmu_extend": ``columns`` new tokens in each row, after up to ``earlier`` ones and a picture that all rows share."""
    model = bundle.configuration
    generator = np.random.default_rng([rows, columns, earlier])

    def cache(B: int, columns: int) -> Any:
        return generator.normal(size=(model.layers, B, model.heads, columns, model.head_width)).astype(np.float32)

    prefix = model.understanding_columns
    return {
        "text_ids": generator.integers(0, 100, size=(rows, columns)),
        "text_lengths": generator.integers(columns, columns + earlier + 1, size=rows) if earlier else np.full(rows, columns),
        "image_key": cache(1, prefix),
        "image_value": cache(1, prefix),
        "text_key": cache(rows, earlier),
        "text_value": cache(rows, earlier),
    }
