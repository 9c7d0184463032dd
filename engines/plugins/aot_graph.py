"""Graph rewrite for the ahead-of-time plug-ins: replaces every ``F2FusedMoE`` with the nodes of :mod:`engines.plugins.tensorrt_aot`.

Needs the ``onnx`` package.  External weight files are not modified.

    python -m engines aot-nodes bundle/t2i_step.onnx --tokens 258
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engines.plugins.fused_moe import INPUTS, MoEShape, choose_tile
from engines.plugins.tensorrt_aot import NAMESPACE, OPERATORS
from f2edge.errors import BackendError, InputError
from f2edge.provenance.saving import write_atomically

NODE = "F2FusedMoE"
_CURE = "give a graph of a bundle exported with `--flavour tensorrt --moe plugin`"


def _attributes(node: Any) -> dict[str, int]:
    found = {a.name: int(a.i) for a in node.attribute if a.name in ("active", "gated")}
    if "active" not in found:
        raise InputError(f"node {node.name!r}: {NODE} needs the attribute active")
    return {"gated": 0, **found}


def chain(onnx: Any, node: Any, shape: MoEShape, tokens: int) -> list[Any]:
    """Return the nodes that replace one ``F2FusedMoE`` of this shape, with the tile for ``tokens`` rows.

    The plug-ins work on rows (T, D); the last node reshapes the result to the axes of x.
    """
    x, y = node.input[0], node.output[0]
    values = {"active": shape.active, "gated": int(shape.gated), "count": shape.experts, "rows": choose_tile(shape, tokens).rows}
    names: dict[str, str] = dict(zip(INPUTS, node.input, strict=True))

    def inner(value: str) -> str:
        return names.get(value, f"{node.name or y}/{value}")

    results = {
        "F2MoeRoute": ("experts", "gates"),
        "F2MoeSort": ("order", "blocks"),
        "F2MoeUp": ("hidden",),
        "F2MoeDown": ("parts",),
        "F2MoeCombine": ("rows",),
    }
    nodes = [
        onnx.helper.make_node(
            operator.name,
            [inner(name) for name in operator.inputs],
            [inner(name) for name in results[operator.name]],
            name=f"{node.name or y}/{operator.kernel}",
            domain=NAMESPACE,
            plugin_namespace=NAMESPACE,
            plugin_version="1",
            aot=1,
            **{name: values[name] for name in operator.attributes},
        )
        for operator in OPERATORS
    ]
    axes = inner("axes")
    nodes.append(onnx.helper.make_node("Shape", [x], [axes], name=axes))
    nodes.append(onnx.helper.make_node("Reshape", [inner("rows"), axes], [y], name=f"{node.name or y}/reshape"))
    return nodes


def _rename(graph: Any) -> None:
    """Remove the operator's name from names of nodes and values, since :mod:`engines.plugin_nodes` searches for its bytes."""
    fixed = {value.name for value in (*graph.input, *graph.output, *graph.initializer)}
    for node in graph.node:
        node.name = node.name.replace(NODE, "experts")
        for values in (node.input, node.output):
            values[:] = [name if name in fixed else name.replace(NODE, "experts") for name in values]
    for value in graph.value_info:
        value.name = value.name.replace(NODE, "experts")


def rewrite(onnx: Any, model: Any, tokens: int) -> int:
    """Replace every ``F2FusedMoE`` of a model in place; return how many there were.

    Raises:
        InputError: the weights of a node are not constants of the graph.
    """
    sizes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    nodes, count = [], 0
    _rename(model.graph)
    for node in model.graph.node:
        if node.op_type != NODE:
            nodes.append(node)
            continue
        if len(node.input) != len(INPUTS) or any(name not in sizes for name in node.input[1:]):
            raise InputError(f"node {node.name!r}: the weights of {NODE} must be constants of the graph")
        attributes = _attributes(node)
        D, E = sizes[node.input[1]]
        I = sizes[node.input[5]][1]
        shape = MoEShape(D, E, I, attributes["active"], bool(attributes["gated"]))
        nodes.extend(chain(onnx, node, shape, tokens))
        count += 1
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return count


def rewrite_file(path: Path, tokens: int) -> tuple[Path, int]:
    """Write ``NAME.aot.onnx`` beside a graph, with the same external weights; return its path and the number of replaced nodes.

    ``python -m engines build`` reads only graphs named in a bundle's manifest, so not this file (docs/fused-experts.md).

    Raises:
        InputError: the file is not an ONNX graph, or has no node to replace.
        BackendError: the onnx package is missing.
        OutputError: the file cannot be written.
    """
    try:
        import onnx
    except ImportError as error:
        raise BackendError(f"rewriting graphs needs the onnx package, which cannot be imported ({error}); pip install onnx") from error
    try:
        model = onnx.load(path, load_external_data=False)
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise InputError(f"{path} cannot be read as ONNX ({error}); {_CURE}") from error
    except Exception as error:
        if type(error).__name__ != "DecodeError":  # protobuf moved this class between its packages
            raise
        raise InputError(f"{path} is not an ONNX file ({error}); {_CURE}") from error
    count = rewrite(onnx, model, tokens)
    if not count:
        raise InputError(f"{path} has no node {NODE}; {_CURE}")
    target = path.with_suffix(".aot.onnx")
    write_atomically(target, model.SerializeToString(), durable=True)
    return target, count
