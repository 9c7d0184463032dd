"""Parity of exported graphs with PyTorch on real inputs, as metrics for the manifest.

:class:`TorchBackend` runs the graphs of ``f2edge.spec.graphs`` with the PyTorch modules behind the ordinary backend interface, so the whole
runtime (``FacePipeline``) runs on it.  :class:`Comparer` passes the inputs of each call to the exported graph as well and accumulates the
differences (:mod:`export.verify.comparison`).

:func:`measure` reports for each graph: largest and mean error and cosine of every float output and of the logits inside the step graph,
agreement of every integer output, routing agreement (:mod:`export.verify.census`), and the share of prompts whose decodings end in the same
tokens.  In fp32 tokens may differ only by ties, which are listed with their margin.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn
from typing_extensions import Self

from export.graph.lower import Array
from export.graph.sampling import SAMPLING_INPUTS, contest, sample, step_inputs
from export.graph.trace import Models, wrapper
from export.model.experts import Router
from export.verify.census import LostExpertError, RoutingAgreement, find_routers, mixtures, routing_agreement
from export.verify.comparison import GraphComparison
from f2edge.backends.base import Sequential, Value, host, pack_arrays
from f2edge.backends.onnxruntime import OnnxRuntimeBackend
from f2edge.decoding.parallel import decode
from f2edge.decoding.schedule import Schedule, plan
from f2edge.inference import Inference
from f2edge.spec.configuration import DRAWS
from f2edge.spec.graphs import SIGNATURES
from f2edge.spec.layout import TokenLayout, left_pad

#: Precision → minimum share of routing decisions that agree with PyTorch.  In fp32 only ties may differ; int8 changes the activations that
#: later routers read; a frozen or dropped expert gives far lower agreement.
MIN_ROUTING_AGREEMENT: Mapping[str, float] = {
    "fp32": 0.9999,
    "fp16": 0.98,
    "int8": 0.95,
    "fp8": 0.85,
    "int4": 0.8,
    "int4-gptq": 0.8,
    "nvfp4": 0.8,
}
#: The same for random weights, whose routers have small margins: 93.6 % in int8 at 1.8b.  A dropped one of eight experts with four active
#: changes half of the decisions.
MIN_UNTRAINED_AGREEMENT: Mapping[str, float] = {
    **MIN_ROUTING_AGREEMENT,
    "int8": 0.85,
    "fp8": 0.7,
    "int4": 0.65,
    "int4-gptq": 0.65,
    "nvfp4": 0.65,
}


@dataclass
class TorchRecord:
    """Internal values of one call: routing decisions, mixture → list of (…, K), and the step graph's guided logits (R, N, V)."""

    chosen: dict[str, list[Array]] = field(default_factory=dict)
    logits: Array | None = None


