"""The one training loop: tokenizer, encoders, unified model and judge all run through :func:`train`.

A *task* brings modules, batches and losses; the loop brings prefetching, autocast, gradient accumulation and clipping, AdamW, the
learning-rate law, EMA, checkpoints that resume exactly, logs, signals and several processes.  Its conventions:

- ``task.modules`` are trained and written; the loop moves them (and every batch) to the device.  Frozen helpers of a task are the task's
  own business; :func:`resolve_device` tells it where.
- ``task.losses`` computes through ``task.modules[...]`` and returns one scalar per optimizer.  The loss ``"critic"`` reaches the
  gradients of ``modules["critic"]`` only, so a generator's loss may run through the critic without training it.  Losses must not share a
  graph (detach what crosses over).  A name left out at some step is not updated at that step (a critic that starts late).
- There is no DDP wrapper: gradients lie in one flat buffer per module, which the loop averages over the processes.  That is exact, needs
  no hooks and treats experts that saw no token as zero gradient on every process alike.  With ``shard``, FSDP2 holds slices instead
  (export/training/sharding.py).
- Micro batches are counted over all processes: two processes with one each train as one process with two, and a run may be resumed by
  another number of processes.
- Randomness: the loop seeds torch's global generator from (seed, step, micro) before every call of ``losses``; ``batch`` runs in
  another thread and must draw from generators of its own, keyed by its arguments.  Hence there is no random state to save.
- A step whose gradients are not finite updates nothing and is counted (``skipped`` in the log).

    train(TokenizerTask(...), TrainOptions(out=Path("runs/tokenizer"), steps=6000, batch=24))
    torchrun --nproc-per-node 2 -m export train tokenizer …              # the same, two processes
    torchrun --nproc-per-node 8 -m export train unified --shard …        # parameters and their states sharded over eight
"""

from __future__ import annotations

import math
import queue
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from export.training.checkpoint import latest_checkpoint, read_checkpoint, write_checkpoint, write_sharded
from export.training.distributed import Processes
from export.training.optimization import Averages, Optimization, rate_factor
from export.training.progress import TrainingProgress
from export.training.sharding import free, shard
from f2edge.errors import F2EdgeError, InputError

Batch = dict[str, torch.Tensor]
StepMetrics = dict[str, "float | torch.Tensor"]

_MAX_SKIPPED = 20
#: Values of a batch's tensor from which on it travels between processes as fp16.
_LARGE = 1 << 20


class DivergedError(F2EdgeError, ArithmeticError):
    """The gradients were not finite for many steps in a row."""


class Task(Protocol):
    """What the loop needs to know of one kind of training.

    Attributes:
        name: written into checkpoints; resuming another task's folder is refused.
        modules: optimizer name → module, for example ``{"model": m}`` or ``{"model": tokenizer, "critic": discriminator}``.

    A task whose batches of several consecutive steps share work says how many in ``together``.  One whose ``validate`` is called in all
    processes, which share the work (:meth:`Processes.map`), has ``validates_together``; others validate in the first process.
    """

    name: str
    modules: Mapping[str, nn.Module]

    def batch(self, step: int, micro: int) -> Batch:
        """CPU tensors: a pure function of its arguments, different for each. Runs in a background thread.

        ``micro`` counts the step's micro batches of all processes.
        """
        ...

    def losses(self, batch: Batch, step: int) -> tuple[dict[str, torch.Tensor], StepMetrics]:
        """Optimizer name → scalar loss, and metrics to log (detached scalars). Runs under autocast, modules in train mode.

        ``step`` is how far the schedule is, of ``TrainOptions.steps``.
        """
        ...

    def validate(self, model: Mapping[str, nn.Module], step: int, directory: Path) -> dict[str, float]:
        """Validation metrics of the EMA weights, swapped into ``model`` (eval mode, no grad); sample grids go to ``directory``."""
        ...


