"""Parity: what the exported graphs compute, against PyTorch, on real inputs, in numbers that travel in the manifest.

:class:`TorchBackend` runs the graphs of ``f2edge.spec.graphs`` with the PyTorch modules, behind the same interface as every other backend,
so the whole runtime (``FacePipeline``) runs on it, and a reference run is an ordinary run.  :class:`Comparer` gives what such a run feeds
to each graph to the written graph too, and adds up the differences as it goes (:mod:`export.verify.comparison`): nothing is kept but sums.

Measured by :func:`measure`, per graph: largest and mean error and cosine of every float output, agreement of every integer output, the same
for the logits inside the step graph, routing agreement (:mod:`export.verify.census`), and whether whole decodings of many prompts end in
the same tokens.  In fp32 these must be the same up to ties, which are listed with their margin.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn
from typing_extensions import Self

from export.graph.lower import Array
from export.graph.sampling import gumbel, sample
from export.graph.trace import Models, wrapper
from export.model.experts import Router
from export.quantize.calibration import only
from export.verify.census import LostExpertError, RoutingAgreement, find_routers, mixtures, routing_agreement
from export.verify.comparison import GraphComparison
from f2edge.backends.base import InTurn, Value, host, pack_arrays
from f2edge.backends.onnxruntime import OnnxRuntimeBackend
from f2edge.decoding.parallel import decode
from f2edge.decoding.schedule import Schedule, plan
from f2edge.inference import Inference
from f2edge.spec.graphs import SIGNATURES
from f2edge.spec.layout import TokenLayout, left_pad

#: Share of routing decisions in which a graph of each precision must agree with PyTorch.  In fp32 only ties may differ; int8 moves the
#: activations that later routers see; a frozen or dropped expert is far below either.
LEAST_ROUTING_AGREEMENT: Mapping[str, float] = {"fp32": 0.9999, "fp16": 0.98, "int8": 0.95, "fp8": 0.85, "int4": 0.8}
#: The same for random weights, whose routers decide by a hair: 93.6 % in int8 at 1.8b.  Of eight experts with four active, a dropped one
#: costs half of the decisions.
LEAST_UNTRAINED: Mapping[str, float] = {**LEAST_ROUTING_AGREEMENT, "int8": 0.85, "fp8": 0.7, "int4": 0.65}

_SAMPLING = ("codes", "token_temperature", "temperature", "noise_key", "priority", "masked_after")


class TorchBackend(InTurn):
    """The graphs of one model, run by PyTorch in fp32; a :class:`f2edge.backends.base.Backend`.

    ``chosen`` collects the routers' decisions of each graph while ``record_routing`` is on: graph → mixture → list of (…, K).
    """

    name = "torch"

    def __init__(self, models: Models) -> None:
        self.models = models
        self.record_routing = False
        self.chosen: dict[str, dict[str, list[Array]]] = {}
        self.logits: list[Array] = []
        self._modules: dict[str, nn.Module] = {}
        self._running = ""
        if models.transformer is not None:
            for name, module in models.transformer.named_modules():
                if isinstance(module, Router):
                    module.register_forward_hook(self._listener(name.removesuffix(".router")))

    def _listener(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hear(module: nn.Module, _inputs: Any, outputs: tuple[Tensor, Tensor, Tensor]) -> None:
            if self.record_routing and isinstance(module, Router):
                indices = torch.topk(outputs[1], module.active, dim=-1).indices.numpy()
                self.chosen.setdefault(self._running, {}).setdefault(name, []).append(indices)

        return hear

    def run(self, graph: str, feeds: Mapping[str, Value]) -> dict[str, Value]:
        """Outputs of ``graph`` by name."""
        if graph not in self._modules:
            self._modules[graph] = wrapper(graph, self.models)
        module, self._running = self._modules[graph], graph
        tensors = {name: torch.from_numpy(np.array(host(value))) for name, value in feeds.items()}
        with torch.inference_mode():
            if graph == "t2i_step":
                own = [t.name for t in SIGNATURES[graph].inputs if t.name not in _SAMPLING[1:]]
                logits = module(*(tensors[name] for name in own))
                self.logits = [logits.numpy()]
                outputs = sample(logits, **{name: tensors[name] for name in _SAMPLING})
            else:
                order = [t.name for t in SIGNATURES[graph].inputs if t.name in tensors]
                outputs = module(*(tensors[name] for name in order))
        listed = outputs if isinstance(outputs, tuple) else (outputs,)
        return {t.name: output.numpy() for t, output in zip(SIGNATURES[graph].outputs, listed, strict=True)}

    def pack(self, caches: Sequence[Value]) -> Value:
        """As :class:`f2edge.backends.base.Backend`."""
        return pack_arrays([host(cache) for cache in caches])


@dataclass(frozen=True)
class Inputs:
    """Real inputs to measure with.

    Attributes:
        prompts: text tokens of each prompt, without specials.
        questions: text tokens of questions.
        pixels: faces, float32 (B, 3, Y, X) in [-1, 1].
        seeds: one of each prompt.
        read_pixels: the faces as an encoder reads them that stands for the image tokenizer in MMU; None where the tokens are read.
        schedule: how the prompts are decoded.
    """

    prompts: Sequence[Sequence[int]]
    questions: Sequence[Sequence[int]]
    pixels: Array
    seeds: Sequence[int]
    schedule: Schedule = field(default_factory=Schedule)
    read_pixels: Array | None = None


def generate(backend: Any, layout: TokenLayout, inputs: Inputs, rows: int = 10) -> Array:
    """Decode every prompt, ``rows`` together: int64 (prompts, N)."""
    inference = Inference(backend, layout)
    everything = np.ones(layout.image_tokens, dtype=bool)
    grids = []
    for first in range(0, len(inputs.prompts), rows):
        seeds = list(inputs.seeds[first : first + rows])
        group = [inference.prompt_prefix(prompt) for prompt in inputs.prompts[first : first + rows]]
        masked = np.full((len(group), layout.image_tokens), layout.mask_code, dtype=np.int64)
        grids.append(decode(inference.step(group), masked, [plan(inputs.schedule, everything, seed) for seed in seeds], seeds))
    return np.concatenate(grids)


def understand(backend: Any, graphs: Sequence[str], layout: TokenLayout, inputs: Inputs) -> None:
    """Run every other graph once or more: pictures through tokenizer and encoders, all questions behind each picture, one more token."""
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
    """A function that runs a written graph and also returns its logits ("logits") and its routers' choices (by mixture)."""
    model = ir.load(folder / f"{graph}.onnx")
    probes = dict(find_routers(model.graph))
    if graph == "t2i_step":
        values = {value.name: value for node in model.graph for value in node.outputs}
        probes["logits"] = values["logits"]
    names = [str(value.name) for value in model.graph.outputs]
    for name, value in probes.items():
        value.dtype = ir.DataType.FLOAT if name == "logits" else ir.DataType.INT64
        model.graph.outputs.append(value)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".probe-", suffix=".onnx") as file:
        ir.save(model, file.name)
        backend = OnnxRuntimeBackend(partial(only, Path(file.name)), threads)

        def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
            # under a name of its own, because the backend splits large steps and so changes the order of branches
            outputs = {name: host(value) for name, value in backend.run(f"probed {graph}", feeds).items()}
            return {name: outputs[name] for name in names} | {name: outputs[str(value.name)] for name, value in probes.items()}

        yield run


