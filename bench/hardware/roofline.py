"""Roofline predictions for each device and model: memory, decoding step, answer token, face, and their bounds.

    python -m bench roofline [--device orin-nano --device h200] [--model nano --model 1.8b] [--moe plain|plugin] [--cpu] [--json]

Nothing was run on the devices: predictions follow from :mod:`bench.hardware.roofline_model` and ``engines/profiles``; the model's error is
printed for every published result that it was fitted to.  ``--cpu`` adds this machine: measured ceilings of matrix products and memory, the
predicted decoding step of nano, and the step measured in the same run.
"""

from __future__ import annotations

import statistics
from dataclasses import asdict
from typing import Annotated, Any

import typer

from bench.hardware.roofline_model import SHARES, hidden_columns, predict, published_errors
from bench.options import AsJson, Threads
from bench.results import Results, document
from engines.profile import load_profiles
from f2edge.cli.console import Output
from f2edge.errors import InputError
from f2edge.spec.configuration import CONFIGURATIONS, ModelConfiguration
from f2edge.spec.flops import attention_flops, step_flops

#: Decoding steps of a face by model: nano's default, Show-o's published command for the others.
STEPS = {"nano": 12, "show-o": 18, "1.8b": 18}
PROMPT = "a young woman with long curly red hair and eyeglasses"
#: CPU model: fp32 values read or written for each column of a token in a layer (of the width, of the experts' hidden values), and
#: passes of the sampler over its scores (export/graph/sampling.py), each a read and a write.
_CPU_ACTIVATIONS, _SAMPLER_PASSES = (30, 8), 17


def decoder_flops(model: ModelConfiguration) -> float:
    """Return the operations of the image tokenizer's decoder for one picture, counted by PyTorch on meta tensors."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from export.model.magvit2 import build_tokenizer

    with torch.device("meta"):
        tokenizer: Any = build_tokenizer(model.tokenizer)
        codes = torch.zeros((1, model.image_tokens), dtype=torch.int64)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            tokenizer.decode(codes)
    return float(counter.get_total_flops())


def cpu_step_ms(model: ModelConfiguration, prompt: int, ceilings: dict[str, float]) -> dict[str, float]:
    """Return the parts of one guided decoding step on a CPU in milliseconds; they add up, as operators run one after the other.

    Args:
        model: the configuration; linear layers in int8, everything else in fp32.
        prompt: columns of the prefix, as padded.
        ceilings: "int8_gops", "fp32_gops" and "memory_gb_s".
    """
    columns = model.image_columns + 2
    attention = 2 * attention_flops(model, columns, prompt + columns)
    routed = model.token_experts.routed - model.token_experts.active
    unused = 2 * columns * model.layers * 4 * model.width * routed * model.token_experts.routed_width  # computed, multiplied by 0
    linear = step_flops(model, [prompt, prompt], 1) - attention + unused
    values = _CPU_ACTIVATIONS[0] * model.width + _CPU_ACTIVATIONS[1] * hidden_columns(model, "plain")
    moved = 4 * 2 * columns * model.layers * values + 16 * model.layers * prompt * model.width
    sampler = 8 * _SAMPLER_PASSES * model.image_tokens * model.codes
    return {
        "linear": linear / ceilings["int8_gops"] / 1e6,
        "attention": attention / ceilings["fp32_gops"] / 1e6,
        "activations": moved / ceilings["memory_gb_s"] / 1e6,
        "sampler": sampler / ceilings["memory_gb_s"] / 1e6,
    }


def measure_cpu(bundle: str, threads: int | None, repeats: int = 3) -> Results:
    """Measure this machine's ceilings, and the decoding step of an int8 bundle beside its prediction."""
    from bench.hardware.ceilings import gemm_peaks, read_rate
    from f2edge.backends.onnxruntime import usable_cores
    from f2edge.pipeline import FacePipeline

    used = threads or usable_cores()
    ceilings = {**gemm_peaks(used), "memory_gb_s": read_rate(used)}
    pipeline = FacePipeline.load(bundle, backend="onnxruntime", threads=used)
    found = pipeline.bundle.manifest.graphs["t2i_step"].precision
    if found != "int8":
        raise InputError(f"bundle {bundle!r}: its decoding step is {found}; the CPU's prediction is for int8")
    measured: list[float] = []
    for seed in range(repeats + 1):
        steps = pipeline.generate(PROMPT, seeds=seed)[0].step_ms
        measured += list(steps) if seed else []
    layout = pipeline.bundle.layout
    parts = cpu_step_ms(pipeline.bundle.configuration, layout.prompt_tokens + len(layout.unconditional), ceilings)
    predicted, median = sum(parts.values()), statistics.median(measured)
    return {
        "threads": used,
        "ceilings": ceilings,
        "parts_ms": parts,
        "predicted_ms": predicted,
        "measured_ms": median,
        "fastest_ms": min(measured),
        "error": predicted / median - 1,
    }