@dataclass(frozen=True)
class TrainOptions:
    """How long, how fast, where to.

    Attributes:
        out: folder of the run; holds ``step-000123`` folders, ``log.jsonl`` and ``samples``. A run found there is resumed.
        steps: optimizer steps in all, counted from the first start.
        minutes: time in all, of all starts; the schedule runs by whichever of steps and time is further on. 0: steps alone count.
        batch: rows of one micro batch in one process; the task makes its batches of this size, the loop derives rates from it.
        accumulate: micro batches per optimizer step.
        learning_rate: peak; ``rate_scale`` multiplies it for the optimizers it names.
        warmup: steps of linear warm-up.
        schedule: "cosine" (to 0), "constant" or "wsd": warm-up, stable, then 1 - sqrt decay to 0 over the last ``decay_fraction`` of the
            steps (arXiv 2405.18392). With "wsd" a run can be stopped at any time and resumed with fewer ``steps`` to cool down early.
        optimizer: "adamw", or "muon" (hidden matrices by Muon, the rest by AdamW; same rate), except for the modules in ``adamw_only``.
        weight_decay: on tensors of two or more axes.
        clip: gradient norm per module; 0 turns it off.
        ema: decay of the weight average, ramped up from 0.1 by ``(1 + step) / (10 + step)``; 0 turns it off.
        bf16: autocast to bfloat16; Muon iterates in it too.
        validate_every, save_every, log_every: in steps; 0 means only at the end.
        threads: torch threads; 0 keeps torch's choice.
        loaders: processes that make batches; 0: a thread of this one, which is enough on two cores.
        device: "auto", "cpu", "cuda" …
        shard: shard parameters, gradients, moments and average over the processes (FSDP2); nothing changes for one process.
        tensorboard: also write the metrics for TensorBoard, into ``out/tensorboard``.
    """

    out: Path
    steps: int
    batch: int
    accumulate: int = 1
    learning_rate: float = 1e-3
    warmup: int = 100
    schedule: str = "wsd"
    decay_fraction: float = 0.25
    optimizer: str = "adamw"
    adamw_only: tuple[str, ...] = ("critic",)
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float = 1.0
    ema: float = 0.999
    bf16: bool = True
    validate_every: int = 0
    save_every: int = 500
    log_every: int = 20
    seed: int = 0
    threads: int = 0
    device: str = "auto"
    minutes: float = 0.0
    loaders: int = 0
    shard: bool = False
    tensorboard: bool = False
    rate_scale: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate"):
            if getattr(self, name) < 1:
                raise InputError(f"training: {name} must be at least 1, got {getattr(self, name)}")
        if self.schedule not in ("cosine", "constant", "wsd"):
            raise InputError(f"training: unknown schedule {self.schedule!r}; choose cosine, constant or wsd")
        if self.optimizer not in ("adamw", "muon"):
            raise InputError(f"training: unknown optimizer {self.optimizer!r}; choose adamw or muon")
        if not 0 <= self.minutes < math.inf:
            raise InputError(f"training: minutes must be a number, 0 or above, got {self.minutes}")
        if not 0 <= self.learning_rate < math.inf:
            raise InputError(f"training: the learning rate must be a number, 0 or above, got {self.learning_rate}")
        if not 0 <= self.ema < 1:
            raise InputError(f"training: ema must lie in [0, 1), got {self.ema}")

    def factor(self, step: int) -> float:
        """Share of the peak learning rate used for the ``step``-th update (counted from 0)."""
        return rate_factor(step, self.steps, self.warmup, self.schedule, self.decay_fraction)


def resolve_device(name: str = "auto") -> torch.device:
    """``"auto"`` is this process' GPU where there is one, else the CPU; raises :class:`InputError` for one that is not here."""
    if name != "auto":
        try:
            device = torch.device(name)
            torch.empty(1, device=device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"device {name!r} cannot be used here ({reason[:200]}); choose auto or cpu") from error
        return device
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", Processes.local_rank() % torch.cuda.device_count())


