"""Parser of a bundle's untrusted ``manifest.json``.

Keys of the document; those up to ``files`` are required, except ``editing``::

    checksum        SHA-256 of the file, with zeros in this place (f2edge.bundle.seal)
    format_version  1
    name            identifier of the model
    model           ModelConfiguration.to_json()
    layout          TokenLayout.to_json()
    attributes      AttributeSchema.to_json()
    generation      fields of f2edge.decoding.schedule.Schedule: steps, guidance, order, temperature, temperature_law …
    editing         optional: those of them that differ for ``edit``
    presets         optional: "fast", "balanced", "best" → those of them that differ, and ``measured``, figures by name
    trained_for     optional: the schedules of a distilled student, see f2edge.bundle.trained_for
    graphs          name → {file, inputs: [{name, dtype, shape}], outputs: […], precision}; optional: recipe.
                    A shape lists sizes and names of dynamic axes.
    files           path inside the folder → {sha256, bytes}; ``f2edge.bundle.bundle.write_manifest`` fills it in
    flavour         which runtimes the graphs are written for: "onnxruntime" (the default) or "tensorrt"
    regions         names of the parser's regions, in the order of its channels
    alignment       {landmarks: five [x, y], margins: [left, top, right, bottom]}
    smoke           {prompt, seed, codes}; optional: agreement
    faces           optional: which faces the model knows, "drawn" or "photographed" (the default): see f2edge.spec.sensitive
    pictures        optional: how pictures become pixels and back, of f2edge.imaging.laws: "f2edge" (the default) or "show-o"
    reading         {temperatures: slot → number, unsure: words}; optional: domain {file, center, scale}; see :class:`Reading`
    describe_question               how ``describe`` asks
    typical_answers                 optional: some of its answers, from which drafts of tokens are guessed (f2edge.decoding.drafts)
    licence, description, created   text for people; with parity, quality and experts, any JSON, kept in ``document``

Any bytes give either a :class:`Manifest` or a :class:`~f2edge.errors.BundleError` that names the wrong key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from f2edge.bundle.checked_json import get, inner_path, load, numbers, require, sequence, show, table, text, texts, typed
from f2edge.bundle.trained_for import TrainedFor
from f2edge.decoding.presets import QUALITIES, Preset, Presets, built_in
from f2edge.decoding.schedule import Schedule
from f2edge.errors import BundleError, InputError
from f2edge.imaging.laws import LAWS, PictureLaw, law_named
from f2edge.spec.attributes import AttributeSchema
from f2edge.spec.configuration import ModelConfiguration
from f2edge.spec.graph_checks import GraphEntry, Port, SignatureCheck
from f2edge.spec.graphs import SIGNATURES
from f2edge.spec.layout import TokenLayout
from f2edge.spec.sensitive import FACES, PHOTOGRAPHED

FORMAT_VERSION = 1
KNOWN_VERSIONS = (FORMAT_VERSION,)
FLAVOURS = ("onnxruntime", "tensorrt", "cuda")
#: Far above any model, far below what would exhaust a machine before a graph is opened.
_LARGEST = {"text_vocabulary": 1 << 22, "prompt_tokens": 1 << 16, "image_offset": 1 << 17, "width": 1 << 16, "layers": 1024, "heads": 1024}
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class FileEntry:
    """Expected SHA-256 (lower-case hex) and size (bytes) of a file."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Alignment:
    """Crop geometry of the training pictures.

    Attributes:
        landmarks: image-left eye, image-right eye, nose tip, image-left and image-right mouth corner as ``(x, y)`` in a picture of
            128 by 128 pixels; scale by ``size / 128``.
        margins: left, top, right, bottom: how far the crop reaches beyond a detected face box, as a share of the box's sides.
    """

    landmarks: tuple[tuple[float, float], ...]
    margins: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class SmokeVector:
    """Tokens of one prompt and seed on the exporting machine, and the share that another machine must reproduce.

    Integer kernels round differently between CPUs, so the share is below 1; by chance 1 token in V agrees.
    """

    prompt: str
    seed: int
    codes: tuple[int, ...]
    agreement: float = 0.5


