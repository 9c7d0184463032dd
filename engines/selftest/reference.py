"""Reference outputs of the self-test: made by ONNX Runtime on the CPU with its optimizers off, compared group by group.

A group is one output; of keys and values, one layer; in self-test forms (:mod:`engines.selftest.layers`) the state behind a group of
layers, so the first group that is off tells at which layer a graph goes wrong.  Of each group at most ``SAMPLES`` values are kept, at
places that the group's name decides: some hundred kilobytes for any model.  They travel as ``selftest.npz`` in the bundle
(``python -m engines selftest BUNDLE --record``), or are computed where ONNX Runtime runs the graphs.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from engines.selftest.cases import Case, feeds, uniform
from engines.selftest.layers import FOLDER, form
from f2edge.backends.base import Array, Value, host
from f2edge.backends.ports import Ports
from f2edge.bundle.bundle import Bundle, embedded_folder, write_manifest
from f2edge.errors import BackendError, BundleError, InputError
from f2edge.provenance.saving import write_atomically
from f2edge.spec.graphs import SIGNATURES, STATE

FILE = "selftest.npz"
SAMPLES = 256
#: Begins the names of the groups of states: "state before layer 0", "state after layer 3".
BETWEEN = "state "


@dataclass(frozen=True)
class Tolerance:
    """Largest error of a group: of floats, root of the mean square relative to the reference's; of integers, the share that differs."""

    floats: float
    integers: float


#: By recipe.  The same graph runs on both sides, so these bound arithmetic, not quantization: sums in another order, fp16 products, and
#: activations whose rounding tips over.
TOLERANCES: Mapping[str, Tolerance] = MappingProxyType(
    {
        "fp32": Tolerance(0.002, 0.01),
        "fp16": Tolerance(0.02, 0.03),
        "int8": Tolerance(0.06, 0.10),
        "int4": Tolerance(0.06, 0.10),
        "fp8": Tolerance(0.08, 0.15),
        "nvfp4": Tolerance(0.12, 0.20),
    }
)

Groups = dict[str, Array]


def tolerance(bundle: Bundle, graph: str) -> Tolerance:
    """Return the tolerance of a graph by its recipe's first word; int8's for a recipe without one."""
    entry = bundle.manifest.graphs[graph]
    recipe = str(entry.recipe.get("name", "")) if isinstance(entry.recipe, Mapping) else entry.precision
    return TOLERANCES.get(recipe.split("-")[0], TOLERANCES["int8"])


def groups(case: Case, outputs: Mapping[str, Value]) -> Groups:
    """Return the samples of every group of a case's outputs: states from the first layer on, then in the order of the signature."""
    found: Groups = {}
    layers = sorted(int(name.removeprefix(STATE)) for name in outputs if name.startswith(STATE))
    for layer in layers if case.sizes.get("R", 1) == 1 else ():  # backends may run requests apart, their branches in another order
        value = host(outputs[f"{STATE}{layer}"])
        kept = value.reshape(case.sizes["B"], -1, value.shape[-1])[:, -case.columns :]
        found[f"{BETWEEN}after layer {layer - 1}" if layer else f"{BETWEEN}before layer 0"] = _sampled(f"{STATE}{layer}", kept)
    for tensor in SIGNATURES[case.graph].outputs:
        value = host(outputs[tensor.name])
        if tensor.axes.startswith("LBH"):
            kept = value[..., value.shape[3] - (case.valid or value.shape[3]) :, :]
            found |= {f"{tensor.name} layer {layer}": _sampled(f"{tensor.name} {layer}", kept[layer]) for layer in range(len(kept))}
        else:
            found[tensor.name] = _sampled(tensor.name, value)
    return found


def _sampled(name: str, value: Array) -> Array:
    flat: Array = value.reshape(-1)
    if value.dtype.kind in "iu":
        return np.asarray(flat, dtype=np.int32)
    places = np.floor(uniform(name, min(SAMPLES, flat.size)) * flat.size).astype(np.int64)
    return np.asarray(flat[places], dtype=np.float32)


