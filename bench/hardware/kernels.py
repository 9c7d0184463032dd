"""Speed and accuracy of the fused experts' kernels on this GPU, compared with cuBLAS and a loop over experts.

    python -m bench kernels [--model 1.8b] [--json]

The kernels are those of the TensorRT plug-in: cubins compiled ahead of time, launched by the plug-in's code, here on PyTorch's stream.
Baselines in PyTorch: "dense", all experts as two cuBLAS products and a mask, as in the plain TensorRT graphs; "loop", one expert after
the other on its tokens; and "compiled", ``torch.compile`` of "dense", for some numbers of tokens.  Ceilings come first: a large fp16
product and a large copy in the same process.  Times are medians of CUDA graph replays, without Python's launch costs, except for "loop",
whose host needs the number of tokens of each expert.

Operations count routed rows only (T·K), so the rate of "dense" is its useful one.  Bytes are the weights of the chosen experts, x and y,
each once.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.options import AsJson
from bench.results import document
from engines.plugins.fused_moe import INPUTS, MoEShape, choose_tile, workspace_bytes
from f2edge.cli.console import Output
from f2edge.errors import BackendError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

TOKENS = (1, 4, 16, 64, 258, 516, 2064)
#: Of these, the ones that ``torch.compile`` is measured at; it takes half a minute for each.
COMPILED = (1, 258)
REPEATS = 30


@dataclass(frozen=True)
class KernelRow:
    """Results for one number of tokens: medians in microseconds, rates of the fused kernels, largest relative error of a row.

    ``compiled_us`` is None where ``torch.compile`` was not measured.
    """

    tokens: int
    tile: str
    fused_us: float
    dense_us: float
    loop_us: float
    compiled_us: float | None
    tflops: float
    gbytes_per_s: float
    row_error: float


def gpu() -> torch.device:
    """Return the CUDA device; raise :class:`BackendError` without one."""
    import torch

    if not torch.cuda.is_available():
        raise BackendError("bench kernels needs an NVIDIA GPU and PyTorch with CUDA; on a CPU, tests interpret the kernels")
    return torch.device("cuda")


def random_layer(shape: MoEShape, device: torch.device) -> dict[str, Tensor]:
    """Return the node's six weights by name, scaled so that scores and hidden values are near 1."""
    import torch

    torch.manual_seed(0)
    D, E, I = shape.width, shape.experts, shape.expert_width
    J = 2 * I if shape.gated else I

    def normal(*sizes: int, scale: float) -> Tensor:
        return (torch.randn(*sizes, device=device) * scale).half()

    return {
        "router_weight": torch.randn(D, E, device=device) * D**-0.5,
        "router_bias": torch.zeros(E, device=device),
        "up_weight": normal(E, D, J, scale=D**-0.5),
        "up_bias": normal(E, J, scale=0.1),
        "down_weight": normal(E, I, D, scale=I**-0.5),
        "down_bias": normal(E, D, scale=0.1),
    }


def routed(x: Tensor, weights: Mapping[str, Tensor], active: int) -> tuple[Tensor, Tensor]:
    """Return experts (T, K) and gates (T, K) fp32 of x (T, D) fp32."""
    import torch

    probability = torch.softmax(x.float() @ weights["router_weight"].to(x.device).float() + weights["router_bias"], dim=-1)
    gates, experts = torch.topk(probability, active, dim=-1)
    return experts, gates / gates.sum(dim=-1, keepdim=True)


def activated(hidden: Tensor, *, gated: bool) -> Tensor:
    """Apply GELU (tanh), or SwiGLU to the two halves."""
    from torch.nn import functional

    if not gated:
        return functional.gelu(hidden, approximate="tanh")
    first, second = hidden.chunk(2, dim=-1)
    return functional.silu(first) * second


def dense(x: Tensor, weights: Mapping[str, Tensor], shape: MoEShape) -> Tensor:
    """Compute all experts for all tokens, masked by the gates: static shapes, E / K times the operations.  (T, D) fp32 → (T, D) fp16."""
    import torch

    experts, gates = routed(x, weights, shape.active)
    mask = torch.zeros(len(x), shape.experts, device=x.device).scatter_(1, experts, gates).half()  # (T, E)
    hidden = torch.einsum("td,edj->tej", x.half(), weights["up_weight"]) + weights["up_bias"]
    hidden = activated(hidden, gated=shape.gated) * mask[:, :, None]  # (T, E, I)
    return hidden.flatten(1) @ weights["down_weight"].flatten(0, 1) + mask @ weights["down_bias"]


