"""ONNX graphs as parts of a model: run by ONNX Runtime, and exported as they are.

identity = StoredGraph(Path("glintr100.onnx"), before=FaceTo112(256, template), vectors=1)
tokenizer = StoredTokenizer(Bundle.load("nano"))
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from f2edge.bundle.bundle import Bundle
from f2edge.errors import InputError
from f2edge.spec.configuration import ImageTokenizerConfiguration


class StoredGraph(nn.Module):
    """An ONNX graph with one input and one output.

    Args:
        file: of the graph; its external data lie beside it.
        before: what its input is computed by, or None.
        features: whether the output (B, F) becomes (B, 1, F).
        precision: in the manifest.
        recipe: likewise.
    """

    def __init__(
        self, file: Path, *, before: nn.Module | None = None, features: bool = False, precision: str = "fp32", recipe: Any = None
    ) -> None:
        super().__init__()
        self.file, self.before, self.features = file, before, features
        self.precision, self.recipe = precision, dict(recipe or {})
        self._session: Any = None

    def __deepcopy__(self, _memo: Any) -> StoredGraph:
        """Return the same object: a session cannot be copied, and nothing here changes."""
        return self

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the graph's output, as float32 or int64, on the device of ``pixels`` (B, 3, Y, X)."""
        value = pixels if self.before is None else self.before(pixels)
        rows = value.detach().float().cpu().numpy() if value.is_floating_point() else value.detach().cpu().numpy()
        session = self._opened(pixels.device)
        single = session.get_inputs()[0].shape[0] == 1  # a batch that was fixed
        name, parts = session.get_inputs()[0].name, np.split(rows, len(rows)) if single else [rows]
        found = torch.from_numpy(np.concatenate([session.run(None, {name: part})[0] for part in parts])).to(pixels.device)
        return found[:, None] if self.features else found

    def _opened(self, device: torch.device) -> Any:
        if self._session is None:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            options.intra_op_num_threads = torch.get_num_threads()
            providers: list[Any] = ["CPUExecutionProvider"]
            if device.type == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
                providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0}))
            self._session = onnxruntime.InferenceSession(str(self.file), options, providers=providers)
        return self._session

    def model(self, opset: int) -> ir.Model:
        """Return the graph in operators of ``opset``, its input called "input" and its output "output", (B, 1, F) for features."""
        model = ir.load(self.file)
        if model.graph.opset_imports.get("", opset) < opset:
            import onnx
            from onnx import version_converter

            loaded = onnx.load(str(self.file))
            del loaded.graph.value_info[:]
            model = ir.serde.deserialize_model(version_converter.convert_version(loaded, opset))
        graph = model.graph
        stored = set(graph.initializers)
        graph.inputs[:] = [value for value in graph.inputs if value.name not in stored]  # old files list constants among the inputs
        graph.inputs[0].name = "input"
        output = graph.outputs[0]
        if self.features:
            axes = ir.val("features/axes", const_value=ir.tensor(np.array([1], np.int64), name="features/axes"))
            graph.register_initializer(axes)
            node = ir.node("Unsqueeze", [output, axes])
            node.outputs[0].type = output.type
            graph.append(node)
            graph.outputs[0] = node.outputs[0]
        graph.outputs[0].name = "output"
        return model


class StoredTokenizer(nn.Module):
    """The image tokenizer of a bundle."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        self.configuration: ImageTokenizerConfiguration = bundle.configuration.tokenizer
        self.encoder, self.decoder = stored_graph(bundle, "image_encode"), stored_graph(bundle, "image_decode")

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, Y, X) in [-1, 1] → codes (B, N) int64."""
        codes: Tensor = self.encoder(pixels)
        return codes

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, N) int64 → pixels (B, 3, Y, X) in [-1, 1]."""
        pixels: Tensor = self.decoder(codes)
        return pixels


def stored_graph(bundle: Bundle, graph: str) -> StoredGraph:
    """Return one graph of a bundle; raises :class:`InputError` for a bundle of another runtime."""
    if bundle.manifest.flavour != "onnxruntime":
        raise InputError(f"bundle {bundle.name!r} is of flavour {bundle.manifest.flavour!r}; give one that ONNX Runtime reads")
    row = bundle.manifest.document["graphs"][graph]
    return StoredGraph(bundle.path(graph), precision=row["precision"], recipe=row["recipe"])
