"""A ``tensorrt`` module made from the table of one version's interface: what is not in the table cannot be called, set or read.

Methods check their arguments against the signatures (number, names, types), properties their existence and whether they can be set, and
enumerations have that version's members and numbers.  What a method *does* is written here as far as builder and runner need it:

* the parser reads the real ONNX file; the builder refuses dynamic inputs without a profile; a plan is a JSON document;
* an engine computes through ONNX Runtime on the memory of :mod:`tests.support.tensorrt.cuda_double`, at the addresses and shapes
  that it is told, and only when the stream gets there (``compute`` of the module replaces ONNX Runtime).
  A missing address, a shape outside the profile or a context without memory fails as in TensorRT.
* a context is in a state; a new profile, shape, address or memory changes it.  The first enqueue in a new state allocates, so it cannot be
  captured, and the state is settled once the stream was waited for.  A graph belongs to the state that it was captured in: launched in
  another one, it raises.

Every call is recorded in ``calls`` as ``(class, method, arguments)``.
"""

from __future__ import annotations

import enum
import hashlib
import json
import re
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from tests.support.tensorrt.cuda_double import CudaError
from tests.support.tensorrt.tensorrt_api import TABLE

VERSIONS = ("10.3.0", "10.13.3.9", "10.16.1.11", "11.4.0.106")
#: NumPy's names of TensorRT's types, as ``tensorrt.nptype`` has them.
NUMPY = {"FLOAT": "float32", "HALF": "float16", "INT8": "int8", "INT32": "int32", "INT64": "int64", "BOOL": "bool", "UINT8": "uint8"}

#: Memory that a context has for itself.
CONTEXT_BYTES = 4096