def error(found: Array, wanted: Array) -> float:
    """Return the error of a group as :class:`Tolerance` defines it; infinite for another size or a value that is no number."""
    if found.shape != wanted.shape:
        return float("inf")
    if wanted.dtype.kind in "iu":
        return float(np.mean(found != wanted))
    difference = found.astype(np.float64) - wanted
    if not np.isfinite(difference).all():
        return float("inf")
    return float(np.sqrt(np.mean(difference**2)) / max(np.sqrt(np.mean(wanted.astype(np.float64) ** 2)), 1e-12))


class Reference:
    """Reference groups of every case; ``source`` is "bundle" or "computed"."""

    def __init__(self, source: str, cases: Mapping[str, Groups]) -> None:
        self.source, self.cases = source, cases

    @classmethod
    def of(cls, bundle: Bundle, cases: Iterable[Case], every: int = 1) -> Reference:
        """Return the bundle's own reference, or compute it with the state behind every so many layers.

        Raises:
            BundleError: the bundle's file is damaged or of other cases.
            BackendError: ONNX Runtime cannot run a graph, as it cannot with TensorRT's operators or plug-ins.
        """
        if FILE in bundle.manifest.files:
            found = _read(bundle.folder / FILE)
            missing = {case.label for case in cases} - set(found)
            if missing:
                raise BundleError(f"{bundle.folder / FILE}: lacks {', '.join(sorted(missing))}; write it again with --record")
            return cls("bundle", found)
        return cls("computed", compute(bundle, cases, every))


def compute(bundle: Bundle, cases: Iterable[Case], every: int = 1) -> dict[str, Groups]:
    """Return the groups of every case, from ONNX Runtime on one thread, optimizers off; raises like :meth:`Reference.of`."""
    import onnxruntime

    found: dict[str, Groups] = {}
    sessions: dict[str, object] = {}
    for case in cases:
        if case.graph not in sessions:
            sessions.clear()  # one graph in memory
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads, options.log_severity_level = 1, 4
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            path = bundle.path(case.graph)
            options.add_session_config_entry(FOLDER, str(path.parent))
            try:
                sessions[case.graph] = onnxruntime.InferenceSession(
                    form(path.read_bytes(), every), options, providers=["CPUExecutionProvider"]
                )
            except Exception as problem:
                line = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
                raise BackendError(
                    f"graph {case.graph!r}: ONNX Runtime cannot make the reference ({line}); record it where the bundle was exported: "
                    f"python -m engines selftest {bundle.name} --record"
                ) from problem
        session: onnxruntime.InferenceSession = sessions[case.graph]
        ports, given = Ports.of(session), feeds(bundle, case)
        made = session.run(ports.outputs, {name: host(value) for name, value in ports.feeds(given).items()})
        found[case.label] = groups(case, ports.results(given, dict(zip(ports.outputs, made, strict=True))))
    return found


def record(bundle: Bundle, cases: Iterable[Case]) -> Path:
    """Write the reference into the bundle and list it in the manifest.

    Raises:
        InputError: an embedded bundle, or one with plans, which belong to the manifest as it is.
        BackendError: ONNX Runtime cannot run a graph.
        OutputError: the folder cannot be written.
    """
    if bundle.folder.parent == embedded_folder():
        raise InputError(f"bundle {bundle.name!r} is part of f2edge; copy its folder and record there")
    if (bundle.folder / "plans").exists():
        raise InputError(f"{bundle.folder / 'plans'}: plans belong to the manifest as it is; record before building")
    made, packed = compute(bundle, cases), io.BytesIO()
    arrays: dict[str, Any] = {f"{label}\t{group}": value for label, groups in made.items() for group, value in groups.items()}
    np.savez_compressed(packed, **arrays)
    write_atomically(bundle.folder / FILE, packed.getvalue())
    write_manifest(bundle.folder, bundle.manifest.document)
    return bundle.folder / FILE


def _read(path: Path) -> dict[str, Groups]:
    found: dict[str, Groups] = {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            for key in archive.files:
                label, _, group = key.partition("\t")
                found.setdefault(label, {})[group] = archive[key]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as problem:
        raise BundleError(f"{path}: cannot be read ({problem}); write it again with --record, or delete its entry") from problem
    return found
