"""A bundle is whole or refused by name, whatever the bytes of its manifest."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from f2edge.bundle.bundle import MANIFEST, Bundle, embedded_folder, find, list_bundles, write_manifest
from f2edge.bundle.manifest import Manifest, check_manifest, parse_manifest
from f2edge.bundle.seal import sealed
from f2edge.errors import BundleError, BundleNotFoundError, ChecksumError
from f2edge.spec.configuration import NANO, NANO_2, SHOW_O
from f2edge.spec.layout import TokenLayout
from tests.support.bundle_document import REGIONS, document, write_folder

pytestmark = pytest.mark.runtime


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "cup")


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest on disk and seal it again."""
    table = json.loads((folder / MANIFEST).read_text())
    change(table)
    (folder / MANIFEST).write_bytes(sealed(table))


def test_a_layout_has_the_blocks_of_its_model() -> None:
    assert Bundle.load("nano", verify=False).layout.block == NANO_2.tokenizer.block == 2


def test_a_written_bundle_loads_with_every_part(folder: Path) -> None:
    bundle = Bundle.load(folder)
    assert bundle.name == "paper-cup"
    assert bundle.configuration == NANO
    assert bundle.layout == TokenLayout.of(NANO, 0, 1)
    assert list(bundle.schema)[:2] == ["gender_presentation", "age"]
    assert bundle.regions == tuple(REGIONS)
    assert bundle.generation.steps == 12
    assert bundle.generation.order == "maskgit"
    assert bundle.path("t2i_step") == folder / "graphs" / "all.onnx"
    assert bundle.tokenizer_path.is_file()
    assert bundle.total_bytes == 1024 + 8192 + 2
    assert bundle.manifest.alignment is not None
    assert bundle.manifest.alignment.landmarks[0] == (40.0, 50.0)
    assert bundle.manifest.alignment.margins == (0.2, 0.3, 0.2, 0.1)
    assert bundle.manifest.smoke is not None
    assert bundle.manifest.smoke.codes == (5,) * NANO.image_tokens
    assert bundle.manifest.document["quality"] == {"judge": 0.9}
    assert Bundle.load(bundle) is bundle


def test_a_missing_folder_and_a_folder_without_manifest(tmp_path: Path) -> None:
    with pytest.raises(BundleNotFoundError, match="no bundle 'nowhere'"):
        Bundle.load("nowhere")
    with pytest.raises(BundleNotFoundError, match=r"no manifest\.json in it"):
        Bundle.load(tmp_path)
    with pytest.raises(BundleNotFoundError):
        Bundle.load("")
    with pytest.raises(BundleNotFoundError):
        Bundle.load("a\0b")


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"a": NaN}', b"1" * 5000, b"null", b"[]", b'"text"'])
def test_manifest_that_is_no_json_object(folder: Path, data: bytes) -> None:
    (folder / MANIFEST).write_bytes(data)
    with pytest.raises(BundleError, match=r"not valid JSON|must be an object") as caught:
        Bundle.load(folder)
    assert str(caught.value).startswith(f"{folder}: manifest: "), "of several bundles, which"


@pytest.mark.parametrize("version", [0, 2, "1", None, 1.0, True, [1], 10**30])
def test_unknown_format_version_says_which_are_known(folder: Path, version: object) -> None:
    rewrite(folder, lambda table: table.update(format_version=version))
    with pytest.raises(BundleError, match=r"format_version .* is unknown; this f2edge reads 1"):
        Bundle.load(folder)


def test_a_flipped_byte_is_found_anywhere(folder: Path) -> None:
    for name in ("graphs/all.onnx", "weights.bin", "tokenizer.json"):
        path = folder / name
        whole = path.read_bytes()
        for position in (0, len(whole) // 2, len(whole) - 1):
            damaged = bytearray(whole)
            damaged[position] ^= 0x10
            path.write_bytes(damaged)
            with pytest.raises(ChecksumError, match=rf"{name}.*SHA-256 differs"):
                Bundle.load(folder)
        path.write_bytes(whole)
    Bundle.load(folder)


def test_without_verification_sizes_still_count(folder: Path) -> None:
    (folder / "weights.bin").write_bytes(b"\x03\x02" * 4096)
    Bundle.load(folder, verify=False)
    (folder / "weights.bin").write_bytes(b"\x01\x02" * 4000)
    with pytest.raises(ChecksumError, match=r"weights\.bin: has 8000 bytes, the manifest says 8192"):
        Bundle.load(folder, verify=False)


def test_a_missing_file_and_a_folder_in_its_place(folder: Path) -> None:
    (folder / "weights.bin").unlink()
    with pytest.raises(BundleError, match=r"weights\.bin: missing"):
        Bundle.load(folder)
    (folder / "weights.bin").mkdir()
    with pytest.raises(BundleError, match=r"weights\.bin: missing"):
        Bundle.load(folder)


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/hostname", "graphs/../../secret", "C:secret", "graphs\\all.onnx", ".", "", "a//b", "./a", "a\0b", "a\nb"]
)
def test_paths_that_leave_the_folder(folder: Path, name: str) -> None:
    (folder.parent / "secret").write_text("x")
    rewrite(folder, lambda table: table["files"].update({name: {"sha256": "0" * 64, "bytes": 1}}))
    with pytest.raises(BundleError, match="not a path inside the bundle's folder"):
        Bundle.load(folder)