class TorchBackend(Sequential):
    """Backend that runs the graphs of one model by PyTorch in fp32; see :class:`f2edge.backends.base.Backend`."""

    name = "torch"

    def __init__(self, models: Models) -> None:
        self.models = models
        self._record: TorchRecord | None = None
        self._modules: dict[str, nn.Module] = {}
        if models.transformer is not None:
            for name, module in models.transformer.named_modules():
                if isinstance(module, Router):
                    module.register_forward_hook(self._routing_hook(name.removesuffix(".router")))

    def _routing_hook(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def record(module: nn.Module, _inputs: Any, outputs: tuple[Tensor, Tensor, Tensor]) -> None:
            if self._record is not None and isinstance(module, Router):
                indices = torch.topk(outputs[1], module.active, dim=-1).indices.numpy()
                self._record.chosen.setdefault(name, []).append(indices)

        return record

    def run_recorded(self, graph: str, feeds: Mapping[str, Value]) -> tuple[dict[str, Value], TorchRecord]:
        """Run ``graph`` and also return its routing decisions and logits."""
        self._record = record = TorchRecord()
        try:
            return self.run(graph, feeds), record
        finally:
            self._record = None

    def run(self, graph: str, feeds: Mapping[str, Value]) -> dict[str, Value]:
        """Return the outputs of ``graph`` by name."""
        if graph not in self._modules:
            self._modules[graph] = wrapper(graph, self.models)
        module = self._modules[graph]
        tensors = {name: torch.from_numpy(np.array(host(value))) for name, value in feeds.items()}
        with torch.inference_mode():
            if graph == "t2i_step":
                logits = module(*(tensors[name] for name in step_inputs()))
                if self._record is not None:
                    self._record.logits = logits.numpy()
                outputs = sample(logits, **{name: tensors[name] for name in SAMPLING_INPUTS}, draw=self.models.configuration.draw)
            else:
                order = [t.name for t in SIGNATURES[graph].inputs if t.name in tensors]
                outputs = module(*(tensors[name] for name in order))
        listed = outputs if isinstance(outputs, tuple) else (outputs,)
        return {t.name: output.numpy() for t, output in zip(SIGNATURES[graph].outputs, listed, strict=True)}

    def pack(self, caches: Sequence[Value]) -> Value:
        """Join caches; see :class:`f2edge.backends.base.Backend`."""
        return pack_arrays([host(cache) for cache in caches])


@dataclass(frozen=True)
class SampleInputs:
    """Real inputs for parity and calibration.

    Attributes:
        prompts: text tokens of each prompt, without specials.
        questions: text tokens of each question.
        pixels: faces, float32 (B, 3, Y, X) in [-1, 1].
        seeds: seed of each prompt.
        read_pixels: the faces for an encoder that replaces the image tokenizer in MMU; None where MMU reads tokens.
        schedule: decoding schedule of the prompts.
    """

    prompts: Sequence[Sequence[int]]
    questions: Sequence[Sequence[int]]
    pixels: Array
    seeds: Sequence[int]
    schedule: Schedule = field(default_factory=Schedule)
    read_pixels: Array | None = None


def generate(backend: Any, layout: TokenLayout, inputs: SampleInputs, rows: int = 10) -> Array:
    """Decode every prompt in batches of ``rows``; return codes int64 (prompts, N)."""
    inference = Inference(backend, layout)
    everything = np.ones(layout.image_tokens, dtype=bool)
    grids = []
    for first in range(0, len(inputs.prompts), rows):
        seeds = list(inputs.seeds[first : first + rows])
        group = [inference.prompt_prefix(prompt) for prompt in inputs.prompts[first : first + rows]]
        masked = np.full((len(group), layout.image_tokens), layout.mask_code, dtype=np.int64)
        grids.append(
            decode(inference.step(group), masked, [plan(inputs.schedule, everything, seed, layout.block) for seed in seeds], seeds)
        )
    return np.concatenate(grids)


def understand(backend: Any, graphs: Sequence[str], layout: TokenLayout, inputs: SampleInputs) -> None:
    """Run all other graphs: tokenizer and encoders for each picture, then all questions about it and one answer token."""
    inference = Inference(backend, layout)
    reading = inputs.pixels if inputs.read_pixels is None else inputs.read_pixels
    for pixels, read in zip(inputs.pixels[:, None], reading[:, None], strict=True):
        features = {name: backend.run(name, {"pixels": read})["features"] for name in ("semantic", "identity") if name in graphs}
        if "regions" in graphs:
            backend.run("regions", {"pixels": pixels})
        if "image_encode" not in graphs:
            continue
        codes = backend.run("image_encode", {"pixels": pixels})["codes"]
        backend.run("image_decode", {"codes": codes})
        if "mmu_prefill" not in graphs:
            continue
        feeds = {"codes": codes, **features} if inputs.read_pixels is None else features
        extend = inference.extend([inference.prefill_image(feeds)])
        ids, lengths = left_pad([layout.question(question) for question in inputs.questions], layout.pad)
        logits, state = extend(ids, lengths, None)
        extend(logits.argmax(-1)[:, None], lengths + 1, state)


@contextmanager
def probed(folder: Path, graph: str, threads: int | None = None) -> Iterator[Callable[[Mapping[str, Array]], dict[str, Array]]]:
    """Yield a function that runs an exported graph and also returns its logits ("logits") and its routers' choices (by mixture)."""
    model = ir.load(folder / f"{graph}.onnx")
    probes = dict(find_routers(model.graph))
    if graph == "t2i_step":
        values = {value.name: value for node in model.graph for value in node.outputs}
        probes["logits"] = values["logits"]
    names = [tensor.name for tensor in SIGNATURES[graph].outputs]
    for name, value in probes.items():
        value.dtype = ir.DataType.FLOAT if name == "logits" else ir.DataType.INT64
        model.graph.outputs.append(value)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".probe-", suffix=".onnx") as file:
        ir.save(model, file.name)
        backend = OnnxRuntimeBackend(lambda _graph: Path(file.name), threads, split=False)

        def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
            outputs = {name: host(value) for name, value in backend.run(graph, feeds).items()}
            return {name: outputs[name] for name in names} | {name: outputs[str(value.name)] for name, value in probes.items()}

        yield run


