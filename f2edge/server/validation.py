"""From messages that anybody may have written to requests that the engine takes: every field has a rule, every breach names both.

What is cheap is checked before a picture is opened.  These functions run in the picture pool, except that of a ``Generate`` without one.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from PIL import Image

from f2edge.decoding.repair import MOST_ROUNDS
from f2edge.decoding.schedule import Schedule
from f2edge.engine.requests import AnalyzeRequest, AskRequest, DescribeRequest, EditRequest, GenerateRequest, Priority
from f2edge.errors import ImageError, InputError
from f2edge.imaging.guard import ImageLimits
from f2edge.imaging.images import crop_face, load_image
from f2edge.imaging.region_map import STRENGTH, checked_strength
from f2edge.imaging.regions import Region
from f2edge.results import GenerateOptions
from f2edge.server.engine_protocol import Served
from f2edge.server.status import bad_field
from f2edge.spec.attributes import AttributeSchema
from f2edge.spec.sensitive import SensitivePolicy
from f2edge.text import check_text
from f2edge.v1 import face_pb2 as pb
from f2edge.wire import IMAGE_KINDS, PRIORITIES, ModelFacts, cells_of, options_fields

#: A seed that the server draws can be written as a JSON number.
_DRAWN_SEEDS = 1 << 53
_DEFAULT_TOKENS = {"ask": 64, "describe": 128}
_LARGEST_TOKENS = 1024
_LARGEST_STEPS = 1024
_PICTURE_SIDES = (16, 1024)
_LONGEST_NAME = 64
_LONGEST_REGION = 200
_MOST_ATTRIBUTES = 256
MOST_FACES = 8


def generate_request(message: pb.GenerateRequest, limits: ImageLimits) -> GenerateRequest:
    """The engine's form of ``Generate``; raises :class:`~f2edge.server.status.RefusedError` or :class:`PromptError`."""
    return GenerateRequest(
        prompt=check_text(message.prompt, "prompt"),
        seed=_seed(message),
        options=_options(message.options),
        preview_every=_within(message.previews.every_steps, 0, _LARGEST_STEPS, "previews.every_steps"),
        preview_images=_pictures(message.previews),
        min_steps=_min_steps(message),
        check=_within(message.check, 0, MOST_ROUNDS, "check"),
        layout_strength=_strength(message),
        layout=_picture(message.layout, "layout", limits) if message.HasField("layout") else None,
        layout_from=_picture(message.layout_from, "layout_from", limits) if message.HasField("layout_from") else None,
    )


def edit_request(message: pb.EditRequest, served: Served, limits: ImageLimits) -> EditRequest:
    """The engine's form of ``Edit``; raises a RefusedError, :class:`PromptError` or :class:`ImageError`."""
    prompt = check_text(message.prompt, "prompt")
    options, min_steps, seed = _options(message.options), _min_steps(message), _seed(message)
    check = _within(message.check, 0, MOST_ROUNDS, "check")
    every = _within(message.previews.every_steps, 0, _LARGEST_STEPS, "previews.every_steps")
    pictures = _pictures(message.previews)
    region = _region(message, served, limits)
    return EditRequest(
        image=load_image(message.image, limits=limits),
        prompt=prompt,
        region=region,
        seed=seed,
        options=options,
        keep_outside=not message.redraw_outside,
        preview_every=every,
        preview_images=pictures,
        min_steps=min_steps,
        check=check,
    )


def ask_request(message: pb.AskRequest, faces: str, limits: ImageLimits) -> AskRequest:
    """The engine's form of ``Ask``; raises a RefusedError, :class:`PromptError`, :class:`SensitiveError` or :class:`ImageError`."""
    question, max_tokens = check_text(message.question, "question"), _max_tokens(message.max_tokens, "ask")
    SensitivePolicy.of(faces, include=message.include_sensitive).check_question(question)
    return AskRequest(load_image(message.image, limits=limits), question, max_tokens)


def describe_request(message: pb.DescribeRequest, faces: str, limits: ImageLimits) -> DescribeRequest:
    """The engine's form of ``Describe``; raises a RefusedError, :class:`SensitiveError` or :class:`ImageError`."""
    SensitivePolicy.of(faces, include=message.include_sensitive).check_caption()
    max_tokens = _max_tokens(message.max_tokens, "describe")
    return DescribeRequest(load_image(message.image, limits=limits), max_tokens)


def analyze_request(message: pb.AnalyzeRequest, facts: ModelFacts, limits: ImageLimits) -> AnalyzeRequest:
    """The engine's form of ``Analyze``; raises a RefusedError, an :class:`InputError` for its attributes or :class:`ImageError`."""
    names = attributes(message.attributes, SensitivePolicy.of(facts.faces, include=message.include_sensitive), facts.schema)
    return AnalyzeRequest((load_image(message.image, limits=limits),), names)


def frame_request(message: pb.AnalyzeStreamRequest, names: tuple[str, ...], served: Served, limits: ImageLimits) -> AnalyzeRequest:
    """The engine's form of one frame: the faces cut out of it as the model was trained, or the whole of it."""
    if len(message.faces) > MOST_FACES:
        raise bad_field("faces", f"{len(message.faces)} faces in one frame; send {MOST_FACES} at most")
    picture = load_image(message.image, limits=limits)
    if not message.faces:
        return AnalyzeRequest((picture,), names)
    return AnalyzeRequest(tuple(_face(picture, box, served) for box in message.faces), names)


