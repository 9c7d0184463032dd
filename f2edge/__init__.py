"""Text to face, face to text: a unified masked-token face model for small machines.

>>> from f2edge import FacePipeline                                                         # doctest: +SKIP
>>> FacePipeline.load().generate("a smiling woman with red hair", seeds=7)[0].save("face.png")         # doctest: +SKIP

Public names are imported on first use, so ``import f2edge`` loads no heavy library.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from f2edge.bundle.bundle import Bundle, list_bundles
    from f2edge.errors import F2EdgeError, InputError
    from f2edge.imaging.images import load_image
    from f2edge.pipeline import FacePipeline
    from f2edge.results import GenerateOptions

__version__ = "0.1.0"

# ONNX Runtime's wheels (seen in 1.31.1) send telemetry from the moment they are loaded and keep an identifier in the user's cache,
# unless this variable is set first.  A value that the user has set is kept.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# gRPC's own library writes to stderr what its peers send it, escape sequences and line ends included (a GOAWAY's text, for one).
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

_HOMES = {
    "Bundle": "f2edge.bundle.bundle",
    "F2EdgeError": "f2edge.errors",
    "FacePipeline": "f2edge.pipeline",
    "GenerateOptions": "f2edge.results",
    "InputError": "f2edge.errors",
    "list_bundles": "f2edge.bundle.bundle",
    "load_image": "f2edge.imaging.images",
}

__all__ = ["Bundle", "F2EdgeError", "FacePipeline", "GenerateOptions", "InputError", "__version__", "list_bundles", "load_image"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'f2edge' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