def test_a_link_that_leaves_the_folder(folder: Path) -> None:
    outside = folder.parent / "outside.bin"
    outside.write_bytes((folder / "weights.bin").read_bytes())
    (folder / "weights.bin").unlink()
    (folder / "weights.bin").symlink_to(outside)
    with pytest.raises(BundleError, match="leads outside"):
        Bundle.load(folder)


def test_what_a_show_o_manifest_adds_is_checked(folder: Path) -> None:
    """Pictures so large that resizing to them would take all memory, a system prompt without end, and laws that do not exist."""

    def features(**changes: object) -> object:
        semantic = {"vectors": 4, "width": 8, "image_size": 336, **changes.pop("semantic", {})}  # type: ignore[dict-item]
        return lambda table: table["model"].update({"semantic": semantic, "sequence_experts": False, "identity": None, **changes})

    for change, complaint in (
        (features(semantic={"image_size": 1 << 30}), "features of pictures of 1 … 4096 pixels"),
        (features(understanding="features", system_tokens=1 << 20), "system_tokens in 0 … 65536"),
        (features(understanding="features"), "with system_tokens above 0"),
        (features(understanding="smell"), "understanding is"),
        (lambda table: table.update(pictures="best"), "unknown law 'best'"),
        (lambda table: table.update(typical_answers=["a man", 3]), "typical_answers must be"),
        (lambda table: table["layout"].update(long_prompts="fold"), "neither"),
    ):
        whole = (folder / MANIFEST).read_bytes()
        rewrite(folder, change)  # type: ignore[arg-type]
        with pytest.raises(BundleError, match=complaint):
            Bundle.load(folder)
        (folder / MANIFEST).write_bytes(whole)


def test_links_in_a_circle(folder: Path) -> None:
    (folder / "weights.bin").unlink()
    (folder / "weights.bin").symlink_to("weights.bin")
    with pytest.raises(BundleError, match=r"weights\.bin"):
        Bundle.load(folder)


def test_an_absent_graph_is_named_with_those_present(folder: Path) -> None:
    rewrite(folder, lambda table: table["graphs"].pop("mmu_extend"))
    bundle = Bundle.load(folder)
    assert not bundle.has("mmu_extend")
    with pytest.raises(BundleError, match=r"no graph 'mmu_extend' \(it has t2i_prefill, "):
        bundle.path("mmu_extend")


GRAPH_DAMAGE = {
    "a renamed input": lambda g: g["inputs"][0].update(name="grid"),
    "a missing input": lambda g: g["inputs"].pop(),
    "an input too many": lambda g: g["inputs"].append({"name": "extra", "dtype": "int64", "shape": ["B"]}),
    "an input twice": lambda g: g["inputs"].append(dict(g["inputs"][0])),
    "another dtype": lambda g: g["inputs"][0].update(dtype="int32"),
    "an axis too few": lambda g: g["inputs"][0].update(shape=["R"]),
    "another size": lambda g: g["inputs"][0].update(shape=["R", NANO.image_tokens - 1]),
    "a missing output": lambda g: g["outputs"].pop(),
    "a shape that is no list": lambda g: g["inputs"][0].update(shape="RN"),
    "a negative size": lambda g: g["inputs"][0].update(shape=["R", -1]),
    "a file that is not listed": lambda g: g.update(file="other.onnx"),
    "no precision": lambda g: g.pop("precision"),
}


@pytest.mark.parametrize("damage", GRAPH_DAMAGE.values(), ids=GRAPH_DAMAGE)
def test_graphs_that_differ_from_the_contract(folder: Path, damage: Callable[[dict[str, Any]], object]) -> None:
    rewrite(folder, lambda table: damage(table["graphs"]["t2i_step"]))
    with pytest.raises(BundleError, match="t2i_step"):
        Bundle.load(folder)


