"""TrainingProgress of a training run: a bar on a terminal, otherwise lines, and all rows in ``log.jsonl`` and for TensorBoard."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from tqdm import tqdm
from typing_extensions import Self

from f2edge.errors import InputError


class TrainingProgress:
    """Averages metrics between two log rows; does nothing if inactive, when another process writes.

    Args:
        out: the run's folder; rows go to ``out/log.jsonl``. Rows beyond ``start`` (a killed run's last ones) are dropped.
        start, steps: steps done already, and in all.
        rows: rows of data per step, over all processes; gives the rate.
        every: log each so many steps; 0 only when forced.
        tensorboard: also write the rows for TensorBoard, into ``out/tensorboard``.
    """

    def __init__(
        self, out: Path, name: str, *, start: int, steps: int, rows: int, every: int, active: bool, tensorboard: bool = False
    ) -> None:
        self.active, self.rows, self.every, self.steps, self.name = active, rows, every, steps, name
        self._sums: dict[str, float | torch.Tensor] = {}
        self._counts: dict[str, int] = {}
        self._since, self._at = start, time.perf_counter()
        self._path = out / "log.jsonl"
        if active:
            out.mkdir(parents=True, exist_ok=True)
            _truncate(self._path, start)
        self._writer = _tensorboard(out / "tensorboard", start) if active and tensorboard else None
        on_terminal = active and sys.stderr.isatty()
        self._bar = tqdm(total=steps, initial=start, desc=name, dynamic_ncols=True, file=sys.stderr) if on_terminal else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()
        if self._writer is not None:
            self._writer.close()

    def add(self, metrics: Mapping[str, float | torch.Tensor]) -> None:
        """Add one step's metrics; tensors are read only when a row is written, to avoid synchronizing a GPU."""
        for key, value in metrics.items():
            self._sums[key] = self._sums[key] + value if key in self._sums else value
            self._counts[key] = self._counts.get(key, 0) + 1
        if self._bar is not None:
            self._bar.update()

    def log(self, step: int, *, force: bool = False) -> None:
        """Write the averages since the last row, if one is due."""
        if not self.active or not (force or (self.every and step % self.every == 0)) or step == self._since:
            return
        now = time.perf_counter()
        averages = {key: float(value) / self._counts[key] for key, value in self._sums.items()}
        averages["rows_per_s"] = (step - self._since) * self.rows / (now - self._at)
        self._sums, self._counts, self._since, self._at = {}, {}, step, now
        self._row({"step": step, **averages})

    def note(self, step: int, metrics: Mapping[str, float], took_s: float) -> None:
        """Write a validation row with keys under ``validate/``; its duration is excluded from the rate."""
        self._at += took_s
        if self.active and metrics:
            self._row({"step": step, **{f"validate/{key}": value for key, value in metrics.items()}})

    def _row(self, row: dict[str, float]) -> None:
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")
        if self._writer is not None:
            for key, value in row.items():
                self._writer.add_scalar(key, value, int(row["step"]))
        text = " ".join(f"{key}={value:.4g}" for key, value in row.items() if key != "step")
        if self._bar is not None:
            self._bar.set_postfix_str(text)
        else:
            print(f"{self.name} {row['step']}/{self.steps} {text}", file=sys.stderr, flush=True)


def _truncate(path: Path, step: int) -> None:
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
        path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def _tensorboard(folder: Path, step: int) -> Any:
    """Return a ``SummaryWriter``; rows beyond ``step`` (a killed run's last ones) are hidden."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError(f"--tensorboard: needs the package tensorboard ({error}); pip install tensorboard") from error
    return SummaryWriter(str(folder), purge_step=step + 1)
