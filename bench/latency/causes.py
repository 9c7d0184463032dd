"""Causes of the operators of a quantized decoding step, for its profile.

>>> causes_of(onnx.load("t2i_step.onnx").graph)  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import onnx

PRODUCTS, HEAD, SCALES, BIASES, ROUTERS = "products", "head", "scales of inputs", "scales and biases of products", "routers"
ATTENTION, SAMPLING, SUMS, REST = "attention", "sampling", "norms, activations, sums", "embedding, gates, layout"

_LINEAR = ("MatMulIntegerToFloat", "MatMulNBits", "DynamicQuantizeMatMul", "QMoE")
_ATTENTION = ("RotaryEmbedding", "FusedMatMul", "MultiHeadAttention")
_ELEMENTWISE = ("LayerNormalization", "Gelu", "FastGelu", "BiasGelu", "Add", "Sum", "Mul")
#: Causes of operators that ONNX Runtime makes out of several.
HELD = {"FastGelu": SUMS, "BiasGelu": SUMS, "SkipLayerNormalization": SUMS, "QuickGelu": SUMS, "FusedMatMul": ATTENTION}


class _Graph:
    """Who makes and who reads each value."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.nodes = list(graph.node)
        self.constants = {tensor.name for tensor in graph.initializer}
        self.constants |= {node.output[0] for node in self.nodes if node.op_type == "Cast" and node.input[0] in self.constants}
        self.maker = {name: place for place, node in enumerate(self.nodes) for name in node.output}
        self.readers: dict[str, list[int]] = {}
        for place, node in enumerate(self.nodes):
            for name in node.input:
                self.readers.setdefault(name, []).append(place)

    def computed(self, place: int) -> list[int]:
        """Return the nodes that make a node's inputs."""
        return [self.maker[name] for name in self.nodes[place].input if name in self.maker]

    def behind(self, place: int) -> list[int]:
        """Return the nodes that read a node's outputs."""
        return [reader for name in self.nodes[place].output for reader in self.readers.get(name, [])]

    def before(self, values: Iterable[str]) -> set[int]:
        """Return all nodes that some values depend on."""
        found, waiting = set[int](), [self.maker[name] for name in values if name in self.maker]
        while waiting:
            place = waiting.pop()
            if place not in found:
                found.add(place)
                waiting += self.computed(place)
        return found

    def only_from(self, seeds: Iterable[int], stop: Callable[[int], bool]) -> set[int]:
        """Return the nodes whose computed inputs all come from ``seeds``, with them; none behind one that ``stop`` names."""
        found = set(seeds)
        waiting = [reader for place in found for reader in self.behind(place)]
        while waiting:
            place = waiting.pop()
            if place not in found and not stop(place) and all(maker in found for maker in self.computed(place)):
                found.add(place)
                waiting += self.behind(place)
        return found


def causes_of(graph: onnx.GraphProto) -> list[str]:
    """Return the cause of each node of a ``t2i_step``."""
    g = _Graph(graph)
    causes: dict[int, str] = {}

    def claim(places: Iterable[int], cause: str) -> None:
        for place in places:
            causes.setdefault(place, cause)

    drawn = set(range(len(g.nodes))) - g.before(["logits"])
    claim(drawn, SAMPLING)
    products = [place for place, node in enumerate(g.nodes) if node.op_type in _LINEAR]
    claim((p for p in products if any(name.startswith("head.") for name in g.nodes[p].input)), HEAD)
    claim(products, PRODUCTS)
    claim(_scales(g), SCALES)
    claim(_after(g, products), BIASES)
    routers = [p for p, n in enumerate(g.nodes) if n.op_type == "MatMul" and any(".router." in name for name in n.input)]
    claim(g.only_from(routers, lambda place: place in causes), ROUTERS)
    claim(_attention(g), ATTENTION)
    claim((p for p, n in enumerate(g.nodes) if n.op_type in _ELEMENTWISE), SUMS)
    claim(range(len(g.nodes)), REST)
    return [causes[place] for place in range(len(g.nodes))]


def _scales(g: _Graph) -> set[int]:
    """Return the nodes that quantize inputs of products: by fixed scales, or by the largest value of each row."""
    found = set[int]()
    for place, node in enumerate(g.nodes):
        if node.op_type != "QuantizeLinear":
            continue
        found.add(place)
        waiting = [maker for maker in g.computed(place) if g.nodes[maker].op_type == "Div"]
        while waiting:
            maker = waiting.pop()
            found.add(maker)
            waiting += [m for m in g.computed(maker) if g.nodes[m].op_type in ("Max", "Neg", "ReduceMax", "ReduceMin", "Abs")]
    return found


def _after(g: _Graph, products: Iterable[int]) -> set[int]:
    """Return the products' scales and biases."""
    found = set[int]()
    for place in products:
        for reader in g.behind(place):
            if g.nodes[reader].op_type in ("Mul", "Add"):
                found.add(reader)
                biases = (r for r in g.behind(reader) if g.nodes[r].op_type == "Add" and set(g.nodes[r].input) & g.constants)
                found |= set(biases) if g.nodes[reader].op_type == "Mul" else set()
    return found


def _attention(g: _Graph) -> set[int]:
    """Return rotation, scores, softmax and what lies between the split of queries, keys and values and the output's input."""
    found = {place for place, node in enumerate(g.nodes) if node.op_type in _ATTENTION}
    near = ("Split", "Reshape", "Transpose", "Concat", "Softmax", "Add", "MatMul")
    for _ in range(5):
        found |= {m for place in found for m in g.computed(place) if g.nodes[m].op_type in near[:4]}
        if any(g.nodes[place].op_type == "MultiHeadAttention" for place in found):
            continue
        found |= {r for place in found for r in g.behind(place) if g.nodes[r].op_type in near[1:] and g.nodes[place].op_type != "Split"}
    return found
