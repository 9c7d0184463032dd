"""The builder of plans on a machine of paper: what it asks of TensorRT, what it writes, and what it refuses."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engines.automatic_profile import automatic_profile
from engines.cli import run
from engines.engine_cache import engine_key
from engines.network import BuildOptions, configure
from engines.plugin_nodes import OPERATORS, to_load
from engines.plugins.fused_moe import MoEShape
from engines.profile import load_profile, profile_names
from engines.shapes import BuildSizes, graph_shapes, input_shapes
from f2edge.backends.tensorrt.plans import Machine, PlanFolder, find_plans, l4t_release
from f2edge.bundle.bundle import Bundle
from f2edge.bundle.seal import sealed
from f2edge.errors import BackendError, InputError
from tests.support.tensorrt.plugin_folder import write_folder
from tests.support.tensorrt.tensorrt_double import VERSIONS
from tests.support.tensorrt.tensorrt_machine import PROFILE, machine, tensorrt_bundle

pytestmark = pytest.mark.slow

MACHINE = Machine("Orin", "8.7", 8, "10.3.0", "12.6", "36.4")
OTHER_MACHINES = (
    replace(MACHINE, gpu="Orin NX"),
    replace(MACHINE, capability="8.9"),
    replace(MACHINE, multiprocessors=16),
    replace(MACHINE, tensorrt="10.3.1"),
    replace(MACHINE, cuda="12.8"),
    replace(MACHINE, l4t="36.5"),
)


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return tensorrt_bundle(tiny_bundle, tmp_path / "tiny")


# What it asks of TensorRT ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_builds_every_graph(version: str, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = machine(monkeypatch, tmp_path, version)
    folder = here.build(bundle)
    plans = PlanFolder.load(folder)
    assert set(plans.graphs) == set(Bundle.load(bundle).manifest.graphs)
    assert plans.machine == Machine("Orin", "8.7", 8, version, "12.6", l4t_release())
    for name in plans.graphs:
        assert json.loads(plans.path(name).read_text())["strong"], "networks are strongly typed"
    profile = load_profile(PROFILE)
    limits = {(call["pool"].name, call["pool_size"]) for call in here.calls("IBuilderConfig", "set_memory_pool_limit")}
    assert limits == {("WORKSPACE", profile.build.workspace_mib << 20), ("TACTIC_DRAM", profile.build.tactic_dram_mib << 20)}
    assert {call["value"] for call in here.calls("IBuilderConfig", "builder_optimization_level=")} == {profile.build.optimization_level}
    assert {call["flag"].name for call in here.calls("IBuilderConfig", "clear_flag")} == {"TF32"}
    assert not here.calls("IBuilderConfig", "set_flag")
    assert {call["value"].name for call in here.calls("IBuilderConfig", "hardware_compatibility_level=")} == {"NONE"}
    assert all(not call["ignore_mismatch"] for call in here.calls("IBuilderConfig", "set_timing_cache"))


def test_flags_for_plans_that_travel(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = machine(monkeypatch, tmp_path, "10.13.3.9")
    folder = here.build(bundle, graphs=("regions",), hardware="same-compute-capability", version_compatible=True, detailed=True)
    assert [call["flag"].name for call in here.calls("IBuilderConfig", "set_flag")] == ["VERSION_COMPATIBLE"]
    assert [call["value"].name for call in here.calls("IBuilderConfig", "hardware_compatibility_level=")] == ["SAME_COMPUTE_CAPABILITY"]
    assert [call["value"].name for call in here.calls("IBuilderConfig", "profiling_verbosity=")] == ["DETAILED"]
    plans = PlanFolder.load(folder)
    assert (plans.hardware, plans.version_compatible) == ("same-compute-capability", True)


def test_a_level_that_a_version_lacks_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trt = machine(monkeypatch, tmp_path, "10.3.0").trt
    config = trt.Builder(trt.ILogger()).create_builder_config()
    with pytest.raises(InputError, match=r"TensorRT 10\.3\.0 does not know it \(10\.9"):
        configure(trt, config, BuildOptions(512, 3, 0, hardware="same-compute-capability"))


# Shapes ----------------------------------------------------------------------------------------------------------------------------------


@given(st.sets(st.integers(1, 64), min_size=1, max_size=4), st.integers(1, 64), st.integers(1, 512))
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
def test_profiles_hold_what_the_runtime_may_ask(tiny_bundle: Path, images: set[int], questions: int, tokens: int) -> None:
    bundle = Bundle.load(tiny_bundle, verify=False)
    sizes = BuildSizes(tuple(sorted(images)), questions, tokens)
    for entry in bundle.manifest.graphs.values():
        shapes = graph_shapes(entry, bundle.layout, sizes)
        for profile in shapes.profiles:
            assert all(low <= best <= high for low, best, high in profile.values())
            for name, bounds in input_shapes(entry, profile).items():
                assert all(size > 0 for shape in bounds for size in shape), f"{name}: empty tensors are avoided"
    step = graph_shapes(bundle.manifest.graphs["t2i_step"], bundle.layout, sizes)
    for rows in range(1, max(images) + 1):
        for branches in range(rows, 2 * rows + 1):
            assert any(p["R"][0] <= rows <= p["R"][2] and p["B"][0] <= branches <= p["B"][2] for p in step.profiles)
    for rows in images:
        assert any(p["R"] == (rows,) * 3 and p["B"] == (2 * rows,) * 3 for p in step.profiles), "a static profile for guided rows"
    extend = graph_shapes(bundle.manifest.graphs["mmu_extend"], bundle.layout, sizes)
    longest = bundle.layout.prompt_tokens + tokens
    assert any(p["S"] == (1, 1, 1) and p["T"][2] >= longest for p in extend.profiles)
    assert any(p["S"][2] > bundle.layout.prompt_tokens for p in extend.profiles)
    assert extend.buckets["T"][-1] == max(p["T"][2] for p in extend.profiles)


def test_an_axis_that_nothing_tells_is_refused(tiny_bundle: Path) -> None:
    bundle = Bundle.load(tiny_bundle, verify=False)
    entry = bundle.manifest.graphs["identity"]
    port = entry.inputs[0]
    odd = replace(entry, inputs=(replace(port, shape=("B", "C", *port.shape[2:])),))
    with pytest.raises(InputError, match="axis C"):
        graph_shapes(odd, bundle.layout, BuildSizes((1,), 1))


@pytest.mark.parametrize("sizes", [((), 1, 1), ((2, 1), 1, 1), ((1, 1), 1, 1), ((0,), 1, 1), ((1,), 0, 1), ((1,), 1, 0), ((2000,), 1, 1)])
def test_sizes_are_checked(sizes: tuple[Any, ...]) -> None:
    with pytest.raises(InputError, match="build sizes"):
        BuildSizes(*sizes)


def test_fewer_rows_than_the_profile_says() -> None:
    build = replace(load_profile(PROFILE).build, images=(1, 2, 8), questions=64)
    assert BuildSizes.of(build) == BuildSizes((1, 2, 8), 64)
    assert BuildSizes.of(build, image_rows=2, answer_rows=4, answer_tokens=16) == BuildSizes((1, 2), 4, 16)


# The cache -------------------------------------------------------------------------------------------------------------------------------


def test_what_is_up_to_date_is_not_built_again(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = machine(monkeypatch, tmp_path)

    def built(**options: Any) -> int:
        before = len(here.calls("Builder", "build_serialized_network"))
        here.build(bundle, graphs=("regions", "identity"), **options)
        return len(here.calls("Builder", "build_serialized_network")) - before

    assert built() == 2
    assert built() == 0
    assert built(rebuild=True) == 2
    assert built(level=5) == 2
    assert built(level=5, workspace_mib=64) == 2
    assert built(level=5, workspace_mib=64, answer_tokens=7) == 0, "neither graph has text"
    plans = PlanFolder.load(next(find_plans(Bundle.load(bundle))))
    plans.path("identity").write_bytes(b"cut off")
    assert built(level=5, workspace_mib=64) == 1, "a damaged plan is built again"
    here.cuda.version = 13020
    assert built(level=5, workspace_mib=64) == 2


def test_the_key_changes_with_everything_that_matters(tiny_bundle: Path) -> None:
    bundle = Bundle.load(tiny_bundle, verify=False)
    sizes, options = BuildSizes((1,), 4), {"workspace_mib": 512, "optimization_level": 3}

    def key(graph: str = "t2i_step", sizes: BuildSizes = sizes, options: dict[str, int] = options, **more: Any) -> str:
        shapes = graph_shapes(bundle.manifest.graphs[graph], bundle.layout, sizes)
        known: dict[str, Any] = {"machine": MACHINE, "plugins": {}, **more}
        return engine_key(bundle, graph, shapes=shapes, settings=options, **known)

    keys = [
        key(),
        key("t2i_prefill"),
        key(sizes=BuildSizes((2,), 4)),
        key(options={**options, "workspace_mib": 1024}),
        key(plugins={"f2edge::F2FusedMoE:1": "abc"}),
        key(plugins={"f2edge::F2FusedMoE:1": "abd"}),
        *(key(machine=other) for other in OTHER_MACHINES),
    ]
    assert len(set(keys)) == len(keys)
    assert key() == keys[0]


def test_timings_are_kept_and_taken_up(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = machine(monkeypatch, tmp_path)
    file = tmp_path / "orin.timing"
    here.build(bundle, graphs=("regions",), timing_cache=file)
    first = file.read_bytes()
    assert first == b"10.3.0+regions"
    here.build(bundle, graphs=("identity",), timing_cache=file)
    assert file.read_bytes() == first + b"+identity"
    other = machine(monkeypatch, tmp_path / "other", "11.4.0.106")
    other.build(bundle, graphs=("regions",), timing_cache=file)
    assert file.read_bytes() == b"11.4.0.106+regions", "timings of another version are dropped, not believed"


def test_a_build_that_is_killed_is_taken_up(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = machine(monkeypatch, tmp_path)
    here.cuda.capture_fails = False
    builds = iter([True, False])
    original = here.trt.Builder.build_serialized_network

    def fragile(self: Any, network: Any, config: Any) -> Any:
        return original(self, network, config) if next(builds, True) else None

    monkeypatch.setattr(here.trt.Builder, "build_serialized_network", fragile)
    with pytest.raises(BackendError, match=r"TensorRT 10\.3\.0 builds no plan of"):
        here.build(bundle)
    (folder,) = find_plans(Bundle.load(bundle))
    assert len(PlanFolder.load(folder).graphs) == 1
    assert {path.suffix for path in folder.iterdir()} == {".plan", ".json"}, "nothing half-written"
    before = len(here.calls("Builder", "create_network"))
    here.build(bundle)
    assert len(here.calls("Builder", "create_network")) - before == len(Bundle.load(bundle).manifest.graphs) - 1


# Refusals --------------------------------------------------------------------------------------------------------------------------------


def test_without_tensorrt_one_line_says_what_to_install(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert run(["build", str(tiny_bundle), "--profile", PROFILE]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "python3-libnvinfer" in error
    assert "pip install tensorrt-cu13" in error


def test_without_a_cuda_library_one_line_says_what_to_install(
    capsys: pytest.CaptureFixture[str], bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, tmp_path)
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    assert run(["build", str(bundle), "--profile", PROFILE]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "pip install 'f2edge[tensorrt]'" in error


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"profile": "abacus"}, "unknown device profile 'abacus'"),
        ({}, {"graphs": ("magic",)}, "has no graph 'magic'"),
        ({"capability": (8, 9)}, {}, r"for compute capability 8\.7, Orin has 8\.9"),
        ({"multiprocessors": 16}, {}, "for 8 multiprocessors, Orin has 16"),
        ({}, {"hardware": "same-compute-capability"}, "does not know it"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, change: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    here = machine(monkeypatch, tmp_path)
    for name, value in change.items():
        setattr(here.cuda, name, value)
    with pytest.raises(InputError, match=message):
        here.build(bundle, **options)
    assert not (bundle / "plans").exists()


def test_a_bundle_for_onnx_runtime_is_refused(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="--flavour tensorrt"):
        machine(monkeypatch, tmp_path).build(tiny_bundle)


def test_a_recipe_that_the_device_lacks_is_refused(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = bundle / "manifest.json"
    path.write_bytes(sealed(json.loads(path.read_text().replace('"name": "fp16"', '"name": "fp8"'))))
    with pytest.raises(InputError, match=r"recipe 'fp8', which needs compute capability 8\.9"):
        machine(monkeypatch, tmp_path).build(bundle)


def test_a_parser_error_names_the_node(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnx

    path = bundle / "regions.onnx"
    model = onnx.load(path, load_external_data=False)
    model.graph.node[0].op_type, model.graph.node[0].domain, model.graph.node[0].name = "MatMulNBits", "com.microsoft", "first"
    onnx.save(model, path)
    refresh(bundle)
    with pytest.raises(InputError, match=r"cannot parse regions\.onnx: MatMulNBits 'first': Plugin not found"):
        machine(monkeypatch, tmp_path).build(bundle, graphs=("regions",))


def test_a_graph_that_is_not_the_manifests_is_refused(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (bundle / "regions.onnx").write_bytes((bundle / "identity.onnx").read_bytes())
    refresh(bundle)
    with pytest.raises(InputError, match="its outputs are features; the manifest says otherwise"):
        machine(monkeypatch, tmp_path).build(bundle, graphs=("regions",))


def refresh(bundle: Path) -> None:
    """Sums of a bundle whose files were changed."""
    from f2edge.bundle.bundle import write_manifest

    write_manifest(bundle, json.loads((bundle / "manifest.json").read_text()))


def test_the_fused_node_asks_for_its_plug_in(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnx

    path = bundle / "regions.onnx"
    model = onnx.load(path, load_external_data=False)
    model.graph.node[0].op_type, model.graph.node[0].domain = "F2FusedMoE", "f2edge"
    onnx.save(model, path)
    refresh(bundle)
    here = machine(monkeypatch, tmp_path)
    monkeypatch.setenv("F2EDGE_KERNELS", str(tmp_path / "kernels"))
    with pytest.raises(InputError, match=r"graph 'regions' needs the kernels of its plug-in: no kernels of d64-e4x32-k2.*engines kernels"):
        here.build(bundle, graphs=("regions",))
    write_folder(tmp_path / "kernels", MoEShape(64, 4, 32, 2), (90, 110))
    with pytest.raises(InputError, match=r"needs the kernels of its plug-in: .* for sm_87, only for sm_90, sm_110"):
        here.build(bundle, graphs=("regions",))
    write_folder(tmp_path / "kernels", MoEShape(64, 4, 32, 2), (80,))
    fused = OPERATORS["F2FusedMoE"]
    monkeypatch.setattr("engines.plugin_nodes.OPERATORS", {"F2FusedMoE": fused._replace(module="json")})
    with pytest.raises(BackendError, match="'json' registers no plug-ins"):
        here.build(bundle, graphs=("regions",))
    here.trt.creators.add(("f2edge", "F2FusedMoE", "1"))
    plans = PlanFolder.load(here.build(bundle, graphs=("regions",)))
    assert plans.graphs["regions"].plugins == ("f2edge::F2FusedMoE:1",)


def test_the_automatic_profile_is_the_devices(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = machine(monkeypatch, tmp_path, integrated=True)
    folder = here.build(bundle, profile="auto", graphs=("regions",))
    assert folder.name == "orin-nano"
    limits = {str(call["pool"]).rpartition(".")[2]: call["pool_size"] for call in here.calls("IBuilderConfig", "set_memory_pool_limit")}
    assert limits == {"WORKSPACE": 768 << 20, "TACTIC_DRAM": 5120 << 20}
    here.trt.calls.clear()
    here.build(bundle, profile="auto", graphs=("regions",), tactic_dram_mib=0, rebuild=True)
    assert len(here.calls("IBuilderConfig", "set_memory_pool_limit")) == 1, "TensorRT's own limit"


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_is_chosen_on_its_device(name: str) -> None:
    """With a little more or less memory than the data sheet says."""
    profile = load_profile(name)
    there = Machine(profile.title, f"{profile.sm // 10}.{profile.sm % 10}", profile.sm_count, "10.3.0", "12.6")
    for share in (0.92, 1.07):
        found = automatic_profile(there, int(share * 1e9 * profile.memory.total_gb), integrated=profile.memory.integrated)
        assert found.name == name


@pytest.mark.parametrize(
    ("capability", "multiprocessors", "gigabytes", "integrated", "base"),
    [
        ("8.7", 14, 32, True, "orin-nx"),  # AGX Orin 32 GB
        ("8.7", 8, 8.2, True, "orin-nano"),
        ("8.0", 108, 42, False, "a100"),  # the A100 with 40 GB
        ("8.9", 128, 24, False, "l4"),  # a GeForce
        ("12.0", 170, 32, False, "h100"),
    ],
)
def test_a_device_without_a_profile_gets_the_nearest(
    capability: str, multiprocessors: int, gigabytes: float, integrated: bool, base: str
) -> None:
    there = Machine("Some GPU", capability, multiprocessors, "10.3.0", "12.6")
    found = automatic_profile(there, int(gigabytes * 1e9), integrated=integrated)
    if base == "orin-nano":
        assert found == load_profile(base)
        return
    assert found.build == load_profile(base).build
    assert f"{found.sm / 10:.1f}" == capability
    assert (found.sm_count, found.memory.total_gb) == (multiprocessors, gigabytes)
    assert found.name == f"auto-some-gpu-{multiprocessors}sm-{gigabytes}gb"
    with pytest.raises(InputError, match="no profile for Some GPU"):
        automatic_profile(replace(there, capability="7.0"), 1 << 34, integrated=integrated)


def test_portable_plans_on_a_jetson_are_marked_unproven(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    here = machine(monkeypatch, tmp_path, "10.16.1.11")
    here.build(bundle, graphs=("regions",), hardware="same-compute-capability")
    assert "unproven" not in caplog.text
    monkeypatch.setattr("f2edge.backends.tensorrt.installation.l4t_release", lambda: "39.2.0")
    here.build(bundle, graphs=("regions",), hardware="same-compute-capability")
    assert "JetPack does not support hardware compatibility; unproven" in caplog.text


def test_plug_ins_compiled_ahead_of_time_are_in_the_plan() -> None:
    assert to_load(plugin.name for plugin in OPERATORS.values()) == ["f2edge::F2FusedMoE:1"]


def test_every_plug_in_module_registers() -> None:
    from importlib import import_module

    assert all(callable(import_module(plugin.module).register) for plugin in OPERATORS.values())


def test_progress_speaks_on_a_terminal_only(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    here = machine(monkeypatch, tmp_path)
    here.build(bundle, graphs=("regions",))
    assert capsys.readouterr().err == ""
    assert len(here.calls("IBuilderConfig", "progress_monitor=")) == 1


def test_a_build_can_be_interrupted(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from engines.progress import BuildProgress

    here = machine(monkeypatch, tmp_path)

    def interrupted(*_: Any) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(BuildProgress, "advance", interrupted)
    with pytest.raises(KeyboardInterrupt):
        here.build(bundle, graphs=("regions",))
    assert not list(tmp_path.rglob("*.plan"))