@dataclass(frozen=True)
class Reading:
    """How answers become probabilities.

    Attributes:
        temperatures: by slot; logarithms of its answers' probabilities are divided by it.  A slot that is not named has 1.
        unsure: the answer that a slot is not to be seen; "" where the model has none.
        domain_file: array of :class:`f2edge.domain.Domain`; "" where there is none.
        domain_center, domain_scale: likewise.
    """

    temperatures: Mapping[str, float] = field(default_factory=dict)
    unsure: str = ""
    domain_file: str = ""
    domain_center: float = 0.0
    domain_scale: float = 1.0


@dataclass(frozen=True)
class Manifest:
    """A validated manifest.

    ``generation`` and ``editing`` are the default schedules of ``generate`` and ``edit``; ``document`` is the parsed JSON.
    """

    name: str
    model: ModelConfiguration
    layout: TokenLayout
    schema: AttributeSchema
    regions: tuple[str, ...]
    alignment: Alignment | None
    generation: Schedule
    editing: Schedule
    presets: Presets
    smoke: SmokeVector | None
    graphs: Mapping[str, GraphEntry]
    files: Mapping[str, FileEntry]
    document: Mapping[str, Any]
    flavour: str = FLAVOURS[0]
    pictures: PictureLaw = LAWS["f2edge"]
    reading: Reading = field(default_factory=Reading)
    faces: str = PHOTOGRAPHED
    typical_answers: tuple[str, ...] = ()
    trained_for: TrainedFor | None = None

    @property
    def describe_question(self) -> str:
        """How ``describe`` asks."""
        return str(self.document.get("describe_question", "describe the face"))

    @property
    def picture_law(self) -> str:
        """Name of ``pictures``."""
        return next(name for name, law in LAWS.items() if law is self.pictures)


def parse_manifest(data: bytes) -> Manifest:
    """Parse the bytes of ``manifest.json``; raises :class:`BundleError` naming the wrong key."""
    return check_manifest(load(data))


