"""Annotated picture: corners around faces, a card with the answers beside each, and a status line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2

from f2edge.camera.answers import Shown
from f2edge.camera.frames import Box, Picture, grown
from f2edge.camera.output.cards import Card, CardRow, Color, draw_card, draw_strip, lay
from f2edge.camera.privacy import blur
from f2edge.camera.reports import FaceNow, Seen
from f2edge.spec.attributes import AttributeSchema, Slot

_COLORS: tuple[Color, ...] = ((45, 212, 191), (251, 191, 36), (167, 139, 250), (251, 113, 133), (56, 189, 248), (163, 230, 53))
_QUIET = (150, 156, 170)
_WHY = {"small": "too small", "cut": "at the edge", "light": "bad light", "blurred": "blurred", "turned": "turned away", "unseen": "lost"}
#: Display order of the groups; other groups follow, those of ``_UNSHOWN`` are not shown.
_GROUPS = ("mood and action", "hair", "worn", "beard", "person", "brows and eyes", "nose and mouth")
_UNSHOWN = ("scene",)
_ALWAYS = frozenset({"hair_color", "eye_color", "head_pose"})
_FEW = 2  # number of faces up to which cards are long
_ROWS, _ROWS_OF_MANY = 5, 4
_STRIP = 44  # units kept free below for the status line
_LEAST = 0.5
_LONGEST_UNSEEN_MS = 200.0  # a face unseen for longer is not drawn


class Overlay:
    """Renderer of reports.

    Args:
        schema: slots that are analyzed.
        blur_others: blur every face without a description.
    """

    def __init__(self, schema: AttributeSchema, *, blur_others: bool = False) -> None:
        order = {group: place for place, group in enumerate(_GROUPS)}
        slots = [slot for slot in schema.values() if slot.group not in _UNSHOWN]
        self._slots = sorted(slots, key=lambda slot: order.get(slot.group, len(order)))
        self._blur_others = blur_others
        self._sides: dict[int, int] = {}
        self._colors: dict[int, int] = {}

    def rows(self, shown: Mapping[str, Shown], most: int = _ROWS) -> tuple[CardRow, ...]:
        """Return the first ``most`` remarkable attributes (likely, and not the default value), one of each group first."""
        worth = [slot for slot in self._slots if slot.name in shown and _remarkable(slot, shown[slot.name])]
        before = [sum(other.group == slot.group for other in worth[:place]) for place, slot in enumerate(worth)]
        first = [slot for _, slot in sorted(zip(before, worth, strict=True), key=lambda entry: entry[0])]
        return tuple(_row(slot, shown[slot.name]) for slot in first[:most])

    def draw(self, seen: Seen, status: Sequence[tuple[str, bool]]) -> Picture:
        """Return an annotated copy of the frame."""
        image: Picture = seen.frame.image.copy()
        height, width = image.shape[:2]
        scale = max(0.5, round(4 * min(height / 540, width / 720)) / 4)
        if self._blur_others:
            blur(image, [face.box for face in seen.faces if not face.described])
        shown = [face for face in seen.faces if face.gate != "new" and face.unseen_ms <= _LONGEST_UNSEEN_MS]
        self._dye(shown)
        for face in shown:
            _corners(image, face, scale, self._color(face))
        taken = [face.box for face in shown]
        for face in shown:
            if face.described:
                self._card(image, face, scale, taken, few=len(shown) <= _FEW)
            else:
                text = _WHY.get(face.gate, "looking ...")
                lay(
                    image,
                    draw_strip(((f"#{face.number}", True), (text, False)), scale),
                    round(face.box[0]),
                    round(face.box[1] - 28 * scale),
                )
        self._sides = {face.number: self._sides[face.number] for face in shown if face.number in self._sides}
        strip = draw_strip(tuple(status), scale)
        lay(image, strip, round(12 * scale), height - strip.shape[0] - round(12 * scale))
        return image

    def _dye(self, faces: Sequence[FaceNow]) -> None:
        """Assign each face a color that no other visible face has, as far as possible, and keep it."""
        self._colors = {face.number: self._colors[face.number] for face in faces if face.number in self._colors}
        for face in faces:
            if face.number not in self._colors:
                wanted = [(face.number - 1 + step) % len(_COLORS) for step in range(len(_COLORS))]
                self._colors[face.number] = next((i for i in wanted if i not in self._colors.values()), wanted[0])

    def _color(self, face: FaceNow) -> Color:
        return _COLORS[self._colors[face.number]]

    def _card(self, image: Picture, face: FaceNow, scale: float, taken: list[Box], *, few: bool) -> None:
        age = "" if face.answer_age_ms is None else f"{max(1, round(face.answer_age_ms / 100)) / 10:.1f} s old"
        if face.unfamiliar is not None and face.unfamiliar > 0.5:
            age = "no known face"
        words = tuple((question, text) for question, text, _ in face.words)
        card = Card(f"#{face.number}", age, self.rows(face.shown, _ROWS if few else _ROWS_OF_MANY), words, self._color(face), scale)
        panel = draw_card(card)
        places = _places(face.box, (panel.shape[1], panel.shape[0]), (image.shape[1], image.shape[0] - round(_STRIP * scale)))
        before = self._sides.get(face.number, 0)
        costs = [_shared(place, taken) + 150 * scale * i - 2000 * scale * (i == before) for i, place in enumerate(places)]
        best = min(range(len(places)), key=costs.__getitem__)
        self._sides[face.number] = best
        x, y, _, _ = places[best]
        taken.append(places[best])
        lay(image, panel, round(x), round(y))


def _row(slot: Slot, shown: Shown) -> CardRow:
    return CardRow(slot.name.replace("_", " "), shown.value.replace("_", " "), round(50 * shown.probability))


def _remarkable(slot: Slot, shown: Shown) -> bool:
    return shown.probability >= _LEAST and (slot.name in _ALWAYS or shown.value != slot.values[0])


def _corners(image: Picture, face: FaceNow, scale: float, dye: Color) -> None:
    """Draw the four corners of a box, with a dark outline for contrast."""
    left, top, right, bottom = grown(face.box, 0.0, (image.shape[1], image.shape[0]))
    arm = max(6, round(0.18 * min(right - left, bottom - top)))
    color = dye if face.described else _QUIET
    for ink, thick in (((24, 20, 16), round(4 * scale) + 1), (color[::-1], max(2, round(2.2 * scale)))):
        for x, dx in ((left, arm), (right, -arm)):
            for y, dy in ((top, arm), (bottom, -arm)):
                cv2.line(image, (x, y), (x + dx, y), ink, thick, cv2.LINE_AA)
                cv2.line(image, (x, y), (x, y + dy), ink, thick, cv2.LINE_AA)


def _places(box: Box, size_wh: tuple[int, int], room_wh: tuple[int, int]) -> list[Box]:
    """Return possible places of a card, best first: below, right, left, above; moved into the frame."""
    (x, y, w, h), (width, height) = box, size_wh
    gap = 10.0
    wanted = ((x + w / 2 - width / 2, y + h + gap), (x + w + gap, y), (x - width - gap, y), (x + w / 2 - width / 2, y - height - gap))
    places = []
    for left, top in wanted:
        inside = (min(max(left, 4.0), max(4.0, room_wh[0] - width - 4.0)), min(max(top, 4.0), max(4.0, room_wh[1] - height - 4.0)))
        places.append((*inside, float(width), float(height)))
    return places


def _shared(place: Box, boxes: Sequence[Box]) -> float:
    """Return the area in pixels that a place shares with boxes."""
    total = 0.0
    for x, y, w, h in boxes:
        across = min(place[0] + place[2], x + w) - max(place[0], x)
        down = min(place[1] + place[3], y + h) - max(place[1], y)
        total += max(0.0, across) * max(0.0, down)
    return total