def by_layer(graph: dict[str, Any], cache: str, layers: int) -> None:
    place, whole = next((i, port) for i, port in enumerate(graph["inputs"]) if port["name"] == cache)
    graph["inputs"][place : place + 1] = [{**whole, "name": f"{cache}.{layer}", "shape": whole["shape"][1:]} for layer in range(layers)]


def test_caches_may_be_passed_layer_by_layer_and_columns_scored() -> None:
    def table(layers: int = NANO.layers) -> dict[str, Any]:
        row = document() | {"format_version": 1, "files": {"graphs/all.onnx": {"sha256": "0" * 64, "bytes": 1}}}
        graph = row["graphs"]["mmu_extend"]
        for cache in ("image_key", "text_value"):
            by_layer(graph, cache, layers)
        graph["inputs"].append({"name": "scored", "dtype": "int64", "shape": ["D"]})
        graph["outputs"][0]["shape"] = ["B", "D", NANO.text_vocabulary]
        return row

    check_manifest(table())
    with pytest.raises(BundleError, match="graph 'mmu_extend' has inputs"):
        check_manifest(table(layers=NANO.layers - 1))
    other = table()
    other["graphs"]["mmu_extend"]["inputs"][3]["shape"] = ["I", NANO.heads, 3, NANO.head_width]
    with pytest.raises(BundleError, match="graph 'mmu_extend'"):
        check_manifest(other)
    unscored = table()
    unscored["graphs"]["mmu_extend"]["outputs"][0]["shape"] = ["B", NANO.text_vocabulary]
    with pytest.raises(BundleError, match="logits"):
        check_manifest(unscored)


def test_fixed_sizes_may_be_numbers_if_they_are_the_models() -> None:
    table = document() | {"format_version": 1, "files": {"graphs/all.onnx": {"sha256": "0" * 64, "bytes": 1}}}
    table["graphs"]["t2i_step"]["inputs"][0]["shape"] = ["R", NANO.image_tokens]
    table["graphs"]["regions"]["outputs"][0]["shape"] = [1, len(REGIONS), NANO.tokenizer.grid, NANO.tokenizer.grid]
    assert NANO.semantic is not None
    assert NANO.identity is not None
    semantic, identity = (["B", shape.vectors, shape.width] for shape in (NANO.semantic, NANO.identity))
    table["graphs"]["semantic"]["outputs"][0]["shape"] = semantic
    table["graphs"]["mmu_prefill"]["inputs"][2]["shape"] = identity
    check_manifest(table)
    table["graphs"]["semantic"]["outputs"][0]["shape"] = identity
    found, needed = (", ".join(map(str, shape)) for shape in (identity, semantic))
    with pytest.raises(BundleError, match=rf"graph 'semantic': features is float32\[{found}\], needs float32\[{needed}\]"):
        check_manifest(table)


def test_a_model_without_encoders_has_no_inputs_for_them() -> None:
    table = document() | {"format_version": 1, "files": {"graphs/all.onnx": {"sha256": "0" * 64, "bytes": 1}}}
    table |= {"model": SHOW_O.to_json(), "layout": TokenLayout.of(SHOW_O, 50256, 50256).to_json()}
    table.pop("smoke")
    prefill = table["graphs"]["mmu_prefill"]
    with pytest.raises(BundleError, match="mmu_prefill"):
        check_manifest(table)
    prefill["inputs"] = prefill["inputs"][:1]
    assert check_manifest(table).model == SHOW_O


def test_an_unknown_graph_asks_for_an_update() -> None:
    table = document() | {"format_version": 1, "files": {"graphs/all.onnx": {"sha256": "0" * 64, "bytes": 1}}}
    table["graphs"]["dream"] = table["graphs"]["t2i_step"]
    with pytest.raises(BundleError, match=r"'dream' is not a graph .*update f2edge"):
        check_manifest(table)


def test_the_layout_must_be_the_models(folder: Path) -> None:
    rewrite(folder, lambda table: table["layout"].update(image_tokens=999))
    with pytest.raises(BundleError, match=rf"layout\.image_tokens is 999, but the model has {NANO.image_tokens}"):
        Bundle.load(folder)


