"""Implementation of ``python -m engines selftest``."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from engines.power.meter import PowerError
from engines.power.power import Power
from engines.selftest import report
from engines.selftest.cases import Case, cases, feeds
from engines.selftest.layers import LayersBackend, write_forms
from engines.selftest.machine import describe
from engines.selftest.reference import Reference, record
from engines.selftest.run import SelfTest
from f2edge.backends.base import Backend
from f2edge.backends.onnxruntime import OnnxRuntimeBackend
from f2edge.backends.registry import choose_backend
from f2edge.backends.tensorrt.backend import TensorRTBackend
from f2edge.bundle.bundle import Bundle
from f2edge.errors import BackendError, OutputError
from f2edge.provenance.saving import write_atomically

#: Seconds of work under the power meter, which updates more slowly than calls take.
POWER_S = 2.0
#: Names of the two ways to run, in the report.
AS_BUILT, NO_GRAPHS = "default", "without CUDA graphs"


@dataclass(frozen=True)
class Request:
    """Options of one self-test.

    Attributes:
        backend: name in the registry, or "auto".
        out: folder of the report.
        seconds: time to spend on timing each case.
        power: meter, "auto" or "none".
        threads: threads of ONNX Runtime.
        layers: layers of a group; the state behind each group is compared.
    """

    backend: str
    out: Path
    seconds: float = 0.25
    power: str = "auto"
    threads: int | None = None
    layers: int = 1


def selftest(source: str, request: Request, progress: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Test a bundle, write ``selftest.md`` and ``selftest.json`` and return the document.

    Raises:
        BundleError: the bundle or its reference is damaged; the message names the file.
        BackendError: the backend cannot run here, or ONNX Runtime cannot make the reference.
        InputError: an unknown power meter.
        OutputError: the report cannot be written.
    """
    with closing(Power.open(request.power)) as power:
        return _selftest(Bundle.load(source), request, power, progress)


def _selftest(bundle: Bundle, request: Request, power: Power, progress: Callable[[str], None]) -> dict[str, Any]:
    start, chosen = time.perf_counter(), cases(bundle)
    progress("reference")
    reference = Reference.of(bundle, chosen, request.layers)
    test = SelfTest(bundle, reference, chosen, request.seconds, progress)
    backend, reason = choose_backend(request.backend, bundle, request.threads)
    try:
        request.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {request.out}: {error.strerror}") from error
    test.alone(backend, AS_BUILT)
    test.interleaved(backend)
    if backend.name == OnnxRuntimeBackend.name:
        test.layers(LayersBackend(bundle, request.threads, request.layers))
    watts, machine = _watts(backend, bundle, chosen, power), describe(backend)
    plans = backend.plans if isinstance(backend, TensorRTBackend) else None
    name = backend.name
    if isinstance(backend, TensorRTBackend) and backend.graphs:
        del backend  # its memory, before the second one
        test.alone(TensorRTBackend(bundle, graphs=False), NO_GRAPHS)
    document = {
        "bundle": bundle.name,
        "backend": name,
        "reason": reason,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seconds": time.perf_counter() - start,
        "passed": all(result.passed for result in test.results),
        "machine": machine,
        "power": watts,
        "reference": "of the bundle" if reference.source == "bundle" else "computed here",
        "graphs": list(dict.fromkeys(case.graph for case in chosen)),
        "cases": [report.row(result) for result in test.results],
        "trtexec": report.trtexec_lines(bundle, plans, test.results),
    }
    write_atomically(request.out / "selftest.json", json.dumps(document, indent=1).encode())
    write_atomically(request.out / "selftest.md", report.markdown(document).encode())
    return document


def _watts(backend: Backend, bundle: Bundle, chosen: list[Case], power: Power) -> str:
    """Return the mean power over some seconds of decoding steps, in words, or why it was not measured."""
    if not power.meters:
        return "not measured" + "".join(f"; {name}: {why}" for name, why in power.missing.items())
    case = next((case for case in chosen if case.graph == "t2i_step"), chosen[0])
    inputs: dict[str, Any] = feeds(bundle, case)

    def work() -> None:
        until = time.monotonic() + POWER_S
        while time.monotonic() < until:
            backend.run(case.graph, inputs)

    try:
        work()  # the meters' first readings
        _, energy = power.measure(work)
    except (PowerError, BackendError) as error:
        return f"not measured: {error}"
    return f"{energy.watts:.1f} W while {case.label} repeats ({power.covers})"


def run_selftest(source: str, request: Request, *, only_record: bool, forms: Path | None, as_json: bool) -> None:
    """Run the command: print the result, and raise :class:`BackendError` naming each graph that fails."""
    if forms is not None:
        folder = write_forms(Bundle.load(source), forms, request.layers)
        print(json.dumps({"forms": str(folder)}) if as_json else f"self-test forms: {folder}; build and test them like the bundle")
        return
    if only_record:
        bundle = Bundle.load(source)
        path = record(bundle, cases(bundle))
        print(json.dumps({"reference": str(path)}) if as_json else f"reference: {path}, {path.stat().st_size / 1024:.0f} KiB")
        return
    terminal = sys.stderr.isatty()

    def progress(text: str) -> None:
        if terminal:
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)

    try:
        document = selftest(source, request, progress)
    finally:
        progress("")
    if as_json:
        print(json.dumps(document))
    else:
        print(f"{len(document['cases'])} cases of {len(document['graphs'])} graphs on {document['backend']}, {document['seconds']:.0f} s")
        print(f"report: {request.out / 'selftest.md'}")
    wrong = sorted({case["graph"] for case in document["cases"] if not case["passed"]})
    if wrong:
        raise BackendError(
            f"graph {', '.join(map(repr, wrong))}: differs from the reference or does not run; {request.out / 'selftest.md'}"
        )
