"""What the server asks of an engine; :class:`f2edge.engine.engine.Engine` offers it, and so does the scripted one of the tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from f2edge.engine.requests import EngineState, EngineStats, Event, Priority, ReplyKind, Request
from f2edge.engine.sequences import RequestHandle
from f2edge.provenance.watermark import PUBLIC, Watermark
from f2edge.wire import ModelFacts

if TYPE_CHECKING:
    from f2edge.bundle.bundle import Bundle
    from f2edge.provenance.c2pa import Signer


class EnginePort(Protocol):
    """Runs the requests of many callers; see :class:`f2edge.engine.engine.Engine` for each method."""

    def submit(
        self,
        request: Request,
        *,
        priority: Priority | None = None,
        deadline: float | None = None,
        on_event: Callable[[Event], None] | None = None,
        reply: ReplyKind | None = None,
    ) -> RequestHandle: ...

    def add_reply(self, kind: ReplyKind, ms: float) -> None: ...

    def check_room(self, family: str) -> None: ...

    @property
    def state(self) -> EngineState: ...

    @property
    def heartbeat_age_ms(self) -> float: ...

    def stats(self) -> EngineStats: ...

    def drain(self, grace_s: float) -> bool: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Served:
    """An engine, what its model is, and how a detected face is cut out of a frame.

    Attributes:
        margins: left, top, right, bottom: how far a crop reaches beyond a face's box, in parts of the box's sides.
        signer: of the content credentials of finished pictures; None for none.
    """

    engine: EnginePort
    facts: ModelFacts
    margins: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    signer: Signer | None = None


def open_served(
    bundle: str | Bundle, backend: str, threads: int | None, watermark: Watermark | None = PUBLIC, signer: Signer | None = None
) -> Served:
    """Load a bundle and start an engine on it, whose pictures carry the ``watermark``; returns before the engine is warm.

    Raises:
        BundleError: the bundle is missing or damaged.
        BackendError: it cannot run here.
    """
    from f2edge import __version__
    from f2edge.engine.engine import Engine
    from f2edge.pipeline import FacePipeline

    pipeline = FacePipeline.load(bundle, backend=backend, threads=threads, watermark=watermark)
    opened, model = pipeline.bundle, pipeline.bundle.configuration
    facts = ModelFacts(
        name=opened.name,
        description=str(opened.manifest.document.get("description", "")),
        licence=str(opened.manifest.document.get("licence", "")),
        f2edge_version=__version__,
        backend=pipeline.backend.name,
        image_side=model.tokenizer.image_size,
        grid=model.tokenizer.grid,
        tokens=model.image_tokens,
        codes=model.codes,
        prompt_tokens=model.prompt_tokens,
        generation=opened.generation,
        editing=opened.editing,
        regions=opened.regions,
        schema=opened.schema,
        faces=opened.faces,
        pictures=opened.manifest.picture_law,
        reading_side=model.understanding_size,
    )
    alignment = opened.manifest.alignment
    return Served(Engine(pipeline), facts, (0.0, 0.0, 0.0, 0.0) if alignment is None else alignment.margins, signer)