def train(task: Task, options: TrainOptions) -> Path:
    """Run or resume ``task`` until ``options.steps``, or until SIGTERM or SIGINT asks to save and stop.

    Returns:
        The last checkpoint's folder; ``load_weights`` reads it.

    Raises:
        InputError: the folder belongs to another task, or its weights do not fit.
        DivergedError: twenty steps in a row without a finite gradient.
    """
    if options.threads:
        torch.set_num_threads(options.threads)
    device = resolve_device(options.device)
    with Processes.join(device) as processes, _stop_signals() as stop:
        return _Run(task, options, device, processes, stop).go()


class _Run:
    """One call of :func:`train`."""

    def __init__(self, task: Task, options: TrainOptions, device: torch.device, processes: Processes, stop: threading.Event) -> None:
        self.task, self.options, self.device, self.processes, self.stop = task, options, device, processes, stop
        self.modules = {name: module.to(device).train() for name, module in task.modules.items()}
        self.sharded = options.shard and processes.world > 1
        if self.sharded:
            for module in self.modules.values():
                shard(module, device, processes.world)
        self.optimizations = {
            name: Optimization(
                module,
                options.optimizer if name not in options.adamw_only else "adamw",
                options.learning_rate * options.rate_scale.get(name, 1.0),
                betas=options.betas,
                weight_decay=options.weight_decay,
                clip=options.clip,
                precision=torch.bfloat16 if options.bf16 else torch.float32,
            )
            for name, module in self.modules.items()
        }
        self.averages = {name: Averages(module, options.ema) for name, module in self.modules.items()} if options.ema else {}
        self.skipped = self.skipped_in_all = 0
        self.step, self.spent = self._resume()
        self.begun = time.perf_counter()
        self.place = self._place()
        self.last = latest_checkpoint(options.out)
        if not self.sharded:
            processes.broadcast(t for m in self.modules.values() for t in (*m.parameters(), *m.buffers()))

    def _seconds(self) -> float:
        """Time of all starts."""
        return self.spent + time.perf_counter() - self.begun

    def _place(self) -> int:
        """How far the schedule is, in steps: by time where that is further on than the steps done; the same in every process."""
        options = self.options
        if not options.minutes:
            return self.step
        share = torch.tensor(self._seconds() / (60 * options.minutes), dtype=torch.float64, device=self.device)
        self.processes.broadcast([share])
        return min(max(self.step, int(float(share) * options.steps)), options.steps)

    def go(self) -> Path:
        options, first = self.options, self.processes.rank == 0
        if self.place == options.steps and self.last is not None:
            return self.last
        rows = options.batch * options.accumulate * self.processes.world
        with TrainingProgress(
            options.out, self.task.name, start=self.step, steps=options.steps, rows=rows, every=options.log_every, active=first,
            tensorboard=options.tensorboard,
        ) as progress:  # fmt: skip
            for micro_batches in self._batches():
                progress.add(self._update(micro_batches))
                self.step += 1
                self.place = self._place()
                stopping, finished = self.processes.any(self.stop.is_set(), self.device), self.place == options.steps
                ended = stopping or finished
                progress.log(self.step, force=ended)
                if _due(self.step, options.validate_every) or finished:
                    begun = time.perf_counter()
                    metrics = self._validate()
                    progress.note(self.step, metrics, time.perf_counter() - begun)
                if _due(self.step, options.save_every) or ended:
                    self._save()
                if ended:
                    break
        if self.last is None:
            raise InputError(f"training {self.task.name!r}: nothing to do in {options.out}")
        return self.last

    def _update(self, micro_batches: list[Batch]) -> StepMetrics:
        """One optimizer step; returns the metrics of all its micro batches, averaged over the processes too."""
        options, total = self.options, StepMetrics()
        updated: set[str] = set()
        for micro, batch in enumerate(micro_batches):
            torch.manual_seed(_mix(options.seed, self.step, self._counted(micro)))
            with torch.autocast(self.device.type, torch.bfloat16, enabled=options.bf16):
                losses, metrics = self.task.losses(batch, self.place)
            for name, loss in losses.items():
                self.optimizations[name].backward(loss / options.accumulate)
                metrics = {**metrics, f"loss/{name}": loss.detach()}
            updated |= set(losses)
            for key, value in metrics.items():
                part = (value.detach().float() if isinstance(value, torch.Tensor) else value) / options.accumulate
                total[key] = total[key] + part if key in total else part
        if self.processes.world > 1:
            shared = torch.stack([torch.as_tensor(value, dtype=torch.float32, device=self.device) for value in total.values()])
            self.processes.average(shared)
            total = dict(zip(total, shared.unbind(), strict=True))
        rate = options.factor(self.place)
        finite = True
        for name in (n for n in self.modules if n in updated):
            norm = self.optimizations[name].apply(rate, self.processes)
            finite &= math.isfinite(norm)
            total[f"gradient/{name}"] = norm
        self.skipped = 0 if finite else self.skipped + 1
        self.skipped_in_all += not finite
        if self.skipped >= _MAX_SKIPPED:
            raise DivergedError(f"training {self.task.name!r}: no finite gradient for {_MAX_SKIPPED} steps; lower the learning rate")
        for average in self.averages.values():
            average.update(self.step)
        total |= {"rate_factor": rate, "skipped": float(self.skipped_in_all)}
        return total

    def _batches(self) -> Iterator[list[Batch]]:
        """The micro batches of each step still to do, on the device; made ahead by other processes or by a background thread."""
        if self.options.loaders:
            yield from self._loaded()
        else:
            yield from self._threaded()

    def _loaded(self) -> Iterator[list[Batch]]:
        """From processes of their own, which are forked: they share the task's memory-mapped data and never touch the device."""
        options = self.options
        together = getattr(self.task, "together", 1)
        chunks = [range(first, min(first + together, options.steps)) for first in range(self.step, options.steps, together)]
        loader = DataLoader(
            _Chunks(self.task, chunks, [self._counted(micro) for micro in range(options.accumulate)]),
            batch_size=None,
            num_workers=options.loaders,
            prefetch_factor=2,
            multiprocessing_context="fork",
            pin_memory=self.device.type == "cuda",
            worker_init_fn=_one_thread,
        )
        for steps in loader:
            for batches in steps:
                yield [self._placed(batch) for batch in batches]

    def _placed(self, batch: Batch) -> Batch:
        moved = {key: value.to(self.device, non_blocking=True) for key, value in batch.items()}
        return {key: value.float() if value.dtype == torch.float16 else value for key, value in moved.items()}

    def _threaded(self) -> Iterator[list[Batch]]:
        ready: queue.Queue[list[Batch] | BaseException] = queue.Queue(maxsize=2)
        closed = threading.Event()

        def put(item: list[Batch] | BaseException) -> None:
            while not closed.is_set():
                try:
                    ready.put(item, timeout=0.1)
                except queue.Full:
                    continue
                return

        def produce() -> None:
            try:
                for step in range(self.step, self.options.steps):
                    if closed.is_set():
                        return
                    put([self._host_batch(step, micro) for micro in range(self.options.accumulate)])
            except BaseException as error:  # noqa: BLE001 - handed to the main thread, which raises it
                put(error)

        thread = threading.Thread(target=produce, name="batches", daemon=True)
        thread.start()
        try:
            for _ in range(self.step, self.options.steps):
                item = ready.get()
                if isinstance(item, BaseException):
                    raise item
                yield [self._placed(batch) for batch in item]
        finally:
            closed.set()
            thread.join()

    def _counted(self, micro: int) -> int:
        """Return the number of this process' micro batch among those of all."""
        return micro * self.processes.world + self.processes.rank

    def _host_batch(self, step: int, micro: int) -> Batch:
        batch = self.task.batch(step, self._counted(micro))
        return {key: value.pin_memory() for key, value in batch.items()} if self.device.type == "cuda" else batch

    def _validate(self) -> dict[str, float]:
        metrics: dict[str, float] = {}
        self._share_buffers()
        if self.processes.rank == 0 or getattr(self.task, "validates_together", False):
            directory = self.options.out / "samples"
            directory.mkdir(parents=True, exist_ok=True)
            self._swap_averages()
            for module in self.modules.values():
                module.eval()
            try:
                with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.bf16):
                    metrics = self.task.validate(self.modules, self.step, directory)
            finally:
                self._swap_averages()
                for module in self.modules.values():
                    module.train()
        self.processes.barrier()
        return metrics

    def _swap_averages(self) -> None:
        for average in self.averages.values():
            average.swap()
        for module in self.modules.values():
            free(module)

    def _share_buffers(self) -> None:
        self.processes.broadcast(b for m in self.modules.values() for b in m.buffers())

    def _save(self) -> None:
        self._share_buffers()
        options = {k: str(v) for k, v in asdict(self.options).items()}
        state = {"task": self.task.name, "step": self.step, "seconds": self._seconds(), "skipped": self.skipped_in_all, "options": options}
        state["finished"] = self.place == self.options.steps
        if self.sharded:
            write_sharded(self.options.out, self.step, self._tensors(), state, self.processes)
        elif self.processes.rank == 0:
            write_checkpoint(self.options.out, self.step, self._tensors(), state)
        self.processes.barrier()
        self.last = latest_checkpoint(self.options.out)

    def _tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        """File name → tensors; the same tensors are written by :meth:`_save` and filled by :meth:`_resume`."""
        files: dict[str, dict[str, torch.Tensor]] = {}
        for name, module in self.modules.items():
            files[name] = dict(module.state_dict())
            files[f"{name}.optimizer"] = self.optimizations[name].state()
        for name, average in self.averages.items():
            files[f"{name}.ema"] = average.state()
        return files

    def _resume(self) -> tuple[int, float]:
        """Fill everything from the last checkpoint, if any; returns the number of steps already done, and the seconds that took."""
        found = latest_checkpoint(self.options.out)
        if found is None:
            return 0, 0.0
        state: dict[str, Any] = read_checkpoint(found, self._tensors())
        if state["task"] != self.task.name:
            raise InputError(f"{self.options.out} holds a run of {state['task']!r}, not of {self.task.name!r}; choose another folder")
        self.skipped_in_all = int(state.get("skipped", 0))
        return int(state["step"]), float(state.get("seconds", 0.0))


