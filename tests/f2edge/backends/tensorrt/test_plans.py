"""Plans on disk: looked at, fitted to a machine, and read from untrusted bytes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engines.cli import run
from f2edge.backends.tensorrt.plans import PLANS, Machine, PlanFolder, l4t_release, unfit
from f2edge.errors import BundleError, ChecksumError
from tests.support.tensorrt.tensorrt_machine import PROFILE, machine, tensorrt_bundle

MACHINE = Machine("Orin", "8.7", 8, "10.3.0", "12.6", "36.4")


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return tensorrt_bundle(tiny_bundle, tmp_path / "tiny")


def test_inspect_and_verify(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    here = machine(monkeypatch, tmp_path)
    assert run(["build", str(bundle), "--profile", PROFILE, "--force", "--graph", "regions", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["seconds"]) == {"regions"}
    assert run(["inspect", str(bundle)]) == 0
    assert "regions" in capsys.readouterr().out
    assert run(["inspect", str(bundle), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["machine"]["gpu"] == "Orin"
    assert run(["inspect", str(bundle), "--layers", "regions"]) == 0
    assert "Layers" in json.loads(capsys.readouterr().out)
    assert run(["verify", row["folder"]]) == 0
    assert "every engine loads on Orin" in capsys.readouterr().out
    here.cuda.multiprocessors = 16
    assert run(["verify", str(bundle)]) == 2
    assert "8 multiprocessors" in capsys.readouterr().err
    (Path(row["folder"]) / "regions.plan").write_bytes(b"x")
    assert run(["verify", str(bundle)]) == 2
    assert "differs from its entry in plans.json" in capsys.readouterr().err


def test_a_bundle_without_plans_says_how_to_make_them(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    machine(monkeypatch, tmp_path)
    assert run(["inspect", str(bundle)]) == 2
    assert "python -m engines build" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("here", "hardware", "reason"),
    [
        ({}, "none", None),
        ({"gpu": "other name", "cuda": "13.0", "l4t": "39.2"}, "none", None),
        ({"tensorrt": "10.3.1"}, "none", "built with TensorRT 10.3.0, this machine has 10.3.1"),
        ({"capability": "8.9"}, "none", "built for compute capability 8.7"),
        ({"multiprocessors": 16}, "none", "8 multiprocessors, Orin has 16"),
        ({"multiprocessors": 16}, "same-compute-capability", None),
        ({"capability": "8.9"}, "same-compute-capability", "built for compute capability 8.7"),
        ({"capability": "9.0", "multiprocessors": 132}, "ampere-plus", None),
        ({"capability": "7.5"}, "ampere-plus", "8.0 and above, Orin has 7.5"),
    ],
)
def test_plans_fit_or_say_why_not(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, here: dict[str, Any], hardware: str, reason: str | None
) -> None:
    plans = PlanFolder.load(machine(monkeypatch, tmp_path).build(bundle, graphs=("regions",)))
    plans = replace(plans, machine=MACHINE, hardware=hardware)
    found = unfit(plans, replace(MACHINE, **here))
    assert found is None if reason is None else found is not None and reason in found
    if "tensorrt" in here:
        assert unfit(replace(plans, version_compatible=True), replace(MACHINE, **here)) is None


def damaged(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    for part in path[:-1]:
        document = document[part]
    document[path[-1]] = value
    return document


PLACES = [
    tuple(path.split("."))
    for path in (
        *("format_version", "bundle", "bundle.name", "machine.capability", "machine.multiprocessors", "portable.hardware"),
        *("portable.version", "graphs", "graphs.regions.file", "graphs.regions.bytes", "graphs.regions.profiles"),
        *("graphs.regions.inputs", "graphs.regions.buckets", "graphs.regions.plugins", "graphs.regions.sha256"),
    )
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["B", "file", "name", "shape", "regions", "magic"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def plan_document(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("plans")
    with pytest.MonkeyPatch.context() as patch:
        bundle = tensorrt_bundle(tiny_bundle, folder / "tiny")
        plans = machine(patch, folder).build(bundle, graphs=("regions",))
        return dict(PlanFolder.load(plans).document)


@given(st.sampled_from(PLACES), JSON)
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
def test_any_plans_json_loads_or_is_refused(
    plan_document: dict[str, Any], tmp_path_factory: Any, place: tuple[Any, ...], value: Any
) -> None:
    document = json.loads(json.dumps(plan_document))
    damaged(document, place, value)
    folder = tmp_path_factory.getbasetemp()
    (folder / PLANS).write_text(json.dumps(document))
    try:
        plans = PlanFolder.load(folder)
    except BundleError:
        return
    for graph in plans.graphs:
        with pytest.raises((BundleError, ChecksumError)):
            plans.path(graph)


@given(st.binary(max_size=200))
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_bytes_are_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.getbasetemp()
    (folder / PLANS).write_bytes(data)
    with pytest.raises(BundleError):
        PlanFolder.load(folder)


@pytest.mark.parametrize(
    ("line", "release"),
    [
        ("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n", "36.4.3"),
        ("# R38 (release), REVISION: 2.0\n", "38.2.0"),
        ("R39\n", "39"),
        ("", ""),
        ("nonsense REVISION:", ""),
    ],
)
def test_the_release_of_jetson_linux(tmp_path: Path, line: str, release: str) -> None:
    (tmp_path / "release").write_text(line)
    assert l4t_release(tmp_path / "release") == release
    assert l4t_release(tmp_path / "none") == ""
