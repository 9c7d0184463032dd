"""Pictures that a client sends: as the served model would see them itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from f2edge.client.messages import as_seen
from f2edge.imaging.images import load_image
from f2edge.imaging.laws import LAWS
from f2edge.v1 import face_pb2 as pb
from f2edge.wire import model_message, model_of
from tests.support.serving import FACTS, photo

pytestmark = pytest.mark.runtime


def test_pictures_are_resized_as_the_served_model_resizes_them() -> None:
    """A law that resizes before it crops gives other pixels; what the server resizes again must not change."""
    wide = load_image(photo((90, 60)))
    for name, law in LAWS.items():
        facts = model_of(model_message(replace(FACTS, pictures=name, reading_side=48), pb.RequestLimits()))
        sent = {side: load_image(as_seen(wide, facts, side)) for side in (None, facts.image_side)}
        assert [picture.size for picture in sent.values()] == [(48, 48), (32, 32)]
        for picture in sent.values():
            assert np.array_equal(law.pixels(picture, picture.width), law.pixels(wide, picture.width))
    assert model_of(pb.GetModelResponse(image_side=32, pictures="another")).pictures == "f2edge", "as servers before this field"
    older = model_of(pb.GetModelResponse(image_side=24))
    assert load_image(as_seen(wide, older)).size == (24, 24)