class _Chunks(Dataset[list[list[Batch]]]):
    """Batches of consecutive steps, made together: a task may keep what they share.  Large ones travel as fp16: half the shared memory."""

    def __init__(self, task: Task, chunks: Sequence[range], micros: Sequence[int]) -> None:
        self.task, self.chunks, self.micros = task, chunks, micros

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, index: int) -> list[list[Batch]]:
        made = [[self.task.batch(step, micro) for micro in self.micros] for step in self.chunks[index]]
        return [[{key: _lighter(value) for key, value in batch.items()} for batch in batches] for batches in made]


def _lighter(value: torch.Tensor) -> torch.Tensor:
    return value.half() if value.dtype == torch.float32 and value.numel() >= _LARGE else value


def _one_thread(_worker: int) -> None:
    torch.set_num_threads(1)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _mix(seed: int, step: int, micro: int) -> int:
    """One seed from three counters (SplitMix64's finaliser over each in turn)."""
    mask = 2**64 - 1
    state = 0
    for part in (seed, step, micro):
        state = (state ^ part) + 0x9E3779B97F4A7C15 & mask
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & mask
        state = (state ^ state >> 27) * 0x94D049BB133111EB & mask
        state ^= state >> 31
    return state >> 1


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set while the context lasts (in the main thread; elsewhere nothing is caught)."""
    stop = threading.Event()

    def handle(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
