"""Interface of a model for the command line: :class:`~f2edge.pipeline.FacePipeline` or a :class:`~f2edge.client.sync.Client`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from f2edge.decoding.parallel import StepEvent
    from f2edge.imaging.images import ImageSource
    from f2edge.imaging.map_pictures import LayoutSource
    from f2edge.imaging.regions import Region
    from f2edge.results import Answer, EditedFace, FaceReport, GeneratedFace, GenerateOptions
    from f2edge.spec.attributes import AttributeSchema


class ModelDescription(Protocol):
    """Name, regions and attributes of a model."""

    @property
    def name(self) -> str: ...

    @property
    def regions(self) -> tuple[str, ...]: ...

    @property
    def schema(self) -> AttributeSchema: ...


class Named(Protocol):
    """A thing with a name: the backend."""

    @property
    def name(self) -> str: ...


class FaceModel(Protocol):
    """A model; the methods are those of :class:`~f2edge.pipeline.FacePipeline`."""

    @property
    def bundle(self) -> ModelDescription: ...

    @property
    def backend(self) -> Named: ...

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        seeds: int | Sequence[int] = 0,
        options: GenerateOptions | None = None,
        check: bool | int = False,
        layout: LayoutSource | Sequence[LayoutSource] | None = None,
        layout_from: ImageSource | Sequence[ImageSource] | None = None,
        layout_strength: float = ...,
        on_step: Callable[[StepEvent], None] | None = None,
        preview_images: bool = False,
    ) -> list[GeneratedFace]: ...

    def edit(
        self,
        image: ImageSource,
        prompt: str,
        region: Region,
        *,
        seed: int = 0,
        options: GenerateOptions | None = None,
        keep_outside: bool = True,
        check: bool | int = False,
        on_step: Callable[[StepEvent], None] | None = None,
    ) -> EditedFace: ...

    def describe(
        self,
        image: ImageSource,
        *,
        max_tokens: int = 128,
        include_sensitive: bool = False,
        on_token: Callable[[str], None] | None = None,
    ) -> Answer: ...

    def ask(
        self,
        image: ImageSource,
        question: str,
        *,
        max_tokens: int = 64,
        include_sensitive: bool = False,
        on_token: Callable[[str], None] | None = None,
    ) -> Answer: ...

    def analyze(
        self, images: ImageSource | Sequence[ImageSource], *, attributes: Sequence[str] | None = None, include_sensitive: bool = False
    ) -> list[FaceReport]: ...