def margins(feeds: Mapping[str, Array], logits: Array, tokens: tuple[Array, Array], draw: str = DRAWS[0]) -> list[float]:
    """Return, for each position where two implementations' tokens differ, the difference of PyTorch's perturbed logits of both tokens.

    Where blocks race (``draw``), it is the difference of the blocks' if those differ.
    """
    codes, (mine, theirs) = feeds["codes"], tokens
    rows, columns = np.nonzero((mine != theirs) & (codes == logits.shape[-1]))
    result = []
    for row, column in zip(rows, columns, strict=True):
        pair = torch.tensor([mine[row, column], theirs[row, column]])
        tempered = torch.from_numpy(logits[row, column] / feeds["token_temperature"][row])
        scores = contest(tempered, torch.tensor(feeds["noise_key"][row, column]), pair, draw)
        result.append(float(abs(scores[0] - scores[1])))
    return result


class Comparer:
    """Backend that runs PyTorch, and the exported graph too for the first ``limit`` calls of each graph.

    Exported graphs are opened on first use and closed when the context ends.
    """

    name = "comparer"

    def __init__(self, reference: TorchBackend, folder: Path, limit: int) -> None:
        self.reference = reference
        self.graphs: dict[str, GraphComparison] = {}
        self._folder, self._limit = folder, limit
        self._opened: dict[str, Callable[[Mapping[str, Array]], dict[str, Array]]] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._opened.clear()
        self._stack.close()

    def run(self, graph: str, feeds: Mapping[str, Value]) -> dict[str, Value]:
        """Return PyTorch's outputs, and compare them with the exported graph's."""
        comparison = self.graphs.setdefault(graph, GraphComparison())
        if comparison.calls >= self._limit:
            return self.reference.run(graph, feeds)
        outputs, record = self.reference.run_recorded(graph, feeds)
        if graph not in self._opened:
            self._opened[graph] = self._stack.enter_context(probed(self._folder, graph))
        arrays = {name: host(value) for name, value in feeds.items()}
        wanted, found, ties = {name: host(value) for name, value in outputs.items()}, self._opened[graph](arrays), list[float]()
        if record.logits is not None:
            draw = self.reference.models.configuration.draw
            ties = margins(arrays, record.logits, (wanted["proposal"], found["proposal"]), draw)
            drawn = arrays["codes"] == record.logits.shape[-1]  # a graph may compute the logits of masked positions alone
            wanted["logits"] = record.logits if found["logits"].ndim == record.logits.ndim else record.logits[drawn]
        comparison.add_routing(record.chosen)
        comparison.add(wanted, found, ties)
        return outputs

    def pack(self, caches: Sequence[Value]) -> Value:
        """Join caches; see :class:`f2edge.backends.base.Backend`."""
        return self.reference.pack(caches)

    def routing(self, graph: str) -> RoutingAgreement | None:
        """Return the routing agreement of the exported graph with PyTorch; None for a graph without experts."""
        model, comparison = self.reference.models.transformer, self.graphs[graph]
        layers = mixtures(model, graph) if model is not None else {}
        if not layers:
            return None
        chosen = {name: parts for name, parts in comparison.chosen.items() if name in layers}
        return routing_agreement(chosen, comparison.found, {name: layer.router.weight.shape[0] for name, layer in layers.items()})


