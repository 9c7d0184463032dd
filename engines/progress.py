"""Progress bar of a TensorRT build, which can be stopped between two steps."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from typing_extensions import Self


class BuildProgress:
    """Context that shows the phases of a build as bars on stderr; hidden where stderr is not a terminal, or if ``quiet``."""

    def __init__(self, title: str, *, quiet: bool) -> None:
        self._title = title
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
            disable=quiet or not sys.stderr.isatty(),
        )
        self._tasks: dict[str, TaskID] = {}
        self.stopped = False

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bars.stop()

    def begin(self, phase: str, steps: int, *, inner: bool) -> None:
        """Add a bar for a phase of so many steps; ``inner`` phases are indented."""
        self._tasks[phase] = self._bars.add_task(("  " if inner else "") + f"{self._title} {phase}"[:60], total=steps)

    def advance(self, phase: str, step: int) -> bool:
        """Update a phase's bar; return whether the build continues."""
        if phase in self._tasks:
            self._bars.update(self._tasks[phase], completed=step + 1)
        return not self.stopped

    def end(self, phase: str) -> None:
        """Remove a phase's bar."""
        if phase in self._tasks:
            self._bars.remove_task(self._tasks.pop(phase))

    def monitor(self, trt: Any) -> Any:
        """Return a ``tensorrt.IProgressMonitor`` for these bars.  Keep a reference: TensorRT does not.

        TensorRT calls it from its own threads, where an exception would end the process, so Ctrl-C only sets :attr:`stopped`.
        """
        progress = self

        class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # a class that only exists where TensorRT is
            def __init__(self) -> None:
                trt.IProgressMonitor.__init__(self)

            def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
                progress.begin(phase_name, num_steps, inner=bool(parent_phase))

            def phase_finish(self, phase_name: str) -> None:
                progress.end(phase_name)

            def step_complete(self, phase_name: str, step: int) -> bool:
                try:
                    return progress.advance(phase_name, step)
                except KeyboardInterrupt:
                    progress.stopped = True
                    return False

        return Monitor()