def table(version: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(TABLE.read_text())[version]
    return found


def tensorrt_double(version: str, cuda: Any = None, activations: int = 4096) -> ModuleType:
    """The module; ``cuda`` is a :class:`tests.support.tensorrt.cuda_double.CudaDouble` where engines are to run, ``activations`` what each
    asks for."""
    rows = table(version)
    module: Any = ModuleType("tensorrt")
    module.__version__ = version
    module.calls = []
    module.cuda, module.activations, module.compute = cuda, activations, _through_onnxruntime
    module.creators, module.most_contexts = set(), 1 << 30
    for name, members in rows["enumerations"].items():
        if "." not in name:
            setattr(module, name, _enumeration(name, members))
    for name, row in rows["classes"].items():
        setattr(module, name, _class(name, row, module))
    module.ILogger.Severity = _enumeration("Severity", rows["enumerations"]["ILogger.Severity"])
    for name, signatures in rows["functions"].items():
        setattr(module, name, _function(name, signatures, module))
    return module  # type: ignore[no-any-return]


def _enumeration(name: str, members: Mapping[str, int]) -> Any:
    """Like pybind11's: ``int()`` gives the number, which the object itself is not."""

    class Numbered(enum.Enum):
        def __int__(self) -> int:
            return int(self.value)

    return Numbered(name, dict(members))  # type: ignore[call-arg]  # Enum's functional form


def _class(name: str, row: Mapping[str, Any], module: Any) -> type:
    methods = {method: _method(name, method, signatures, module) for method, signatures in row["methods"].items() if method != "__init__"}
    properties = {p: _property(name, p, mode, module) for p, mode in row["properties"].items()}
    constructible = row["methods"].get("__init__")

    def make(self: Any, *arguments: Any, **named: Any) -> None:
        if not constructible:
            raise TypeError(f"tensorrt.{name}: No constructor defined!")
        bound = _bind(f"{name}.__init__", constructible, arguments, named, module)
        object.__setattr__(self, "_state", dict(bound))
        module.calls.append((name, "__init__", bound))

    def refuse(self: Any, attribute: str, value: Any) -> None:
        if type(self).__module__ == __name__ and attribute not in properties:  # a class derived in Python may have anything
            raise AttributeError(f"'tensorrt.{name}' object has no attribute '{attribute}'")
        object.__setattr__(self, attribute, value)

    bases = (bytearray,) if name == "IHostMemory" else ()
    own = {"nbytes": property(len)} if name == "IHostMemory" else {"__init__": make, "__setattr__": refuse}
    return type(name, bases, {**methods, **properties, **own, "__module__": __name__})


def _made(module: Any, kind_name: str, /, **state: Any) -> Any:
    """An object that only TensorRT makes."""
    kind = getattr(module, kind_name)
    made = kind.__new__(kind)
    object.__setattr__(made, "_state", state)
    return made


def _method(owner: str, method: str, signatures: list[str], module: Any) -> Callable[..., Any]:
    behaviour = BEHAVIOURS.get(f"{owner}.{method}")

    def call(self: Any, *arguments: Any, **named: Any) -> Any:
        bound = _bind(f"{owner}.{method}", signatures, arguments, named, module)
        module.calls.append((owner, method, bound))
        return behaviour(self, module, **bound) if behaviour else None

    return call


def _property(owner: str, name: str, mode: str, module: Any) -> property:
    def get(self: Any) -> Any:
        computed = PROPERTIES.get(f"{owner}.{name}")
        return computed(self, module) if computed else self._state.get(name)

    def put(self: Any, value: Any) -> None:
        module.calls.append((owner, f"{name}=", {"value": value}))
        self._state[name] = value

    return property(get, put if mode == "rw" else None)


def _function(name: str, signatures: list[str], module: Any) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        return BEHAVIOURS[name](None, module, **_bind(name, signatures, arguments, named, module))

    return call


# Arguments -------------------------------------------------------------------------------------------------------------------------------


def _bind(name: str, signatures: list[str], arguments: tuple[Any, ...], named: Mapping[str, Any], module: Any) -> dict[str, Any]:
    """Arguments by name under the first overload that takes them; TypeError as pybind11 raises it."""
    for signature in signatures:
        bound = _bound(signature, arguments, named, module)
        if bound is not None:
            return bound
    shown = [*map(repr, arguments), *(f"{k}={v!r}" for k, v in named.items())]
    raise TypeError(f"{name}(): incompatible function arguments; supported: {signatures}; invoked with: {', '.join(shown)}"[:500])


def _bound(signature: str, arguments: tuple[Any, ...], named: Mapping[str, Any], module: Any) -> dict[str, Any] | None:
    parameters = [p for p in re.split(r", (?![^\[]*\])", signature) if p]
    names = [re.split(r"[:=]", p)[0].strip() for p in parameters]
    if len(arguments) > len(names) or set(named) - set(names[len(arguments) :]):
        return None
    bound = dict(zip(names, arguments, strict=False)) | dict(named)
    for parameter, name in zip(parameters, names, strict=True):
        optional = "=" in parameter
        if name not in bound:
            if not optional:
                return None
            continue
        kind = parameter.partition(":")[2].partition("=")[0].strip()
        if kind and not _is(bound[name], kind, module) and not (optional and bound[name] is None):
            return None
    return bound


def _is(value: Any, kind: str, module: Any) -> bool:
    plain: dict[str, Callable[[Any], bool]] = {
        "int": lambda v: isinstance(v, int | np.integer) and not isinstance(v, bool),
        "float": lambda v: isinstance(v, float | int),
        "bool": lambda v: isinstance(v, bool),
        "str": lambda v: isinstance(v, str),
        "tuple": lambda v: isinstance(v, tuple),
        "list": lambda v: isinstance(v, list),
        "Dims": lambda v: isinstance(v, tuple | list) and all(type(size) is int for size in v),
        "buffer": _is_buffer,
    }
    if kind in plain:
        return plain[kind](value)
    if kind.startswith("list["):
        return isinstance(value, list | tuple) and all(_is(item, kind[5:-1], module) for item in value)
    expected = getattr(module, kind, None)
    return isinstance(value, expected) if isinstance(expected, type) else True  # capsules and classes outside the table


def _is_buffer(value: Any) -> bool:
    try:
        memoryview(value)
    except TypeError:
        return False
    return True


# Building --------------------------------------------------------------------------------------------------------------------------------


def _parse(parser: Any, module: Any, model: str) -> bool:
    import onnx

    try:
        loaded = onnx.load(model, load_external_data=False)
    except Exception as error:  # noqa: BLE001  protobuf's and onnx's own
        parser._state["errors"] = [_made(module, "ParserError", desc=str(error), node_operator="", node_name="")]
        return False
    unknown = [n for n in loaded.graph.node if n.domain not in ("", "ai.onnx") and n.op_type not in {c[1] for c in module.creators}]
    parser._state["errors"] = [
        _made(module, "ParserError", desc="Plugin not found, are the plugin name, version, and namespace correct?",
              node_operator=n.op_type, node_name=n.name)
        for n in unknown
    ]  # fmt: skip
    weights = {w.name for w in loaded.graph.initializer}
    state = parser._state["network"]._state
    state["onnx"] = model
    state["inputs"] = [_tensor(module, v) for v in loaded.graph.input if v.name not in weights]
    state["outputs"] = [_tensor(module, v) for v in loaded.graph.output]
    return not unknown


def _tensor(module: Any, value: Any) -> Any:
    import onnx

    kind = value.type.tensor_type
    numpy_name = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
    dtype = next((m for m in module.DataType if NUMPY.get(m.name) == numpy_name), module.DataType.FLOAT)
    shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim)
    return _made(module, "ITensor", name=value.name, dtype=dtype, shape=shape)


