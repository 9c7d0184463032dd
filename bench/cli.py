"""Command line of the benches; each command imports what it needs when it runs.

python -m bench latency --bundle nano
python -m bench step --bundle nano
python -m bench compare --steps 6,12 --batch 1,4,8 --out runs/latency
python -m bench paper-size --config show-o
python -m bench memory --bundle nano
python -m bench quality --bundle nano --out runs/quality
python -m bench presets --bundle runs/nano --write
python -m bench pareto --bundle nano --out runs/pareto
python -m bench reuse --bundle nano
python -m bench judge --data shards/faces --out runs/judge
python -m bench recipes --bundle runs/fp32/nano
python -m bench provenance
python -m bench load --scenario closed --clients 8
python -m bench fuzz --duration 600
python -m bench showo --source Show-o
python -m bench camera
python -m bench roofline --device orin-nano
python -m bench expert-kernels --config 1.8b
python -m bench kernels
python -m bench ablation --out runs/ablation
python -m bench gpu --out runs/gpu
"""

from __future__ import annotations

import sys

import typer

from bench.camera.camera import camera
from bench.hardware.expert_kernels import expert_kernels
from bench.hardware.gpu import gpu
from bench.hardware.kernels import kernels
from bench.hardware.roofline import roofline
from bench.latency.commands import LatencyCommand, compare, latency, memory, paper_size
from bench.latency.step_profile import step
from bench.load.fuzz import fuzz
from bench.load.load import load
from bench.pareto.pareto import pareto
from bench.pareto.reuse import reuse
from bench.published.showo import showo
from bench.quality.commands import judge, quality
from bench.quality.presets import presets
from bench.quality.provenance import provenance
from bench.quality.recipes import recipes
from bench.training.commands import ablation
from f2edge.errors import F2EdgeError, InputError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="Measure the model.")


def main() -> None:
    """Run the command line; bad input prints one line and exits with code 2, other failures exit with code 1."""
    try:
        app()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except F2EdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


app.command(cls=LatencyCommand)(latency)
for _command in (
    compare,
    step,
    paper_size,
    memory,
    quality,
    judge,
    presets,
    pareto,
    reuse,
    recipes,
    provenance,
    load,
    fuzz,
    camera,
    roofline,
    expert_kernels,
    kernels,
    ablation,
    gpu,
    showo,
):
    app.command()(_command)


@app.command(hidden=True, context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def forms() -> None:
    """Refuse the former name of ``expert-kernels``."""
    raise InputError("bench forms is now `python -m bench expert-kernels`")
