"""When a plan that lies there is still the plan that a build would make: a digest of everything that shapes it.

Left out on purpose: the exact build of the driver (the CUDA version that it offers counts) and how much memory was free.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from engines.shapes import GraphShapes
from f2edge.backends.tensorrt.plans import Machine, file_sha256
from f2edge.bundle.bundle import TOKENIZER, Bundle


def engine_key(
    bundle: Bundle, graph: str, *, shapes: GraphShapes, machine: Machine, settings: Mapping[str, Any], plugins: Mapping[str, str]
) -> str:
    """Digest of what a graph's plan is made from, lower-case hex.

    Args:
        bundle: whose graph; its file and all files of weights count, by the sums of its manifest.
        graph: name.
        shapes: its profiles and buckets.
        machine: GPU, multiprocessors, TensorRT, CUDA, L4T.
        settings: of the builder: workspace, level, flags, compatibility …; JSON.
        plugins: "namespace::name:version" → sum of the plug-in's code (:func:`code_sha256`).
    """
    entry = bundle.manifest.graphs[graph]
    weights = {name: file.sha256 for name, file in bundle.manifest.files.items() if not name.endswith(".onnx") and name != TOKENIZER}
    document = {
        "onnx": bundle.manifest.files[entry.file].sha256,
        "weights": weights,
        "machine": asdict(machine),
        "profiles": [dict(profile) for profile in shapes.profiles],
        "buckets": dict(shapes.buckets),
        "settings": dict(settings),
        "plugins": dict(plugins),
        "typing": "strong",
    }
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def code_sha256(folder: Path) -> str:
    """Sum over every file of a plug-in's code: sources and compiled kernels."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts):
        digest.update(f"{path.relative_to(folder).as_posix()} {file_sha256(path)}\n".encode())
    return digest.hexdigest()