def attributes(names: Sequence[str], policy: SensitivePolicy, schema: AttributeSchema) -> tuple[str, ...]:
    """The slots to report: those named, or all that the policy permits."""
    if len(names) > _MOST_ATTRIBUTES or any(len(name) > _LONGEST_NAME for name in names):
        raise bad_field("attributes", f"name {_MOST_ATTRIBUTES} attributes at most, of {_LONGEST_NAME} characters at most")
    return policy.attributes(schema, names or None)


def priority(value: pb.Priority, *, image: bool) -> Priority | None:
    """Return the priority of a request; pictures are never live."""
    if value == pb.PRIORITY_UNSPECIFIED:
        return None
    if value not in PRIORITIES:
        raise bad_field("priority", f"unknown priority {value}; choose live, normal or background")
    if image and value == pb.PRIORITY_LIVE:
        raise bad_field("priority", "pictures are never live; choose normal or background")
    return PRIORITIES[value]


def check_output(output: pb.OutputOptions) -> None:
    """What a caller wants as a file."""
    if output.format not in IMAGE_KINDS:
        raise bad_field("output.format", f"unknown format {output.format}; choose PNG, JPEG or WebP")
    _side(output.side, "output.side")
    _within(output.quality, 0, 100, "output.quality")


def _options(message: pb.DecodingOptions) -> GenerateOptions:
    if message.HasField("guidance_low") != message.HasField("guidance_high"):
        raise bad_field("options.guidance_low", "guidance_low and guidance_high go together; set both or neither")
    values = options_fields(message)
    for name, value in values.items():
        field = "options.guidance_low" if name == "guidance_interval" else f"options.{name}"
        if isinstance(value, str) and len(value) > _LONGEST_NAME:
            raise bad_field(field, f"has {len(value)} characters; no choice is longer than {_LONGEST_NAME}")
        try:
            GenerateOptions(**{name: value}).resolve(Schedule())
        except InputError as error:
            raise bad_field(field, str(error)) from None
    return GenerateOptions(**values)


def _seed(message: pb.GenerateRequest | pb.EditRequest) -> int:
    return int(message.seed) if message.HasField("seed") else secrets.randbelow(_DRAWN_SEEDS)


def _min_steps(message: pb.GenerateRequest | pb.EditRequest) -> int | None:
    return _within(message.min_steps, 1, _LARGEST_STEPS, "min_steps") if message.HasField("min_steps") else None


def _pictures(previews: pb.PreviewOptions) -> bool:
    return _side(previews.picture_side, "previews.picture_side") > 0


def _side(value: int, field: str) -> int:
    lowest, highest = _PICTURE_SIDES
    return 0 if value == 0 else _within(value, lowest, highest, field)


def _max_tokens(value: int, verb: str) -> int:
    return _within(value, 0, _LARGEST_TOKENS, "max_tokens") or _DEFAULT_TOKENS[verb]


def _within(value: int, lowest: int, highest: int, field: str) -> int:
    if not lowest <= value <= highest:
        raise bad_field(field, f"{field} is {value}; it must lie in {lowest} … {highest}")
    return int(value)


def _strength(message: pb.GenerateRequest) -> float:
    if not message.HasField("layout_strength"):
        return STRENGTH
    try:
        return checked_strength(message.layout_strength)
    except InputError as error:
        raise bad_field("layout_strength", str(error)) from None


def _picture(data: bytes, field: str, limits: ImageLimits) -> Image.Image:
    try:
        return load_image(data, limits=limits)
    except ImageError as error:
        raise bad_field(field, str(error), "IMAGE") from None


def _region(message: pb.EditRequest, served: Served, limits: ImageLimits) -> Region:
    kind = message.WhichOneof("region")
    if kind is None:
        raise bad_field("region", "no region; set name, box, mask or cells")
    if kind == "name":
        if len(message.name) > _LONGEST_REGION:
            raise bad_field("name", f"the region's name has {len(message.name)} characters; {_LONGEST_REGION} at most")
        return str(message.name)
    if kind == "box":
        return (message.box.x, message.box.y, message.box.width, message.box.height)
    if kind == "mask":
        return _picture(message.mask, "mask", limits).convert("L")
    grid = served.facts.grid
    if len(message.cells.inside) != grid * grid or True not in message.cells.inside:
        raise bad_field("cells", f"give {grid} x {grid} cells, one of them true at least; got {len(message.cells.inside)}")
    return cells_of(message.cells, grid)


def _face(picture: Image.Image, box: pb.Box, served: Served) -> Image.Image:
    x, y, width, height = box.x, box.y, box.width, box.height
    if all(0 <= value <= 1 for value in (x, y, width, height)):
        x, y, width, height = x * picture.width, y * picture.height, width * picture.width, height * picture.height
    inside = 0 <= x <= picture.width and 0 <= y <= picture.height and x + width <= picture.width + 1 and y + height <= picture.height + 1
    if not (inside and width >= 1 and height >= 1):
        raise bad_field("faces", f"a face's box must lie in the picture ({picture.width} x {picture.height}) and have a pixel at least")
    return crop_face(picture, (x, y, width, height), served.margins, served.facts.image_side)