def _set_shape(profile: Any, module: Any, **bounds: Any) -> None:
    low, best, high = bounds["min"], bounds["opt"], bounds["max"]
    if not all(a <= b <= c for a, b, c in zip(low, best, high, strict=True)):
        raise ValueError("Dimensions are not ordered")
    profile._state.setdefault("shapes", {})[bounds["input"]] = [list(low), list(best), list(high)]


def _add_profile(config: Any, module: Any, profile: Any) -> int:
    profiles = config._state.setdefault("profiles", [])
    profiles.append(profile._state.get("shapes", {}))
    return len(profiles) - 1


def _set_timing_cache(config: Any, module: Any, cache: Any, ignore_mismatch: bool) -> bool:
    data: bytes = cache._state["data"]
    if data and not data.startswith(module.__version__.encode()):
        return False
    config._state["cache"] = cache
    return True


def _build(builder: Any, module: Any, network: Any, config: Any) -> Any:
    state = network._state
    monitor = config._state.get("progress_monitor")
    if monitor is not None:
        monitor.phase_start("Building engine", None, 2)
        if not (monitor.step_complete("Building engine", 0) and monitor.step_complete("Building engine", 1)):
            builder._state["logger"].log(module.ILogger.Severity.ERROR, "[builder] build was cancelled")
            return None
        monitor.phase_finish("Building engine")
    dynamic = [t.name for t in state["inputs"] if -1 in t.shape]
    profiles = config._state.get("profiles", [])
    if dynamic and not (profiles and all(name in profile for profile in profiles for name in dynamic)):
        builder._state["logger"].log(module.ILogger.Severity.ERROR, f"Network has dynamic inputs without a profile: {dynamic}")
        return None
    if "cache" in config._state:
        cache = config._state["cache"]
        cache._state["data"] = cache._state["data"] or module.__version__.encode()
        cache._state["data"] += b"+" + Path(state["onnx"]).stem.encode()
    tensors = [{"name": t.name, "dtype": t.dtype.name, "mode": mode} for mode, key in (("INPUT", "inputs"), ("OUTPUT", "outputs"))
               for t in state[key]]  # fmt: skip
    document = {
        "tensorrt": module.__version__,
        "onnx": state["onnx"],
        "sha256": hashlib.sha256(Path(state["onnx"]).read_bytes()).hexdigest(),
        "tensors": tensors,
        "profiles": profiles or [{}],
        "strong": bool(network._state["flags"] >> int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED) & 1),
    }
    return module.IHostMemory(json.dumps(document).encode())


# Running ---------------------------------------------------------------------------------------------------------------------------------


def _deserialize(runtime: Any, module: Any, serialized_engine: Any = None, **_reader: Any) -> Any:
    log = runtime._state["logger"]
    try:
        document = json.loads(bytes(serialized_engine))
    except ValueError:
        log.log(module.ILogger.Severity.ERROR, "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (magic tag does not match)")
        return None
    if document["tensorrt"] != module.__version__ and not runtime._state.get("engine_host_code_allowed"):
        log.log(module.ILogger.Severity.ERROR, "The engine plan file is not compatible with this version of TensorRT")
        return None
    return _made(module, "ICudaEngine", document=document, activations=module.activations)


def _session(document: dict[str, Any]) -> Any:
    import onnxruntime

    if "session" not in document:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        document["session"] = onnxruntime.InferenceSession(document["onnx"], options, providers=["CPUExecutionProvider"])
    return document["session"]


def _entry(engine: Any, name: str) -> dict[str, Any]:
    return next(t for t in engine._state["document"]["tensors"] if t["name"] == name)