def margins(feeds: Mapping[str, Array], logits: Array, tokens: tuple[Array, Array]) -> list[float]:
    """How far apart PyTorch saw two implementations' tokens where they differ: difference of the perturbed logits, one per position."""
    codes, (mine, theirs) = feeds["codes"], tokens
    rows, columns = np.nonzero((mine != theirs) & (codes == logits.shape[-1]))
    result = []
    for row, column in zip(rows, columns, strict=True):
        pair = torch.tensor([mine[row, column], theirs[row, column]])
        noise = gumbel(torch.tensor(feeds["noise_key"][row, column]), pair).numpy()
        scores = logits[row, column][pair.numpy()] / feeds["token_temperature"][row] + noise
        result.append(float(abs(scores[0] - scores[1])))
    return result


class Comparer:
    """A backend that runs PyTorch and gives the first ``limit`` calls of each graph to the written graph as well.

    Leaving the block closes the written graphs; they are opened when first called.
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
        """PyTorch's outputs."""
        comparison = self.graphs.setdefault(graph, GraphComparison())
        if comparison.calls >= self._limit:
            return self.reference.run(graph, feeds)
        self.reference.chosen, self.reference.record_routing = {}, True
        try:
            outputs = self.reference.run(graph, feeds)
        finally:
            self.reference.record_routing = False
        if graph not in self._opened:
            self._opened[graph] = self._stack.enter_context(probed(self._folder, graph))
        arrays = {name: host(value) for name, value in feeds.items()}
        wanted, found, ties = {name: host(value) for name, value in outputs.items()}, self._opened[graph](arrays), list[float]()
        if graph == "t2i_step":
            ties = margins(arrays, self.reference.logits[0], (wanted["proposal"], found["proposal"]))
            wanted["logits"] = self.reference.logits[0]
        comparison.choose(self.reference.chosen.get(graph, {}))
        comparison.add(wanted, found, ties)
        return outputs

    def pack(self, caches: Sequence[Value]) -> Value:
        """As :class:`f2edge.backends.base.Backend`."""
        return self.reference.pack(caches)

    def routing(self, graph: str) -> RoutingAgreement | None:
        """How often the written graph chose PyTorch's experts; None for a graph without experts."""
        model, comparison = self.reference.models.transformer, self.graphs[graph]
        layers = mixtures(model, graph) if model is not None else {}
        if not layers:
            return None
        chosen = {name: parts for name, parts in comparison.chosen.items() if name in layers}
        return routing_agreement(chosen, comparison.found, {name: layer.router.weight.shape[0] for name, layer in layers.items()})