def check_manifest(document: Any) -> Manifest:
    """Validate a parsed document; raises :class:`BundleError` naming the wrong key."""
    row = table(document, "the document")
    version = row.get("format_version")
    if type(version) is not int or version not in KNOWN_VERSIONS:
        known = ", ".join(map(str, KNOWN_VERSIONS))
        raise BundleError(f"manifest: format_version {show(version)} is unknown; this f2edge reads {known}; update f2edge or export again")
    try:
        return _parse(row)
    except BundleError:
        raise
    except InputError as error:
        raise BundleError(f"manifest: {error}") from error
    except (TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise BundleError(f"manifest: its parts do not fit together ({type(error).__name__}: {error}); export the bundle again") from error


def _parse(row: Mapping[str, Any]) -> Manifest:
    model = _model(get(row, "model"))
    layout = _layout(get(row, "layout"), model)
    files = {inner_path(name): _file(entry, f"files.{name}") for name, entry in table(get(row, "files"), "files").items()}
    regions = texts(row.get("regions", []), "regions")
    require({"distinct names": len(set(regions)) == len(regions)}, "regions")
    graphs = {name: _graph(name, entry) for name, entry in table(get(row, "graphs"), "graphs").items()}
    for key in ("description", "licence", "created", "describe_question"):
        text(row.get(key, ""), key, empty=True)
    flavour = text(row.get("flavour", FLAVOURS[0]), "flavour")
    if flavour not in FLAVOURS:
        raise BundleError(f"manifest: flavour {show(flavour)} is unknown; this f2edge reads {', '.join(FLAVOURS)}; update f2edge")
    faces = text(row.get("faces", PHOTOGRAPHED), "faces")
    require({f"one of {', '.join(FACES)}": faces in FACES}, "faces")
    fit = SignatureCheck(model, layout, regions)
    for entry in graphs.values():
        if entry.file not in files:
            raise BundleError(f"manifest: graphs.{entry.name}.file {show(entry.file)} is not among files; export the bundle again")
        fit.check(entry, SIGNATURES[entry.name])
    return Manifest(
        name=text(get(row, "name"), "name"),
        model=model,
        layout=layout,
        schema=_schema(get(row, "attributes")),
        regions=regions,
        alignment=None if row.get("alignment") is None else _alignment(row["alignment"]),
        generation=_schedule(get(row, "generation"), "generation"),
        editing=_schedule({**get(row, "generation"), **table(row.get("editing", {}), "editing")}, "editing"),
        presets=_presets(row),
        smoke=None if row.get("smoke") is None else _smoke(row["smoke"], layout),
        graphs=MappingProxyType(graphs),
        files=MappingProxyType(files),
        document=MappingProxyType(dict(row)),
        flavour=flavour,
        pictures=law_named(text(row.get("pictures", "f2edge"), "pictures")),
        reading=Reading() if row.get("reading") is None else _reading(row["reading"], files),
        faces=faces,
        typical_answers=texts(row.get("typical_answers", []), "typical_answers"),
        trained_for=None if row.get("trained_for") is None else TrainedFor.parse(row["trained_for"]),
    )


def _model(row: Any) -> ModelConfiguration:
    typed(row, ModelConfiguration, "model")
    tokenizer = row["tokenizer"]
    halvings = len(tokenizer["channels"]) - 1
    require({f"{key} in 1 … {largest}": 1 <= row[key] <= largest for key, largest in _LARGEST.items()}, "model")
    require(
        {
            "tokenizer.bits in 1 … 24": 1 <= tokenizer["bits"] <= 24,
            "tokenizer.channels with 2 … 8 entries": 1 <= halvings <= 7,
            "tokenizer.codes_per_cell in 1 … 16": 1 <= tokenizer.get("codes_per_cell", 1) <= 16,
            "tokenizer.block in 1 … 16": 1 <= tokenizer.get("block", 1) <= 16,
            "tokenizer.image_size in 1 … 4096": 1 <= tokenizer["image_size"] <= 4096,
        },
        "model",
    )
    side = 2**halvings * tokenizer.get("block", 1)
    require({"tokenizer.image_size to be a multiple of its downsampling and block": tokenizer["image_size"] % side == 0}, "model")
    model = ModelConfiguration.from_json(row)
    sides = [shape.image_size for shape in (model.semantic, model.identity) if shape is not None and shape.image_size is not None]
    require({"features of pictures of 1 … 4096 pixels": all(1 <= side <= 4096 for side in sides)}, "model")
    require({"system_tokens in 0 … 65536": 0 <= model.system_tokens <= 1 << 16}, "model")
    return model


def _layout(row: Any, model: ModelConfiguration) -> TokenLayout:
    typed(row, TokenLayout, "layout")
    layout = replace(TokenLayout.from_json(row), block=model.tokenizer.block)
    for name in ("text_vocabulary", "specials", "codes", "image_tokens", "image_offset", "prompt_tokens"):
        found, wanted = getattr(layout, name), getattr(model, name)
        if found != wanted:
            raise BundleError(f"manifest: layout.{name} is {show(found)}, but the model has {show(wanted)}")
    for token in ("<|t2i|>", "<|mmu|>", "<|soi|>", "<|eoi|>", "[PAD]"):
        layout.special(token)
    return layout


def _schema(rows: Any) -> AttributeSchema:
    for index, row in enumerate(sequence(rows, "attributes")):
        where = f"attributes[{index}]"
        for key in ("name", "question", "group"):
            text(get(row, key, where), f"{where}.{key}")
        texts(get(row, "values", where), f"{where}.values")
        typed(get(row, "sensitive", where), bool, f"{where}.sensitive")
    return AttributeSchema.from_json(rows)


def _schedule(row: Any, where: str) -> Schedule:
    typed(row, Schedule, where)
    return Schedule(**{**row, **{key: tuple(value) for key, value in row.items() if isinstance(value, list)}})


def _presets(row: Any) -> Presets:
    generation = _schedule(row["generation"], "generation")
    if row.get("presets") is None:
        return MappingProxyType(built_in(generation))
    rows = table(row["presets"], "presets")
    require({f"exactly {', '.join(QUALITIES)}": set(rows) == set(QUALITIES)}, "presets")
    found = {}
    for name in QUALITIES:
        values = dict(table(rows[name], f"presets.{name}"))
        measured = table(values.pop("measured", {}), f"presets.{name}.measured")
        figures = numbers(list(measured.values()), len(measured), f"presets.{name}.measured")
        schedule = _schedule({**row["generation"], **values}, f"presets.{name}")
        found[name] = Preset(schedule, MappingProxyType(dict(zip(measured, figures, strict=True))))
    return MappingProxyType(found)


def _alignment(row: Any) -> Alignment:
    points = [numbers(point, 2, "alignment.landmarks") for point in sequence(get(row, "landmarks", "alignment"), "alignment.landmarks")]
    require({"five landmarks": len(points) == 5}, "alignment")
    left, top, right, bottom = numbers(row.get("margins", (0, 0, 0, 0)), 4, "alignment.margins")
    return Alignment(landmarks=tuple((x, y) for x, y in points), margins=(left, top, right, bottom))


def _smoke(row: Any, layout: TokenLayout) -> SmokeVector:
    typed(row, SmokeVector, "smoke")
    smoke = SmokeVector(**{**row, "codes": tuple(row["codes"])})
    require(
        {
            f"{layout.image_tokens} codes below {layout.codes}": len(smoke.codes) == layout.image_tokens
            and max(smoke.codes) < layout.codes,
            "agreement in 0 … 1": 0 <= smoke.agreement <= 1,
        },
        "smoke",
    )
    return smoke


def _reading(row: Any, files: Mapping[str, FileEntry]) -> Reading:
    temperatures = table(get(row, "temperatures", "reading"), "reading.temperatures")
    unsure = text(row.get("unsure", ""), "reading.unsure", empty=True)
    values = numbers(list(temperatures.values()), len(temperatures), "reading.temperatures")
    require({"temperatures in 0.05 … 20": all(0.05 <= value <= 20 for value in values)}, "reading")
    found = Reading(MappingProxyType(dict(zip(temperatures, values, strict=True))), unsure)
    if row.get("domain") is None:
        return found
    domain = table(row["domain"], "reading.domain")
    file = text(get(domain, "file", "reading.domain"), "reading.domain.file")
    center, scale = numbers([get(domain, key, "reading.domain") for key in ("center", "scale")], 2, "reading.domain")
    require({"file among files": file in files, "scale above 0": scale > 0}, "reading.domain")
    return replace(found, domain_file=file, domain_center=center, domain_scale=scale)


def _file(row: Any, where: str) -> FileEntry:
    digest, size = text(get(row, "sha256", where), f"{where}.sha256"), get(row, "bytes", where)
    require({"sha256 of 64 hex digits, lower case": _SHA256.fullmatch(digest) is not None}, where)
    require({"bytes, a size that is not negative": type(size) is int and size >= 0}, where)
    return FileEntry(digest, size)


def _graph(name: str, row: Any) -> GraphEntry:
    where = f"graphs.{name}"
    if name not in SIGNATURES:
        raise BundleError(f"manifest: {show(name)} is not a graph that this f2edge knows ({', '.join(SIGNATURES)}); update f2edge")
    return GraphEntry(
        name=name,
        file=text(get(row, "file", where), f"{where}.file"),
        inputs=_ports(get(row, "inputs", where), f"{where}.inputs"),
        outputs=_ports(get(row, "outputs", where), f"{where}.outputs"),
        precision=text(get(row, "precision", where), f"{where}.precision"),
        recipe=row.get("recipe"),
    )


def _ports(rows: Any, where: str) -> tuple[Port, ...]:
    ports = []
    for row in sequence(rows, where):
        shape = tuple(sequence(get(row, "shape", where), f"{where}.shape"))
        sizes = all(isinstance(axis, str) or (type(axis) is int and axis >= 0) for axis in shape)
        require({"a shape of sizes and axis names": sizes}, where)
        ports.append(Port(text(get(row, "name", where), where), text(get(row, "dtype", where), where), shape))
    return tuple(ports)
