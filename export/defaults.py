"""Default settings of a model for the manifest: decoding schedule, editing, and the question template.

An imported checkpoint has the defaults of its own code.

>>> defaults_of(SHOW_O).generation["steps"]
16
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from f2edge.bundle.trained_for import TrainedFor
from f2edge.decoding.schedule import Schedule
from f2edge.spec.configuration import ModelConfiguration
from f2edge.spec.sensitive import DRAWN, PHOTOGRAPHED

#: Default schedule of ``generate``; nano's guidances from 2 to 6 differ by less than a point.  The counts of "arccos", more tokens early
#: and fewer late, bring it nearer to renders; with less noise on the confidence, what is drawn most surely comes too often: sunglasses
#: (docs/nano.md).
GENERATION: Mapping[str, Any] = MappingProxyType(
    {
        "steps": 12,
        "guidance": 3.0,
        "temperature_law": "linear",
        "temperature": 6.0,
        "order": "maskgit",
        "mask_law": "arccos",
        "token_temperature": 1.0,
    }
)
#: Changes for ``edit``: higher guidance and lower temperature follow the prompt better.
_EDITING: Mapping[str, Any] = MappingProxyType({"guidance": 6.0, "temperature": 0.4})
#: Show-o's own sampler (models/modeling_showo.py, ``t2i_generate``): a temperature that compounds, the cosine in single precision.
_SHOW_O_LAWS: Mapping[str, Any] = MappingProxyType({**GENERATION, "temperature": 1.0, "temperature_law": "show-o", "mask_law": "show-o"})
#: Minimum picture size for which the published commands use more steps and a higher guidance.
_LARGE = 512


@dataclass(frozen=True)
class ModelDefaults:
    """Default settings of a model in its manifest.

    Attributes:
        generation: fields of :class:`f2edge.decoding.schedule.Schedule`.
        editing: fields that differ for ``edit``.
        question_template: template of a question, as in :class:`f2edge.spec.layout.TokenLayout`.
        describe_question: question of ``describe``.
        pictures: a law of :data:`f2edge.imaging.laws.LAWS`.
        long_prompts: as in :class:`f2edge.spec.layout.TokenLayout`.
        faces: faces of the training pictures, one of :data:`f2edge.spec.sensitive.FACES`.
        project_words: whether the model was trained on this project's words, so that its bundle can say which words it knows.
    """

    generation: Mapping[str, Any] = field(default_factory=lambda: GENERATION)
    editing: Mapping[str, Any] = field(default_factory=dict)
    question_template: str = "{question}\n"
    describe_question: str = "describe the face"
    pictures: str = "f2edge"
    long_prompts: str = "refuse"
    project_words: bool = True
    faces: str = DRAWN


#: What stands before the picture in models that read it by CLIP's features.
SYSTEM_PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


def _show_o(size: int, *, by_features: bool) -> ModelDefaults:
    """Return the published settings: 16 steps with guidance 1.75 at 256 pixels, 50 steps with guidance 5 at 512; greedy answers."""
    steps, guidance = (50, 5.0) if size >= _LARGE else (16, 1.75)
    return ModelDefaults(
        generation={**_SHOW_O_LAWS, "steps": steps, "guidance": guidance},
        question_template="USER: {question} ASSISTANT:" if by_features else "USER: \n{question} ASSISTANT:",
        describe_question="Please describe this image in detail.",
        pictures="show-o",
        long_prompts="truncate",
        project_words=False,
        faces=PHOTOGRAPHED,
    )


def defaults_of(configuration: ModelConfiguration, trained_for: TrainedFor | None = None) -> ModelDefaults:
    """Return the published defaults for "show-o" and "1.8b", which starts from it, and this project's for any other model.

    A distilled student has the guidance and the steps that it was trained for.
    """
    found = ModelDefaults(editing=_EDITING)
    if configuration.name in {"show-o", "1.8b"}:
        found = _show_o(configuration.tokenizer.image_size, by_features=configuration.understanding == "features")
    if trained_for is None:
        return found
    editing = {**found.editing, "guidance": trained_for.guidance}
    return replace(found, generation=trained_for.default(found.generation), editing=editing)


def schedule_of(generation: Mapping[str, Any]) -> Schedule:
    """Return the schedule of a manifest's ``generation``."""
    values = dict(generation)
    if "guidance_interval" in values:
        values["guidance_interval"] = tuple(values["guidance_interval"])
    return Schedule(**values)
