"""Backend that records the inputs and outputs of another one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from f2edge.backends.base import Array, Sequential, Value, host


@dataclass
class Recorder(Sequential):
    """Passes everything on to ``inner`` and keeps each graph's feeds and outputs."""

    inner: Any
    calls: dict[str, list[tuple[dict[str, Array], dict[str, Array]]]] = field(default_factory=dict)

    name = "recorder"

    def run(self, graph: str, feeds: Mapping[str, Value]) -> dict[str, Value]:
        """Forward the call to ``inner``; see :class:`f2edge.backends.base.Backend`."""
        outputs: dict[str, Value] = self.inner.run(graph, feeds)
        self.calls.setdefault(graph, []).append(({k: host(v) for k, v in feeds.items()}, {k: host(v) for k, v in outputs.items()}))
        return outputs

    def pack(self, caches: Sequence[Value]) -> Value:
        """Forward the call to ``inner``; see :class:`f2edge.backends.base.Backend`."""
        packed: Value = self.inner.pack(caches)
        return packed