def loop(x: Tensor, weights: Mapping[str, Tensor], shape: MoEShape) -> Tensor:
    """Compute one expert after the other on the tokens routed to it.  (T, D) fp32 → (T, D) fp16."""
    import torch

    experts, gates = routed(x, weights, shape.active)
    rows, output = x.half(), torch.zeros_like(x)
    for expert in range(shape.experts):
        token, place = torch.where(experts == expert)
        hidden = activated(rows[token] @ weights["up_weight"][expert] + weights["up_bias"][expert], gated=shape.gated)
        part = hidden @ weights["down_weight"][expert] + weights["down_bias"][expert]
        output.index_add_(0, token, part.float() * gates[token, place, None])
    return output.half()


def exact(x: Tensor, weights: Mapping[str, Tensor], shape: MoEShape) -> Tensor:
    """Compute the exact layer in float64, (T, D); x is rounded to fp16 for the experts, as in the other functions."""
    import torch

    wide = {name: weight.double() for name, weight in weights.items()}
    probability = torch.softmax(x.double() @ wide["router_weight"] + wide["router_bias"], dim=-1)
    gates, experts = torch.topk(probability, shape.active, dim=-1)
    gates = gates / gates.sum(dim=-1, keepdim=True)
    output = torch.zeros_like(x, dtype=torch.float64)
    for expert in range(shape.experts):
        token, place = torch.where(experts == expert)
        hidden = activated(x.half().double()[token] @ wide["up_weight"][expert] + wide["up_bias"][expert], gated=shape.gated)
        part = hidden @ wide["down_weight"][expert] + wide["down_bias"][expert]
        output.index_add_(0, token, part * gates[token, place, None])
    return output


def costs(shape: MoEShape, tokens: int, experts: int) -> tuple[float, float]:
    """Return floating-point operations, and bytes if ``experts`` experts are read."""
    up = 2 if shape.gated else 1
    operations = 2.0 * tokens * shape.active * shape.width * shape.expert_width * (up + 1)
    weights = 2.0 * experts * shape.width * shape.expert_width * (up + 1)
    return operations, weights + tokens * shape.width * (4 + 2)


class Fused:
    """The plug-in's kernels on PyTorch's tensors and current stream, compiled into ``root`` for this GPU."""

    def __init__(self, shape: MoEShape, root: Path) -> None:
        import torch

        from engines.plugins.compile_kernels import compile_shape
        from engines.plugins.fused_moe_launch import KernelCache

        major, minor = torch.cuda.get_device_capability()
        compile_shape(shape, root, (10 * major + minor,))
        self.shape, self._kernels = shape, KernelCache(root)
        self._workspace = torch.empty(0, dtype=torch.uint8, device="cuda")

    def __call__(self, x: Tensor, weights: Mapping[str, Tensor], y: Tensor) -> None:
        """Write (T, D) fp16 into ``y``; x (T, D) fp32 or fp16, all contiguous."""
        import torch

        size = workspace_bytes(self.shape, len(x))
        if len(self._workspace) < size:
            self._workspace = torch.empty(size, dtype=torch.uint8, device="cuda")
        tensors = {name: weights[name].data_ptr() for name in INPUTS[1:]}
        launcher = self._kernels.get(self.shape, "fp32" if x.dtype == torch.float32 else "fp16")
        stream = torch.cuda.current_stream().cuda_stream
        launcher.enqueue(len(x), {**tensors, "x": x.data_ptr(), "y": y.data_ptr()}, self._workspace.data_ptr(), stream)


def timed_us(work: Callable[[], Any], *, graph: bool = True) -> float:
    """Return the median time of a call after a warm-up, in microseconds; ``graph`` replays a CUDA graph."""
    import torch

    torch.cuda.synchronize()
    cuda: Any = torch.cuda  # its streams and events have no types
    stream = cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
        stream.synchronize()
        run = work
        if graph:
            captured = torch.cuda.CUDAGraph()
            with torch.cuda.graph(captured, stream=stream):
                work()
            run = captured.replay
        times: list[float] = []
        for _ in range(REPEATS):
            start, end = (cuda.Event(enable_timing=True) for _ in range(2))
            start.record(stream)
            run()
            end.record(stream)
            end.synchronize()
            times.append(1000 * start.elapsed_time(end))
    return statistics.median(times)