def run(devices: list[str], models: list[str], moe: str) -> Results:
    """Return all predictions."""
    from export.tensorrt.fused_moe import check_implementation

    check_implementation(moe)
    if unknown := [name for name in models if name not in CONFIGURATIONS]:
        raise InputError(f"unknown model {unknown[0]!r}; choose one of: {', '.join(CONFIGURATIONS)}")
    profiles, rows = load_profiles(devices), []
    for name in models:
        configuration = CONFIGURATIONS[name]
        decode = decoder_flops(configuration)
        rows += [asdict(predict(configuration, profile, moe, STEPS[name], decode)) for profile in profiles]
    published = [
        {"device": device, "metric": metric, "published": value, "model": predicted, "error": predicted / value - 1}
        for device, metric, value, predicted in published_errors()
    ]
    return {"run_on_a_device": False, "shares": {"bandwidth": SHARES[0], "arithmetic": SHARES[1]}, "published": published, "rows": rows}


def print_results(results: Results, output: Output) -> None:
    """Print the published results with the model's errors, a table per model, and the CPU's prediction."""
    shares = results["shares"]
    output.line(
        f"Predictions; nothing was run on these devices.  Shares of the ceilings: memory {shares['bandwidth']:.0%}, "
        f"arithmetic {shares['arithmetic']:.0%}, from published results of Qwen3-1.7B:\n"
    )
    cells = [
        (row["device"], row["metric"], f"{row['published']:.0f}", f"{row['model']:.0f}", f"{row['error']:+.0%}")
        for row in results["published"]
    ]
    output.table(("device", "metric", ">published", ">model", ">error"), cells)
    headings = (">GB", "fits", ">step ms", ">ideal", "by", ">face ms", ">token ms", ">ideal", "by", ">first ms")
    for model in dict.fromkeys(row["model"] for row in results["rows"]):
        rows = [row for row in results["rows"] if row["model"] == model]
        output.line(f"\n{model}, experts {rows[0]['moe']}, {rows[0]['steps']} steps")
        output.table(("device", *headings), [_device_cells(row) for row in rows])
    if "cpu" in results:
        _print_cpu(results["cpu"], output)


def _device_cells(row: Results) -> list[str]:
    step, token = row["step"], row["token"]
    return [
        row["device"],
        f"{row['resident_gb']:.1f}",
        "yes" if row["fits"] else "no",
        f"{step['ms']:.2f}",
        f"{row['step_ideal_ms']:.2f}",
        step["bound"],
        f"{row['face_ms']:.0f}",
        f"{token['ms']:.2f}",
        f"{row['token_ideal_ms']:.2f}",
        token["bound"],
        f"{row['first_ms']:.1f}",
    ]


def _print_cpu(cpu: Results, output: Output) -> None:
    ceilings = cpu["ceilings"]
    output.line(
        f"\nThis CPU, {cpu['threads']} threads: ceilings int8 {ceilings['int8_gops']:.0f} Gop/s, fp32 {ceilings['fp32_gops']:.0f} Gop/s, "
        f"memory {ceilings['memory_gb_s']:.1f} GB/s"
    )
    parts = ", ".join(f"{name} {ms:.2f}" for name, ms in cpu["parts_ms"].items())
    output.line(
        f"nano, one decoding step: predicted {cpu['predicted_ms']:.2f} ms ({parts}), measured {cpu['measured_ms']:.2f} ms "
        f"(fastest {cpu['fastest_ms']:.2f}): {cpu['error']:+.0%}"
    )


def roofline(
    *,
    device: Annotated[list[str] | None, typer.Option(help="Device profile; all by default.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="nano, show-o or 1.8b; nano and 1.8b by default.")] = None,
    moe: Annotated[str, typer.Option(help="Expert kernels: plain or plugin.")] = "plain",
    cpu: Annotated[bool, typer.Option("--cpu", help="Measure this machine and compare.")] = False,
    bundle: Annotated[str, typer.Option(help="int8 bundle that --cpu measures.")] = "nano",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Predict the speed and memory of models on devices; print the error of the predictions."""
    results = run(device or [], model or ["nano", "1.8b"], moe)
    if cpu:
        results["cpu"] = measure_cpu(bundle, threads)
    print_results(results, Output(json=as_json))
    print(document(results))