def check_routing(graph: str, routing: RoutingAgreement, precision: str, *, untrained: bool = False) -> None:
    """Raise :class:`LostExpertError` if a graph's routing agreement is below the minimum of its precision."""
    least = (MIN_UNTRAINED_AGREEMENT if untrained else MIN_ROUTING_AGREEMENT)[precision]
    if routing.share < least:
        raise LostExpertError(
            f"graph {graph!r} ({precision}): {routing.share:.2%} of {routing.decisions} routing decisions agree with PyTorch, "
            f"at least {least:.2%} must; the traced module routes differently from the model, or a router was quantized"
        )


def measure(
    folder: Path,
    models: Models,
    layout: TokenLayout,
    inputs: SampleInputs,
    *,
    precision: str | Mapping[str, str] = "fp32",
    recorded_steps: int = 60,
    untrained: bool = False,
) -> dict[str, Any]:
    """Measure parity and expert usage of the graphs in ``folder``, as the manifest's ``parity`` and ``experts``.

    Args:
        folder: exported graphs.
        models: the traced models.
        layout: token layout.
        inputs: real inputs.
        precision: precision of the graphs, "fp32", "int8" or "int4"; a mapping by graph if they differ.
        recorded_steps: decoding steps and pictures to compare value by value; whole decodings are compared for all prompts.
        untrained: whether the weights are random.

    Raises:
        LostExpertError: a router is missing in PyTorch or in a graph, or a graph routes differently.
    """
    reference = TorchBackend(models)
    parity: dict[str, Any] = {"graphs": {}}
    comparisons: dict[str, tuple[GraphComparison, RoutingAgreement | None]] = {}

    def keep(comparer: Comparer) -> None:
        comparisons.update({graph: (comparison, comparer.routing(graph)) for graph, comparison in comparer.graphs.items()})

    # one block for each task, so that only its graphs are open
    if "t2i_step" in models.graphs:
        with Comparer(reference, folder, recorded_steps) as comparer:
            wanted = generate(comparer, layout, inputs)
            keep(comparer)
        found = generate(OnnxRuntimeBackend(lambda graph: folder / f"{graph}.onnx"), layout, inputs)
        parity["decoding"] = {
            "prompts": len(inputs.prompts),
            "steps": inputs.schedule.steps,
            "identical": int((wanted == found).all(axis=1).sum()),
            "tokens": float((wanted == found).mean()),
        }
    with Comparer(reference, folder, recorded_steps) as comparer:
        understand(comparer, models.graphs, layout, inputs)
        keep(comparer)
    usage: dict[str, Any] = {}
    decisions = same = 0
    for graph, (comparison, routing) in comparisons.items():
        metrics = comparison.metrics()
        parity["graphs"][graph] = metrics
        if routing is not None:
            check_routing(graph, routing, precision if isinstance(precision, str) else precision[graph], untrained=untrained)
            metrics["routing"] = {"agreement": routing.share, "decisions": routing.decisions}
            decisions, same = decisions + routing.decisions, same + routing.same
            usage[graph] = {name: list(shares) for name, shares in routing.usage.items()}
    if decisions:
        parity["routing"] = {"agreement": same / decisions, "decisions": decisions}
    return {"parity": parity, "experts": {"usage": usage}}
