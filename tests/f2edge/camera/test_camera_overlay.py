"""The picture with everything on it: what is known is drawn, nobody undescribed is shown when that is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from f2edge.camera.answers import Shown
from f2edge.camera.frames import Box, Frame, Picture
from f2edge.camera.output.cards import Card, CardRow, draw_card, draw_strip, lay
from f2edge.camera.output.overlay import Overlay, _places, _shared
from f2edge.camera.reports import FaceNow, Seen
from f2edge.spec.attributes import F2EDGE_SCHEMA

pytestmark = pytest.mark.runtime

STATUS = [("f2edge", True), ("demo", False)]


def frame(width: int = 960, height: int = 540) -> Frame:
    checkers = (np.indices((height, width)).sum(0) % 2 * 255).astype(np.uint8)
    return Frame(np.ascontiguousarray(np.dstack([checkers] * 3)), 0, 0.0)


def face(  # noqa: PLR0917  a face has many sides
    number: int = 1,
    box: Box = (100.0, 60.0, 160.0, 160.0),
    shown: Mapping[str, Shown] | None = None,
    gate: str = "",
    unseen_ms: float = 0.0,
    words: tuple[tuple[str, str, float], ...] = (),
) -> FaceNow:
    return FaceNow(number, box, 1.0, unseen_ms, 1.0, gate, shown or {}, 120.0 if shown else None, words)


def draw(faces: Sequence[FaceNow], base: Frame | None = None, **options: bool) -> tuple[Picture, Picture]:
    base = base or frame()
    return base.image, Overlay(F2EDGE_SCHEMA, **options).draw(Seen(base, tuple(faces), 10.0, 0), STATUS)


RED = {"hair_color": Shown("red", 0.9), "hat": Shown("cap", 0.8), "eyewear": Shown("none", 0.99), "beard": Shown("full", 0.3)}


def test_only_likely_and_remarkable_values_are_written() -> None:
    overlay = Overlay(F2EDGE_SCHEMA)
    assert [(row.label, row.value, row.fiftieths) for row in overlay.rows(RED)] == [("hair color", "red", 45), ("hat", "cap", 40)]
    assert len(overlay.rows(RED, 1)) == 1


def test_a_little_of_everything_comes_before_more_of_the_same() -> None:
    shown = {name: Shown(value, 0.9) for name, value in (("hair_color", "red"), ("hair_length", "long"), ("hat", "cap"), ("beard", "full"))}
    assert [row.label for row in Overlay(F2EDGE_SCHEMA).rows(shown, 4)] == ["hair color", "hat", "beard", "hair length"]


def test_faces_in_view_have_colors_of_their_own_and_keep_them() -> None:
    overlay = Overlay(F2EDGE_SCHEMA)
    first = [face(1, shown=RED), face(7, (400, 60, 160, 160), shown=RED)]
    overlay.draw(Seen(frame(), tuple(first), 10.0, 0), STATUS)
    before = dict(overlay._colors)
    assert len(set(before.values())) == 2
    overlay.draw(Seen(frame(), (*first[::-1], face(2, (700, 60, 160, 160), shown=RED)), 10.0, 0), STATUS)
    assert {number: overlay._colors[number] for number in before} == before
    assert len(set(overlay._colors.values())) == 3


def test_a_long_label_gives_way_to_its_value() -> None:
    def card(label: str) -> Card:
        return Card("#1", "", (CardRow(label, "masculine", 50),), (), (255, 200, 0), 1.0)

    plain, long = draw_card(card("")), draw_card(card("gender presentation of somebody"))
    assert (plain[31:46, 110:] == long[31:46, 110:]).all()
    assert (plain != long).any()


def test_the_frame_given_stays_as_it_is_and_the_card_stands_below_the_face() -> None:
    before, after = draw([face(shown=RED)])
    assert (before == frame().image).all()
    changed = (before != after).any(2)
    assert changed[240:330, 110:250].mean() > 0.4
    assert changed[90:180, 130:230].mean() == 0


def test_faces_without_answers_are_blurred_when_asked_and_others_never() -> None:
    unknown, known = face(1, (100, 60, 160, 160)), face(2, (500, 60, 160, 160), shown=RED)
    _, after = draw([unknown, known], blur_others=True)
    roughness = [np.abs(np.diff(after[100:180, x : x + 80].astype(int), axis=1)).mean() for x in (140, 540)]
    assert roughness[0] < 10 < roughness[1]
    _, plain = draw([unknown, known])
    assert np.abs(np.diff(plain[100:180, 140:220].astype(int), axis=1)).mean() > 100


def test_new_faces_are_not_boxed_but_blurred_all_the_same() -> None:
    before, after = draw([face(gate="new")])
    assert (before[40:240, 80:280] == after[40:240, 80:280]).all()
    _, hidden = draw([face(gate="new")], blur_others=True)
    assert np.abs(np.diff(hidden[100:180, 140:220].astype(int), axis=1)).mean() < 10


@pytest.mark.parametrize(
    "box", [(-80.0, -60.0, 160.0, 160.0), (900.0, 500.0, 160.0, 160.0), (2000.0, 0.0, 10.0, 10.0), (0.0, 0.0, 960.0, 540.0)]
)
@pytest.mark.parametrize("size", [(960, 540), (64, 48), (17, 400)])
def test_nothing_at_the_edge_or_on_a_tiny_frame_fails(box: Box, size: tuple[int, int]) -> None:
    words = (("what is this?", "a very long answer " * 20, 10.0),)
    _, after = draw([face(box=box, shown=RED, words=words), face(2, box, gate="small")], frame(*size), blur_others=True)
    assert after.shape == (size[1], size[0], 3)


def test_cards_are_drawn_once_and_bars_grow_with_probability() -> None:
    def card(fiftieths: int) -> Card:
        return Card("#1", "0.1 s old", (CardRow("hair color", "red", fiftieths),), (), (255, 200, 0), 1.0)

    assert draw_card(card(20)) is draw_card(card(20))
    filled = [int((draw_card(card(n))[..., 2] > 200).sum()) for n in (5, 25, 50)]
    assert filled == sorted(set(filled))


def test_a_panel_laid_across_the_edge_changes_only_what_it_covers() -> None:
    image = np.full((50, 60, 3), 200, np.uint8)
    panel = draw_strip((("x", True),), 1.0)
    lay(image, panel, -5, 40)
    lay(image, panel, 500, 500)
    assert (image[:40] == 200).all()
    assert (image[42:48, :5] != 200).any()


def test_places_lie_in_the_room_and_the_first_is_below() -> None:
    places = _places((100, 60, 160, 160), (174, 112), (960, 496))
    assert places[0][:2] == (93, 230)
    for x, y, w, h in _places((900, 450, 160, 160), (174, 112), (960, 496)):
        assert 0 <= x <= 960 - w
        assert 0 <= y <= 496 - h
    assert _shared((0, 0, 10, 10), [(5, 5, 10, 10), (20, 20, 5, 5)]) == 25