def check_routing(graph: str, routing: RoutingAgreement, precision: str, *, untrained: bool = False) -> None:
    """Fail the export of a graph that chooses other experts than PyTorch more often than its precision explains."""
    least = (LEAST_UNTRAINED if untrained else LEAST_ROUTING_AGREEMENT)[precision]
    if routing.share < least:
        raise LostExpertError(
            f"graph {graph!r} ({precision}): {routing.share:.2%} of {routing.decisions} routing decisions agree with PyTorch, "
            f"at least {least:.2%} must; the traced module routes otherwise than the model, or a router was quantised"
        )


def measure(
    folder: Path,
    models: Models,
    layout: TokenLayout,
    inputs: Inputs,
    *,
    precision: str | Mapping[str, str] = "fp32",
    recorded_steps: int = 60,
    untrained: bool = False,
) -> dict[str, Any]:
    """Parity and census figures of the graphs in ``folder``, as the manifest's ``parity`` and ``experts``.

    Args:
        folder: written graphs.
        models: what they were traced from.
        layout: token layout.
        inputs: real ones.
        precision: of the graphs, "fp32", "int8" or "int4"; of each by name where they differ.
        recorded_steps: decoding steps and pictures that are compared value by value; whole decodings are compared for all prompts.
        untrained: the weights are random.

    Raises:
        LostExpertError: a router decides in PyTorch or in a graph only, or otherwise.
    """
    reference = TorchBackend(models)
    parity: dict[str, Any] = {"graphs": {}}
    comparisons: dict[str, tuple[GraphComparison, RoutingAgreement | None]] = {}

    def keep(comparer: Comparer) -> None:
        comparisons.update({graph: (comparison, comparer.routing(graph)) for graph, comparison in comparer.graphs.items()})

    # one block for each kind of work, so that only its graphs are open
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
        figures = comparison.figures()
        parity["graphs"][graph] = figures
        if routing is not None:
            check_routing(graph, routing, precision if isinstance(precision, str) else precision[graph], untrained=untrained)
            figures["routing"] = {"agreement": routing.share, "decisions": routing.decisions}
            decisions, same = decisions + routing.decisions, same + routing.same
            usage[graph] = {name: list(shares) for name, shares in routing.usage.items()}
    if decisions:
        parity["routing"] = {"agreement": same / decisions, "decisions": decisions}
    return {"parity": parity, "experts": {"usage": usage}}