def _context(engine: Any, module: Any, strategy: Any = None, **_config: Any) -> Any:
    managed = strategy is module.ExecutionContextAllocationStrategy.USER_MANAGED
    alive = engine._state.setdefault("contexts", weakref.WeakSet())
    if len(alive) >= module.most_contexts:
        return None  # as without memory
    context = _made(module, "IExecutionContext", engine=engine, shapes={}, addresses={}, profile=0, memory=not managed, state=0, settled=-1)
    own = module.cuda.allocate(CONTEXT_BYTES)
    weakref.finalize(context, module.cuda.blocks.pop, own)
    alive.add(context)
    return context


def _changed(context: Any) -> None:
    context._state["state"] += 1


def _set_profile(context: Any, module: Any, profile_index: int, stream_handle: int) -> bool:
    if not 0 <= profile_index < len(context._state["engine"]._state["document"]["profiles"]):
        return False
    context._state.update(profile=profile_index, shapes={}, addresses={})
    _changed(context)
    return bool(stream_handle == module.cuda.stream)


def _set_input_shape(context: Any, module: Any, name: str, shape: Any) -> bool:
    state = context._state
    bounds = state["engine"]._state["document"]["profiles"][state["profile"]].get(name)
    if bounds and not all(low <= size <= high for low, size, high in zip(bounds[0], shape, bounds[2], strict=True)):
        return False
    if state["shapes"].get(name) != tuple(shape):
        _changed(context)
    state["shapes"][name] = tuple(shape)
    return True


def _inputs(context: Any) -> list[str]:
    return [t["name"] for t in context._state["engine"]._state["document"]["tensors"] if t["mode"] == "INPUT"]


def _output_shapes(context: Any) -> dict[str, tuple[int, ...]]:
    """Found by running on zeros, which the graphs' shapes do not depend on."""
    state = context._state
    document = state["engine"]._state["document"]
    key = json.dumps(state["shapes"], sort_keys=True)
    known = document.setdefault("shapes", {})
    if key not in known:
        feeds = {n: np.zeros(s, NUMPY[_entry(state["engine"], n)["dtype"]]) for n, s in state["shapes"].items()}
        session = _session(document)
        known[key] = {o.name: v.shape for o, v in zip(session.get_outputs(), session.run(None, feeds), strict=True)}
    found: dict[str, tuple[int, ...]] = known[key]
    return found


def _tensor_shape(context: Any, module: Any, name: str) -> tuple[int, ...]:
    return context._state["shapes"].get(name) or _output_shapes(context)[name]


def _through_onnxruntime(document: dict[str, Any], feeds: Mapping[str, Any]) -> dict[str, Any]:
    session = _session(document)
    return dict(zip((o.name for o in session.get_outputs()), session.run(None, dict(feeds)), strict=True))


def _execute(context: Any, module: Any, stream_handle: int) -> bool:
    """Queue the run as the context is *now*; what it reads and writes are the device's bytes when the stream gets to it."""
    state, cuda = context._state, module.cuda
    engine = state["engine"]
    document = engine._state["document"]
    names = [t["name"] for t in document["tensors"]]
    if set(names) - set(state["addresses"]) or set(_inputs(context)) - set(state["shapes"]) or not state["memory"]:
        return False
    if cuda.error:
        cuda.error = False
        return False  # an error that somebody left behind
    now, captured = state["state"], cuda.capturing
    if captured and state["settled"] != now:
        cuda.invalidate("the first enqueue after a change of the context allocates")
        return False
    shapes = {**state["shapes"], **_output_shapes(context)}
    addresses, memory, alive = dict(state["addresses"]), state["memory"], weakref.ref(context)

    def work() -> None:
        there = alive()
        assert there is not None, "the context is gone while its work is queued or in a graph"
        if captured and there._state["state"] != now:
            raise CudaError("a graph was launched after its context was changed")
        if there._state["state"] == now:
            there._state["settled"] = now
        if memory is not True:
            cuda.view(memory[0], (memory[1],), np.uint8)[...] = 0xAB  # activations are overwritten
        feeds = {n: cuda.view(addresses[n], shapes[n], NUMPY[_entry(engine, n)["dtype"]]).copy() for n in _inputs(there)}
        for name, value in module.compute(document, feeds).items():
            cuda.view(addresses[name], value.shape, value.dtype)[...] = value

    return bool(cuda.enqueue(stream_handle, work))


def _set_device_memory(context: Any, module: Any, memory: int, size: int) -> None:
    assert size >= context._state["engine"]._state["activations"], "less memory than the engine asks for"
    context._state["memory"] = (memory, size)
    _changed(context)