def test_write_manifest_refuses_what_loading_would_refuse(folder: Path) -> None:
    before = (folder / MANIFEST).read_bytes()
    for change in (
        {"generation": {"steps": 0}},
        {"editing": {"guidance": -1}},
        {"editing": [4]},
        {"quality": float("nan")},
        {"quality": {1, 2}},
        {"name": ""},
    ):
        with pytest.raises(BundleError):
            write_manifest(folder, document() | change)
    assert (folder / MANIFEST).read_bytes() == before
    assert sorted(path.name for path in folder.iterdir()) == ["graphs", MANIFEST, "tokenizer.json", "weights.bin"]


def test_edits_have_defaults_of_their_own(folder: Path) -> None:
    assert Bundle.load(folder).editing == Bundle.load(folder).generation
    write_manifest(folder, document() | {"editing": {"guidance": 4.5}})
    bundle = Bundle.load(folder)
    assert bundle.editing == replace(bundle.generation, guidance=4.5)


def test_names_resolve_to_embedded_then_user_then_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    users = tmp_path / "data" / "f2edge" / "bundles"
    mine = write_folder(users / "mine")
    monkeypatch.chdir(tmp_path)
    here = write_folder(tmp_path / "here")
    assert find("mine") == mine
    assert find("here").resolve() == here
    assert find(str(mine)) == mine
    write_folder(tmp_path / "mine")
    assert find("mine") == mine, "an installed name comes before a folder of that name"
    assert find(Path("mine")).resolve() == tmp_path / "mine", "a Path is a path"
    assert ("mine", "user") in [(found.name, found.origin) for found in list_bundles()]


def test_an_embedded_bundle_hides_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr("f2edge.bundle.bundle.embedded_folder", lambda: tmp_path / "inside")
    embedded = write_folder(tmp_path / "inside" / "cup")
    write_folder(tmp_path / "data" / "f2edge" / "bundles" / "cup")
    assert find("cup") == embedded
    assert [(found.name, found.origin) for found in list_bundles()] == [("cup", "embedded")]


def test_the_embedded_folder_is_inside_the_package() -> None:
    assert embedded_folder().parent.joinpath("pipeline.py").is_file()


# Whatever the bytes: a manifest or a BundleError ---------------------------------------------------------------------------------------

JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from([-1, 0, 2**31, 10**400, "\ud800", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to everything inside a JSON value."""
    yield path
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


def small_document() -> dict[str, Any]:
    table = document() | {"format_version": 1, "files": {"graphs/all.onnx": {"sha256": "0" * 64, "bytes": 1}}}
    table["attributes"] = table["attributes"][:2]
    table["graphs"] = {name: table["graphs"][name] for name in ("t2i_step", "regions", "semantic")}
    table["smoke"]["codes"] = [1] * NANO.image_tokens
    return table


VALID = small_document()
PLACES = [path for path in places(VALID) if path]


def refusal(read: Callable[[Any], Manifest], content: Any) -> str | None:
    """The message of a refusal, None where the content makes a manifest; any other exception fails the test."""
    try:
        read(content)
    except BundleError as error:
        return str(error)
    return None


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(PLACES), st.sampled_from(["replace", "delete", "add"]), JUNK), min_size=1, max_size=3))
def test_any_mutation_gives_a_manifest_or_a_bundle_error(mutations: list[tuple[Any, str, Any]]) -> None:
    table = copy.deepcopy(VALID)
    for path, kind, junk in mutations:
        node = table
        try:
            for key in path[:-1]:
                node = node[key]
            if kind == "delete":
                del node[path[-1]]
            elif kind == "add":
                node["surprise"] = junk
            else:
                node[path[-1]] = junk
        except (KeyError, IndexError, TypeError):  # an earlier mutation took this place away
            continue
    for message in (refusal(check_manifest, table), refusal(parse_manifest, json.dumps(table).encode())):
        assert message is None or (message.startswith("manifest: ") and len(message) < 2000)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_give_a_bundle_error(data: bytes) -> None:
    with pytest.raises(BundleError):
        parse_manifest(data)


def test_every_number_of_a_manifest_is_bounded() -> None:
    """The fuzz above found 2**bits with a bits of a thousand million; keep it found."""
    for path in (("tokenizer", "bits"), ("tokenizer", "image_size"), ("tokenizer", "codes_per_cell"), ("layers",), ("heads",), ("width",)):
        table = copy.deepcopy(VALID)
        node = table["model"]
        for key in path[:-1]:
            node = node[key]
        for value in (0, -1, 10**9, 10**30):
            node[path[-1]] = value
            with pytest.raises(BundleError):
                check_manifest(table)
