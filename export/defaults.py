"""How a model wants to be used: what ``generate`` does where the caller says nothing, and how a question is written.

An imported checkpoint is used as its own code uses it, until its user says otherwise.

>>> manner_of(SHOW_O).generation["steps"]
16
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from f2edge.spec.configuration import ModelConfiguration

#: What ``generate`` does where the caller says nothing; nano's guidances from 2 to 6 differ by less than a point (docs/nano.md).
GENERATION: Mapping[str, Any] = MappingProxyType(
    {"steps": 12, "guidance": 3.0, "temperature_law": "linear", "temperature": 1.0, "order": "maskgit", "token_temperature": 1.0}
)
#: An edit is told apart from its surroundings by its prompt alone, and follows it more surely under more guidance and with less chance.
_EDITING: Mapping[str, Any] = MappingProxyType({"guidance": 6.0, "temperature": 0.4})
#: Show-o's own sampler (models/modeling_showo.py, ``t2i_generate``): a temperature that compounds, the cosine in single precision.
_SHOW_O_LAWS: Mapping[str, Any] = MappingProxyType({**GENERATION, "temperature_law": "show-o", "mask_law": "show-o"})
#: Smallest side of the pictures from which the published commands take more steps and more guidance.
_LARGE = 512


@dataclass(frozen=True)
class Manner:
    """What a manifest says of a model's use.

    Attributes:
        generation: fields of :class:`f2edge.decoding.schedule.Schedule`.
        editing: those that differ for ``edit``.
        question_template: how a question is written before its answer, as in :class:`f2edge.spec.layout.TokenLayout`.
        describe_question: what ``describe`` asks.
        pictures: a law of :data:`f2edge.imaging.laws.LAWS`.
        long_prompts: as in :class:`f2edge.spec.layout.TokenLayout`.
        project_words: whether the model was trained on this project's words, so that its bundle can say which words it knows.
    """

    generation: Mapping[str, Any] = field(default_factory=lambda: GENERATION)
    editing: Mapping[str, Any] = field(default_factory=dict)
    question_template: str = "{question}\n"
    describe_question: str = "describe the face"
    pictures: str = "f2edge"
    long_prompts: str = "refuse"
    project_words: bool = True


#: What stands before the picture in models that read it by CLIP's features.
SYSTEM_PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


def _show_o(size: int, *, by_features: bool) -> Manner:
    """The published commands: 16 steps with guidance 1.75 at 256 pixels, 50 steps with guidance 5 at 512; greedy answers."""
    steps, guidance = (50, 5.0) if size >= _LARGE else (16, 1.75)
    return Manner(
        generation={**_SHOW_O_LAWS, "steps": steps, "guidance": guidance},
        question_template="USER: {question} ASSISTANT:" if by_features else "USER: \n{question} ASSISTANT:",
        describe_question="Please describe this image in detail.",
        pictures="show-o",
        long_prompts="truncate",
        project_words=False,
    )


def manner_of(configuration: ModelConfiguration) -> Manner:
    """The manner of "show-o", and of "1.8b", which starts from it; any other model has this project's own."""
    if configuration.name in {"show-o", "1.8b"}:
        return _show_o(configuration.tokenizer.image_size, by_features=configuration.understanding == "features")
    return Manner(editing=_EDITING)
