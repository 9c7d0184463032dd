"""The policy on sensitive traits (age, gender presentation, skin tone, build, emotion), the same for library, command line, gRPC, HTTP and camera.

Faces that a model knows as *drawn* are described in full.  Of *photographed* ones, and of anything from a camera, sensitive attributes,
questions and captions are answered only with ``include_sensitive``, which the answer then records.  The bundle's manifest says which faces
it knows (``faces``); one that does not say counts as photographed.

>>> SensitivePolicy(protected=True).check_question("how old does the person look?")
Traceback (most recent call last):
f2edge.errors.SensitiveError: 'how old does the person look?' asks about a sensitive trait (old); reword it, or ask with include_sensitive (--include-sensitive)
"""  # noqa: E501

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from f2edge.errors import SensitiveError
from f2edge.spec.attributes import AttributeSchema

DRAWN, PHOTOGRAPHED = FACES = ("drawn", "photographed")
_CURE = "ask with include_sensitive (--include-sensitive)"
_WORDS = frozenset(
    """
    age aged old older young younger elderly child adult teenager gender sex male female man men woman women boy girl lady masculine
    feminine race racial ethnicity ethnic skin complexion fat slim chubby overweight weight build emotion emotional feeling feel
    feels mood happy sad angry afraid scared surprised disgusted contemptuous religion religious sick ill disabled attractive beautiful ugly
    """.split()  # noqa: SIM905  sixty words are easier to read than sixty strings
)
_CAPTION = re.compile(r"\b(describe|description|caption)\b")


@dataclass(frozen=True)
class SensitivePolicy:
    """What one request may learn about a face.

    Attributes:
        protected: the face is photographed, or comes from a camera.
        include: the caller asked for sensitive traits.
    """

    protected: bool
    include: bool = False

    @classmethod
    def of(cls, faces: str, *, include: bool, camera: bool = False) -> SensitivePolicy:
        """Return the policy of a request to a model whose faces are :data:`DRAWN` or anything else."""
        return cls(camera or faces != DRAWN, include)

    @property
    def open(self) -> bool:
        """Whether everything is answered."""
        return self.include or not self.protected

    def attributes(self, schema: AttributeSchema, names: Iterable[str] | None) -> tuple[str, ...]:
        """Return the slots to report: those named, or for None all that are permitted.

        Raises:
            UnknownAttributeError: a name is not in the schema.
            SensitiveError: a sensitive slot is named and not permitted.
        """
        if names is None:
            return tuple(slot.name for slot in schema.values() if self.open or not slot.sensitive)
        chosen = schema.select(names)
        refused = [slot.name for slot in chosen.values() if slot.sensitive and not self.open]
        if refused:
            raise SensitiveError(f"sensitive: {', '.join(refused)}; leave them out, or {_CURE}")
        return tuple(chosen)

    def check_question(self, question: str) -> None:
        """Refuse a question about a sensitive trait, or one for a caption; both are recognised by key words, so not always.

        Raises:
            SensitiveError: the question has such a word and is not permitted.
        """
        if self.open:
            return
        found = sorted(_WORDS & set(re.findall(r"[a-z]+", question.lower())))
        if found:
            raise SensitiveError(f"{question[:100]!r} asks about a sensitive trait ({', '.join(found)}); reword it, or {_CURE}")
        if _CAPTION.search(question.lower()):
            self.check_caption()

    def check_caption(self) -> None:
        """Refuse a caption, which names sensitive traits freely; raises :class:`~f2edge.errors.SensitiveError`."""
        if not self.open:
            raise SensitiveError(f"a description of a photographed face names age, gender presentation and others; {_CURE}")
