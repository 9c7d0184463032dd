"""Digest of everything that determines a plan, so that an up-to-date plan is not built again.

Excluded on purpose: the exact driver version (the CUDA version that it offers is included) and the amount of free memory.
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
    """Return the SHA-256 of everything that determines a graph's plan, in lower-case hex.

    Args:
        bundle: bundle of the graph; the manifest's checksums of the graph file and all weight files enter the digest.
        graph: graph name.
        shapes: optimization profiles and buckets.
        machine: GPU, multiprocessors, TensorRT, CUDA, L4T.
        settings: builder settings (workspace, level, flags, compatibility …) as JSON.
        plugins: "namespace::name:version" → :func:`code_sha256` of the plug-in.
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
    """Return the SHA-256 over all files of a plug-in: sources and compiled kernels."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts):
        digest.update(f"{path.relative_to(folder).as_posix()} {file_sha256(path)}\n".encode())
    return digest.hexdigest()
