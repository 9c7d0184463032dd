"""``/v1/images/generations`` and ``/v1/images/edits`` as OpenAI's clients call them.

Beside OpenAI's fields: ``seed`` (the next picture has the next seed), ``options`` and ``check`` as of ``/v1/generate`` and, for edits,
``region``, a name of ``/v1/model``.  Fields that mean nothing here (``quality``, ``style``, ``user`` …) are ignored.
"""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from PIL import Image

from f2edge.http.bodies import Body, filled, picture_bytes
from f2edge.http.calls import Reply, Work
from f2edge.http.exchange import Exchange
from f2edge.http.rest import event_of
from f2edge.imaging.guard import ImageLimits, decode
from f2edge.server.status import bad_field
from f2edge.v1 import face_pb2 as pb
from f2edge.wire import ModelFacts

_MOST_PICTURES, _MOST_PARTIALS = 10, 3
_FORMATS: Mapping[str, pb.ImageFormat] = MappingProxyType(
    {"png": pb.IMAGE_FORMAT_PNG, "jpeg": pb.IMAGE_FORMAT_JPEG, "webp": pb.IMAGE_FORMAT_WEBP}
)
_OPAQUE = 128
#: A mask is only looked at by cells of the grid, so a large one is made smaller before it goes on.
_MASK_SIDE = 512


def generation_work(facts: ModelFacts, body: Body, exchange: Exchange) -> Work:
    """Return the calls of ``/v1/images/generations``."""
    order = _Order.of(body, facts)
    message = filled(pb.GenerateRequest, {"prompt": _text(body, "prompt"), **_decoding(body)})
    return Work("Generate", order.messages(message, facts.generation.steps), order.reply(exchange, "image_generation"))


def edit_work(limits: ImageLimits, facts: ModelFacts, body: Body, exchange: Exchange) -> Work:
    """Return the calls of ``/v1/images/edits``; decodes a mask, so not for the event loop."""
    order = _Order.of(body, facts)
    picture, mask, name = _file(body, "image"), _file(body, "mask"), body.text("region")
    message = filled(pb.EditRequest, {"prompt": _text(body, "prompt"), **_decoding(body), **({} if name is None else {"name": name})})
    if picture is None:
        raise bad_field("image", "no picture; send one as the file image", "IMAGE")
    message.image = picture
    if mask is not None and name is not None:
        raise bad_field("region", "mask and region exclude each other; send one of them")
    if mask is not None:
        message.mask = _white_inside(mask, limits)
    elif name is None:
        message.box.width = message.box.height = 1.0
    return Work("Edit", order.messages(message, facts.editing.steps), order.reply(exchange, "image_edit"))