def ceilings() -> dict[str, float]:
    """Return the rate of a large fp16 product in TFLOP/s, and of a large copy in GB/s, read and written."""
    import torch

    n = 8192
    a, b = (torch.randn(n, n, device="cuda").half() for _ in range(2))
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return {
        "tflops": 2 * n**3 / timed_us(lambda: a @ b, graph=False) / 1e6,
        "gbytes_per_s": 2 * source.numel() / timed_us(lambda: target.copy_(source), graph=False) / 1e3,
    }


def measure(shape: MoEShape, tokens: int, fused: Fused, weights: Mapping[str, Tensor]) -> KernelRow:
    """Measure one number of tokens."""
    import torch

    x = torch.randn(tokens, shape.width, device="cuda")
    y = torch.empty(tokens, shape.width, dtype=torch.float16, device="cuda")
    fused_us = timed_us(lambda: fused(x, weights, y))
    wanted = exact(x, weights, shape)
    experts, _ = routed(x, weights, shape.active)
    operations, size = costs(shape, tokens, len(set(experts.flatten().tolist())))
    compiled = torch.compile(dense, dynamic=False) if tokens in COMPILED else None
    return KernelRow(
        tokens=tokens,
        tile=choose_tile(shape, tokens).name,
        fused_us=fused_us,
        dense_us=timed_us(lambda: dense(x, weights, shape)),
        loop_us=timed_us(lambda: loop(x, weights, shape), graph=False),
        compiled_us=_compiled_us(lambda: compiled(x, weights, shape)) if compiled is not None else None,
        tflops=operations / fused_us / 1e6,
        gbytes_per_s=size / fused_us / 1e3,
        row_error=float(((y.double() - wanted).norm(dim=1) / wanted.norm(dim=1)).max()),
    )


def _compiled_us(work: Callable[[], Any]) -> float | None:
    """Return the time of a compiled call; None where it cannot be compiled here, which the other figures do not depend on."""
    try:
        return timed_us(work)
    except Exception as error:  # noqa: BLE001  # Inductor's, Triton's and the compiler's own
        print(f"torch.compile: {(str(error).strip().splitlines() or [type(error).__name__])[0][:300]}", file=sys.stderr)
        return None


def kernels(
    *,
    model: Annotated[str, typer.Option(help="Configuration whose experts are measured.")] = "1.8b",
    partial: Annotated[bool, typer.Option("--partial", help="Print the document after each number of tokens, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure the fused experts' kernels on this GPU, compared with cuBLAS and a loop over experts."""
    from engines.plugins.kernel_report import shape_of

    shape, device = shape_of(model), gpu()
    import torch

    weights = random_layer(shape, device)
    with tempfile.TemporaryDirectory() as folder:
        fused = Fused(shape, Path(folder))
        results: dict[str, Any] = {
            "device": torch.cuda.get_device_name(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "shape": asdict(shape),
            "ceilings": ceilings(),
            "rows": [],
        }
        for tokens in TOKENS:
            results["rows"].append(asdict(measure(shape, tokens, fused, weights)))
            if partial:
                print(document(results), flush=True)
    print_table(results, Output(json=as_json))
    print(document(results))


def print_table(results: Mapping[str, Any], output: Output) -> None:
    """Print ceilings and a row for each number of tokens."""
    top = results["ceilings"]
    output.line(f"{results['device']}: fp16 products {top['tflops']:.0f} TFLOP/s, copies {top['gbytes_per_s']:.0f} GB/s")
    cells = []
    for row in results["rows"]:
        times = [f"{row[name]:.1f}" if row[name] is not None else "-" for name in ("fused_us", "dense_us", "loop_us", "compiled_us")]
        rates = [f"{row[name]:.1f} ({100 * row[name] / top[name]:.0f} %)" for name in ("tflops", "gbytes_per_s")]
        cells.append([str(row["tokens"]), row["tile"], *times, *rates, f"{row['row_error']:.2e}"])
    output.table(
        (">tokens", "tile", ">fused µs", ">dense µs", ">loop µs", ">compiled µs", ">TFLOP/s (share)", ">GB/s (share)", ">row error"), cells
    )


if __name__ == "__main__":
    typer.run(kernels)