def _put_address(context: Any, module: Any, name: str, memory: int) -> bool:
    _entry(context._state["engine"], name)
    assert memory % 256 == 0, "kernels are chosen for aligned memory"
    if context._state["addresses"].get(name) != memory:
        _changed(context)
    context._state["addresses"][name] = memory
    return True


def _creator(registry: Any, module: Any, type: str, version: str, plugin_namespace: str = "") -> Any:  # noqa: A002
    return object() if (plugin_namespace, type, version) in module.creators else None


def _nptype(_self: Any, module: Any, trt_type: Any) -> Any:
    if trt_type.name not in NUMPY:
        raise TypeError("Could not resolve TensorRT datatype to an equivalent numpy datatype.")
    return np.dtype(NUMPY[trt_type.name]).type


BEHAVIOURS: dict[str, Callable[..., Any]] = {
    "Builder.create_network": lambda s, m, flags=0: _made(m, "INetworkDefinition", flags=flags),
    "Builder.create_builder_config": lambda s, m: _made(m, "IBuilderConfig"),
    "Builder.create_optimization_profile": lambda s, m: _made(m, "IOptimizationProfile"),
    "Builder.build_serialized_network": _build,
    "OnnxParser.parse_from_file": _parse,
    "OnnxParser.get_error": lambda s, m, index: s._state["errors"][index],
    "ParserError.desc": lambda s, m: s._state["desc"],
    "ParserError.node_operator": lambda s, m: s._state["node_operator"],
    "ParserError.node_name": lambda s, m: s._state["node_name"],
    "INetworkDefinition.get_input": lambda s, m, index: s._state["inputs"][index],
    "INetworkDefinition.get_output": lambda s, m, index: s._state["outputs"][index],
    "IOptimizationProfile.set_shape": _set_shape,
    "IBuilderConfig.add_optimization_profile": _add_profile,
    "IBuilderConfig.create_timing_cache": lambda s, m, serialized_timing_cache: _made(
        m, "ITimingCache", data=bytes(serialized_timing_cache)
    ),
    "IBuilderConfig.set_timing_cache": _set_timing_cache,
    "IBuilderConfig.get_timing_cache": lambda s, m: s._state["cache"],
    "ITimingCache.serialize": lambda s, m: m.IHostMemory(s._state["data"]),
    "Runtime.deserialize_cuda_engine": _deserialize,
    "ICudaEngine.get_tensor_name": lambda s, m, index: s._state["document"]["tensors"][index]["name"],
    "ICudaEngine.get_tensor_mode": lambda s, m, name: m.TensorIOMode[_entry(s, name)["mode"]],
    "ICudaEngine.get_tensor_dtype": lambda s, m, name: m.DataType[_entry(s, name)["dtype"]],
    "ICudaEngine.get_tensor_location": lambda s, m, name: m.TensorLocation.DEVICE,
    "ICudaEngine.create_execution_context": _context,
    "ICudaEngine.create_engine_inspector": lambda s, m: _made(m, "EngineInspector", engine=s),
    "EngineInspector.get_engine_information": lambda s, m, **_: json.dumps({"Layers": [s._state["engine"]._state["document"]["onnx"]]}),
    "IExecutionContext.set_optimization_profile_async": _set_profile,
    "IExecutionContext.set_input_shape": _set_input_shape,
    "IExecutionContext.infer_shapes": lambda s, m: [n for n in _inputs(s) if n not in s._state["shapes"]],
    "IExecutionContext.get_tensor_shape": _tensor_shape,
    "IExecutionContext.set_tensor_address": _put_address,
    "IExecutionContext.set_device_memory": _set_device_memory,
    "IExecutionContext.execute_async_v3": _execute,
    "IPluginRegistry.get_creator": _creator,
    "get_plugin_registry": lambda s, m: _made(m, "IPluginRegistry"),
    "init_libnvinfer_plugins": lambda s, m, logger, namespace: True,
    "nptype": _nptype,
}
PROPERTIES: dict[str, Callable[..., Any]] = {
    "OnnxParser.num_errors": lambda s, m: len(s._state["errors"]),
    "INetworkDefinition.num_inputs": lambda s, m: len(s._state["inputs"]),
    "INetworkDefinition.num_outputs": lambda s, m: len(s._state["outputs"]),
    "ICudaEngine.num_io_tensors": lambda s, m: len(s._state["document"]["tensors"]),
    "ICudaEngine.num_optimization_profiles": lambda s, m: len(s._state["document"]["profiles"]),
    "ICudaEngine.device_memory_size_v2": lambda s, m: s._state["activations"],
}