@dataclass(frozen=True)
class _Order:
    """What is wanted of the pictures."""

    count: int
    side: int
    kind: str
    compression: int
    as_url: bool
    partials: int
    stream: bool

    @classmethod
    def of(cls, body: Body, facts: ModelFacts) -> _Order:
        check_model(body, facts)
        kind, wanted = str(body.text("output_format") or "png"), body.text("response_format") or "b64_json"
        stream = _truth(body, "stream")
        if kind not in _FORMATS:
            raise bad_field("output_format", "choose png, jpeg or webp")
        if wanted not in ("b64_json", "url"):
            raise bad_field("response_format", "choose b64_json or url (a data URI)")
        count = number(body, "n", 1, 1, _MOST_PICTURES)
        if stream and count > 1:
            raise bad_field("n", "a stream has one picture; set n to 1 or stream to false")
        partials = number(body, "partial_images", 0, 0, _MOST_PARTIALS)
        compression = number(body, "output_compression", 0, 0, 100)
        return cls(count, _side(body.text("size"), facts), kind, compression, wanted == "url", partials, stream)

    def messages(self, first: Any, default_steps: int) -> list[Any]:
        """Return a message for each picture."""
        first.output.format, first.output.side, first.output.quality = _FORMATS[self.kind], self.side, self.compression
        if self.stream and self.partials:
            steps = first.options.steps if first.options.HasField("steps") else default_steps
            first.previews.every_steps, first.previews.picture_side = max(1, steps // (self.partials + 1)), self.side
        messages = [first]
        for index in range(1, self.count):
            message = type(first)()
            message.CopyFrom(first)
            if message.HasField("seed"):
                message.seed = (first.seed + index) % (1 << 64)
            messages.append(message)
        return messages

    def reply(self, exchange: Exchange, events: str) -> Reply:
        return _StreamReply(exchange, self, events) if self.stream else _WholeReply(exchange, self)

    def described(self, picture: pb.Picture) -> dict[str, Any]:
        return {"background": "opaque", "output_format": self.kind, "quality": "auto", "size": f"{picture.width}x{picture.height}"}


@dataclass
class _WholeReply:
    exchange: Exchange
    order: _Order
    results: dict[int, Any] = field(default_factory=dict)

    async def on_message(self, index: int, message: Any) -> None:
        name, value = event_of(message)
        if name == "result":
            self.results[index] = value

    async def finish(self) -> None:
        results = [self.results[index] for index in sorted(self.results)]
        data = [{**self._content(result.picture.image), "seed": str(result.decoding.seed)} for result in results]
        await self.exchange.document({"created": int(time.time()), "data": data, **self.order.described(results[0].picture)})

    def _content(self, image: bytes) -> dict[str, str]:
        text = base64.b64encode(image).decode()
        return {"url": f"data:image/{self.order.kind};base64,{text}"} if self.order.as_url else {"b64_json": text}


@dataclass
class _StreamReply:
    exchange: Exchange
    order: _Order
    events: str
    sent: int = 0

    async def on_message(self, _index: int, message: Any) -> None:
        name, value = event_of(message)
        if name == "result":
            more = self.order.described(value.picture)
            await self._event("completed", value.picture.image, {**more, "seed": str(value.decoding.seed)})
        elif value.picture and self.sent < self.order.partials:
            side = f"{self.order.side}x{self.order.side}"
            more = {"background": "opaque", "output_format": "jpeg", "quality": "auto", "size": side, "partial_image_index": self.sent}
            self.sent += 1
            await self._event("partial_image", value.picture, more)

    async def finish(self) -> None:
        await self.exchange.end()

    async def _event(self, name: str, image: bytes, more: Mapping[str, Any]) -> None:
        kind = f"{self.events}.{name}"
        content = {"type": kind, "b64_json": base64.b64encode(image).decode(), "created_at": int(time.time()), **more}
        await self.exchange.event(content, kind)


def check_model(body: Body, facts: ModelFacts) -> None:
    """Refuse another model than the one that is served."""
    model = body.text("model")
    if model not in (None, "", facts.name):
        raise bad_field("model", f"there is no such model here; this server has {facts.name}", "MODEL_NAME")


def number(body: Body, name: str, default: int, lowest: int, highest: int) -> int:
    """Return a whole number of a body, which a form has as text."""
    value = body.text(name)
    if value is None:
        return default
    if body.is_form and value.isascii() and value.isdigit() and len(value) < 10:
        value = int(value)
    if type(value) is not int or not lowest <= value <= highest:
        raise bad_field(name, f"{name} must be a whole number in {lowest} … {highest}")
    return value


def _truth(body: Body, name: str) -> bool:
    value = body.text(name)
    if value not in (None, True, False, "true", "false"):
        raise bad_field(name, f"{name} must be true or false")
    return value in (True, "true")


def _text(body: Body, name: str) -> Any:
    value = body.text(name)
    return "" if value is None else value


def _side(size: Any, facts: ModelFacts) -> int:
    if size in (None, "", "auto"):
        return facts.image_side
    width, times, height = str(size)[:20].partition("x")
    if not (times and width == height and width.isascii() and width.isdigit() and len(width) < 6):
        raise bad_field("size", 'size must be a square such as "256x256", or "auto"')
    return int(width)


def _decoding(body: Body) -> dict[str, Any]:
    """Return ``seed``, ``options`` and ``check``, which OpenAI's interface does not have."""
    options, seed, check = body.text("options"), body.text("seed"), body.text("check")
    if body.is_form and options is not None:
        try:
            options = json.loads(options)
        except (ValueError, RecursionError):
            raise bad_field("options", 'options must be a JSON object such as {"steps": 8}') from None
    return {name: value for name, value in (("seed", seed), ("options", options), ("check", check)) if value is not None}


def _file(body: Body, name: str) -> bytes | None:
    """Return a file of a form, or a picture in JSON; OpenAI's clients send a list of one as ``image[]``."""
    found = [*body.files.get(name, ()), *body.files.get(f"{name}[]", ())]
    if not found and not body.is_form and body.values.get(name) is not None:
        found = [picture_bytes(body.values[name], name)]
    if len(found) > 1:
        raise bad_field(name, f"{len(found)} pictures; this model edits one, so send one", "IMAGE")
    return found[0] if found else None


def _white_inside(data: bytes, limits: ImageLimits) -> bytes:
    """Return a mask as the contract has it: OpenAI's are transparent where the picture is to be drawn anew."""
    picture = decode(data, name="the mask", limits=limits)
    if "A" not in picture.getbands() and "transparency" not in picture.info:
        return data
    alpha = picture.convert("RGBA").getchannel("A")
    if max(alpha.size) > _MASK_SIDE:
        factor = _MASK_SIDE / max(alpha.size)
        alpha = alpha.resize([max(limits.smallest_side, round(side * factor)) for side in alpha.size], Image.Resampling.BOX)
    buffer = io.BytesIO()
    alpha.point(_inside).save(buffer, "PNG")
    return buffer.getvalue()


def _inside(alpha: int) -> int:
    return 0 if alpha >= _OPAQUE else 255
