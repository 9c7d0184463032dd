"""Pictures that a model drew, as files and in notebooks: always with their label, as the command line and the server write them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from f2edge.provenance.label import Label
from f2edge.provenance.label import label as new_label
from f2edge.provenance.saving import encode, save_image

if TYPE_CHECKING:
    from f2edge.provenance.c2pa import Signer


class LabelledPicture:
    """Base of results that hold a drawn picture."""

    image: Image.Image
    prompt: str
    seed: int
    bundle: str
    _edited = False

    @property
    def label(self) -> Label:
        """The label that files of the picture carry."""
        return new_label(prompt=self.prompt, seed=self.seed, bundle=self.bundle, edited=self._edited)

    def save(self, path: str | os.PathLike[str], *, signer: Signer | None = None) -> Path:
        """Write the picture with its label and marks, and return its path.

        Args:
            path: file name ending in .png, .jpg, .jpeg or .webp.
            signer: signs the label as content credentials.

        Raises:
            OutputError: unknown suffix, or the file cannot be written.
        """
        return save_image(self.image, path, self.label, signer)

    def _repr_png_(self) -> bytes:
        return encode(self.image, "PNG", self.label)
