"""The fused experts' kernels, compiled for GPUs that are not here, and the folder that they are kept in."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from engines.plugins.compile_kernels import all_kernels, assemble, compile_kernel, without_scratch
from engines.plugins.fused_moe import LARGE, SMALL, Grid, KernelPlan, MoEShape, choose_tile
from engines.plugins.fused_moe_launch import Launcher, RefusedImageError
from engines.plugins.kernel_folder import TARGETS, KernelFolder
from f2edge.errors import BackendError, InputError
from tests.support.tensorrt.plugin_folder import write_folder

TRITON = "the plug-in's kernels are written in Triton, which exists for Linux only: pip install f2edge[plugins]"
SHAPE = MoEShape(64, 4, 32, 2)
PTX = """.version 8.0
.target sm_87
.visible .entry twice(
	.param .u64 .ptr .global .align 1 twice_param_0,
	.param .u32 twice_param_1,
	.param .u64 .ptr .global .align 1 twice_param_2,
	.param .u64 .ptr .global .align 1 twice_param_3
)
{
	ld.param.b64 	%rd1, [twice_param_0];
	ret;
}
"""


def test_scratch_is_cut_where_nobody_reads_it() -> None:
    assert ".param .u32 twice_param_1\n)\n{" in without_scratch(PTX, 2)
    assert "twice_param_2" not in without_scratch(PTX, 2)
    with pytest.raises(BackendError, match="scratch"):
        without_scratch(PTX.replace("[twice_param_0]", "[twice_param_3]"), 2)
    with pytest.raises(BackendError, match="entry"):
        without_scratch(".version 8.0", 1)


@pytest.mark.parametrize("target", TARGETS)
def test_a_kernel_for_every_generation(target: int) -> None:
    pytest.importorskip("triton", reason=TRITON)
    kernel = KernelPlan(SHAPE, "fp16", SMALL).kernels[4]
    compiled, cubin, ptx = compile_kernel(kernel, target)
    text = ptx.decode()
    entry = re.search(r"\.visible \.entry combine\((.*?)\n\)", text, re.DOTALL)
    assert entry is not None
    assert entry[1].count(".param") == len(kernel.arguments)
    assert f".target sm_{target}" in text
    assert f".version {'9.0' if target > 90 else '8.0'}" in text
    assert "/" not in re.sub(r"//.*", "", text), "a path of this machine"
    assert cubin[:4] == b"\x7fELF"
    assert compiled.registers > 8
    assert compiled.spill_stores == compiled.spill_loads == 0
    assert compile_kernel(kernel, target)[0] == compiled
    assert compiled.assembler.startswith("13." if target > 90 else "12."), "a driver of CUDA 12 loads machine code of CUDA 12 only"


def test_machine_code_for_hopper_is_of_the_same_format_as_for_older_gpus() -> None:
    """The operating system and version in the ELF header, by which a driver knows machine code that is too new for it."""
    pytest.importorskip("triton", reason=TRITON)
    kernel = KernelPlan(SHAPE, "fp16", SMALL).kernels[4]
    formats = {target: compile_kernel(kernel, target)[1][7:9] for target in (87, 90, 110)}
    assert formats[90] == formats[87]
    assert formats[110] != formats[87], "made by another assembler"


def test_every_kernel_is_compiled_by_the_command(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason=TRITON)
    words = [sys.executable, "-m", "engines", "kernels", "--out", str(tmp_path), "--model", "nano", "--target", "87"]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([*words, "--json"], capture_output=True, text=True, check=False, timeout=280, env=environment)
    assert done.returncode == 0, done.stderr
    shape = MoEShape(256, 4, 128, 2)
    folder, printed = KernelFolder(shape, tmp_path), json.loads(done.stdout)
    assert {row["file"] for row in printed["kernels"]} == {kernel.file for kernel in all_kernels(shape)}
    for kernel in all_kernels(shape):
        compiled = folder.describe(87, kernel.file)
        assert dict(compiled.constants) == dict(kernel.constants)
        assert compiled.arguments == kernel.arguments
        assert compiled.threads == 32 * kernel.warps
        assert compiled.shared <= 48 * 1024
        assert compiled.spill_stores == 0
        assert folder.cubin(87, kernel.file)[:4] == b"\x7fELF"
        assert f".entry {kernel.name}(".encode() in folder.ptx(87, kernel.file)


def test_the_command_refuses_what_it_cannot_make(tmp_path: Path) -> None:
    for words, wanted in ((["--model", "show-o"], "no routed experts"), (["--model", "big"], "nano"), (["--target", "70"], "75")):
        command = [sys.executable, "-m", "engines", "kernels", "--out", str(tmp_path / "out"), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 2
        assert wanted in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
        assert not (tmp_path / "out").exists()


def test_ptxas_words_are_passed_on() -> None:
    pytest.importorskip("triton", reason=TRITON)
    from triton.backends.nvidia.compiler import get_ptxas

    with pytest.raises(BackendError, match="ptxas failed"):
        assemble(PTX.replace("ret;", "not an instruction;"), get_ptxas(87).path)


def test_the_folder_refuses_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="python -m engines kernels"):
        KernelFolder(SHAPE, tmp_path)
    write_folder(tmp_path, SHAPE, (80,))
    folder = KernelFolder(SHAPE, tmp_path)
    with pytest.raises(InputError, match="sm_80"):
        folder.cubin(90, "sort-small")
    path = tmp_path / SHAPE.label / "sm_80" / "sort-small.cubin"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(InputError, match="checksum"):
        folder.cubin(80, "sort-small")
    path.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        folder.cubin(80, "sort-small")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": 1}', '{"format": 9, "targets": {}}', '{"format": 1, "targets": {"87": {"up": {}}}}']
)
def test_a_damaged_description_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / SHAPE.label).mkdir()
    (tmp_path / SHAPE.label / "kernels.json").write_text(text)
    with pytest.raises(InputError, match="again"):
        KernelFolder(SHAPE, tmp_path)


def test_a_device_gets_code_that_it_can_run(tmp_path: Path) -> None:
    write_folder(tmp_path, SHAPE, TARGETS)
    folder = KernelFolder(SHAPE, tmp_path)

    def taken(capability: int) -> bytes:
        return next(folder.images(capability, "sort-small"))[2].rsplit(b" ", 1)[0]

    assert taken(87) == b"cubin 87"
    assert taken(90) == b"cubin 90"
    assert taken(110) == b"cubin 110"
    for later in (100, 103, 120):  # what is compiled for sm_90 or sm_110 runs nowhere else
        assert taken(later) == b"ptx 89"
    with pytest.raises(InputError, match="sm_70"):
        taken(70)
    assert [data.rsplit(b" ", 1)[0] for _, _, data in folder.images(90, "sort-small")] == [b"cubin 90", b"ptx 90", b"ptx 89"]
    write_folder(tmp_path, SHAPE, (75, 80))
    folder = KernelFolder(SHAPE, tmp_path)
    assert taken(87) == b"cubin 80"


class OldDriver:
    """A driver that refuses some code, as one before CUDA 13 refuses machine code of CUDA 13."""

    def __init__(self, capability: int, refused: tuple[bytes, ...]) -> None:
        self.refused = refused
        self.capability = lambda: capability

    def load(self, image: bytes, name: str) -> str:
        if image.startswith(self.refused):
            raise RefusedImageError("cuModuleLoadData failed in CUDA: CUDA_ERROR_NO_BINARY_FOR_GPU")
        return name


def test_a_driver_that_refuses_machine_code_gets_ptx_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_folder(tmp_path, SHAPE, TARGETS)
    with caplog.at_level(logging.INFO, logger="engines"):
        launcher = Launcher(OldDriver(90, (b"cubin",)), SHAPE, "fp16", tmp_path)  # type: ignore[arg-type]
        assert launcher.sources == {"ptx of sm_90": 10}
        assert "the driver refuses the cubin of sm_90 (ptxas 12.9): cuModuleLoadData" in caplog.text
        assert "on sm_90: 10 ptx of sm_90" in caplog.text
        assert Launcher(OldDriver(90, ()), SHAPE, "fp16", tmp_path).sources == {"cubin of sm_90 (ptxas 12.9)": 10}  # type: ignore[arg-type]
        assert Launcher(OldDriver(90, (b"cubin", b"ptx 90")), SHAPE, "fp16", tmp_path).sources == {"ptx of sm_89": 10}  # type: ignore[arg-type]
    with pytest.raises(BackendError, match=r"takes none of its code .*update the driver"):
        Launcher(OldDriver(90, (b"",)), SHAPE, "fp16", tmp_path)  # type: ignore[arg-type]


def test_shapes_that_make_no_sense_are_refused() -> None:
    for sizes in ((0, 4, 8, 2), (8, 4, 0, 2), (8, 4, 8, 0), (8, 4, 8, 5), (8, 129, 8, 1)):
        with pytest.raises(InputError, match="fused experts"):
            MoEShape(*sizes)
    with pytest.raises(InputError, match="bf16"):
        KernelPlan(SHAPE, "bf16", SMALL)


def test_tiles_follow_the_rows_of_an_expert() -> None:
    shape = MoEShape(2048, 8, 512, 4)
    assert [choose_tile(shape, tokens) for tokens in (1, 32, 33, 516)] == [SMALL, SMALL, LARGE, LARGE]


def test_grids_say_what_they_do() -> None:
    assert str(Grid(4, 16, 8, 2)) == "(ceil(T*4/16)+8, 2)"
    assert str(Grid(1, 1, 0, 4)) == "(T, 4)"
    assert str(Grid(extra=8)) == "(8, 1)"
    assert Grid(4, 16, 8, 2).of(5) == (10, 2)
