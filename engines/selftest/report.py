"""Report of a self-test: one JSON document, and the same as Markdown to attach to an issue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engines.selftest.reference import BETWEEN, TOLERANCES
from engines.selftest.run import CaseResult, percentile
from engines.shapes import input_shapes
from f2edge.backends.tensorrt.plans import GraphPlan, PlanFolder
from f2edge.bundle.bundle import Bundle

Document = dict[str, Any]


def row(result: CaseResult) -> Document:
    """Return one case as JSON-ready data."""
    worst = max(result.errors, key=lambda group: result.errors[group] / result.limits[group], default="")
    return {
        "graph": result.case.graph,
        "case": result.case.name,
        "shapes": {name: list(shape) for name, shape in result.shapes.items()},
        "passed": result.passed,
        "failure": result.failure,
        "first_wrong": next(iter(result.wrong), ""),
        "last_right": _last_right(result),
        "worst": worst,
        "error": _number(result.errors.get(worst, 0.0)),
        "tolerance": result.limits.get(worst, 0.0),
        "interleaved": _number(result.interleaved),
        "errors": {group: _number(value) for group, value in result.errors.items()},
        "ms": {
            mode: {"runs": len(times), "p50": percentile(times, 50), "p99": percentile(times, 99), "fastest": min(times)}
            for mode, times in result.times.items()
        },
    }


def _last_right(result: CaseResult) -> str:
    """Return the state before the first one that is off, where that one is a state."""
    states = [group for group in result.limits if group.startswith(BETWEEN) and group in result.errors]
    first = next(iter(result.wrong), "")
    return states[states.index(first) - 1] if first in states[1:] else ""


def _number(value: float) -> float | str:
    return value if value < float("inf") else "infinite"


#: Setting of a plan → option of ``trtexec``.
_OPTIONS = {
    "workspace_mib": "--memPoolSize=workspace:{}M",
    "optimization_level": "--builderOptimizationLevel={}",
    "max_aux_streams": "--maxAuxStreams={}",
}


def trtexec_lines(bundle: Bundle, plans: PlanFolder | None, results: Sequence[CaseResult]) -> list[str]:
    """Return commands that repeat builds and timings without f2edge; none for graphs with plug-ins, which ``trtexec`` cannot load."""
    lines = []
    for plan in plans.graphs.values() if plans is not None else ():
        if plan.plugins or plans is None:
            continue
        lines.append(" ".join(_build_words(bundle, plan, plans.document["graphs"][plan.name].get("settings", {}))))
        for result in results:
            if result.case.graph == plan.name:
                shapes = ",".join(f"{port}:{_sizes(shape)}" for port, shape in result.shapes.items() if 0 not in shape)
                lines.append(f"trtexec --loadEngine={plans.folder / plan.file} --shapes={shapes} --useCudaGraph --noDataTransfers")
    return lines


def _build_words(bundle: Bundle, plan: GraphPlan, settings: Mapping[str, Any]) -> list[str]:
    entry = bundle.manifest.graphs[plan.name]
    words = [f"trtexec --onnx={bundle.folder / entry.file}", f"--saveEngine={plan.name}.plan", "--stronglyTyped", "--noTF32"]
    words += [text.format(settings[key]) for key, text in _OPTIONS.items() if key in settings]
    for number, profile in enumerate(plan.profiles):
        bounds = input_shapes(entry, profile)
        if not bounds:
            continue
        words += [f"--profile={number}"] if len(plan.profiles) > 1 else []
        for place, kind in enumerate(("min", "opt", "max")):
            words.append(f"--{kind}Shapes=" + ",".join(f"{port}:{_sizes(shapes[place])}" for port, shapes in bounds.items()))
    return words


def _sizes(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


_LEGEND = (
    "Error of floats: root of the mean square, against the reference's; of integers: share that differs.",
    "Interleaved: worst error where every run follows one of another graph or shape, in tolerances.",
)


def markdown(document: Mapping[str, Any]) -> str:
    """Return the report as Markdown."""
    wrong = [case for case in document["cases"] if not case["passed"]]
    machine = [f"| {name} | {_cell(value)} |" for name, value in document["machine"].items()]
    modes = list(dict.fromkeys(mode for case in document["cases"] for mode in case["ms"]))
    head = "".join(f" {mode}: p50 | p99 ms |" for mode in modes)
    counts = f"{len(document['cases'])} cases of {len(document['graphs'])} graphs"
    lines = [
        f"# Self-test of bundle {document['bundle']} on backend {document['backend']}",
        "",
        f"**{'Failed' if wrong else 'Passed'}**: {counts}, {document['seconds']:.0f} s, {document['date']}.",
        *(f"- **{case['graph']}**, {case['case']}: {_reason(case)}" for case in wrong),
        "",
        "| machine | |",
        "|---|---|",
        *machine,
        f"| power | {document['power']} |",
        "",
        f"Reference: ONNX Runtime on the CPU, optimizers off, {document['reference']}.",
        *_LEGEND,
        "Tolerances (floats, integers): " + "; ".join(f"{name} {t.floats:g}, {t.integers:g}" for name, t in TOLERANCES.items()) + ".",
        "",
        f"| graph | case | worst group | error | tolerance | interleaved |{head}",
        f"|---|---|---|---|---|---|{'---|---|' * len(modes)}",
        *(_case_line(case, modes) for case in document["cases"]),
    ]
    if document["trtexec"]:
        lines += ["", "Builds and timings without f2edge:", "", "```", *document["trtexec"], "```"]
    return "\n".join(lines) + "\n"


def _reason(case: Mapping[str, Any]) -> str:
    if case["failure"]:
        return str(case["failure"])
    worst = f"worst {case['worst']}: {_figure(case['error'])} (at most {case['tolerance']:g})"
    before = f", {case['last_right']} agrees" if case["last_right"] else ""
    return f"{case['first_wrong']} is the first group that differs{before}; {worst}"


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {text}" for name, text in value.items())
    return str(value).replace("|", "/")


def _figure(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.2g}"


def _case_line(case: Mapping[str, Any], modes: Sequence[str]) -> str:
    times = ""
    for mode in modes:
        measured = case["ms"].get(mode)
        times += f" {measured['p50']:.2f} | {measured['p99']:.2f} |" if measured else " - | - |"
    mark = "" if case["passed"] else "**"
    first = f"| {mark}{case['graph']}{mark} | {case['case']} | {case['worst']} | {_figure(case['error'])} | {case['tolerance']:g} |"
    return f"{first} {_figure(case['interleaved'])} |{times}"
