"""The real ``cuda-bindings`` in front of a CUDA driver of paper: what a kernel would find in its arguments."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engines.plugins.fused_moe import SMALL, KernelPlan, MoEShape
from tests.support.tensorrt.plugin_folder import write_folder

SHAPE = MoEShape(48, 4, 40, 2)
#: Answers and prints; "kinds" says how wide each argument of a launch is.
SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int *version) { *version = 12060; return 0; }
int cuCtxGetDevice(int *device) { *device = 0; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = attribute == 75 ? 8 : attribute == 76 ? 7 : -1; return 0; }
int cuModuleLoadData(void **module, const void *image) { *module = strdup(image); return strncmp(image, "broken", 6) ? 0 : 200; }
int cuModuleGetFunction(void **function, void *module, const char *name) {
    char *text = malloc(strlen(module) + strlen(name) + 2);
    sprintf(text, "%s|%s", (char *)module, name);
    *function = text;
    return 0;
}
int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void *stream, void **arguments, void **extra) {
    printf("%s|%u %u %u|%u %u %u|%u|%p|%d|", (char *)function, gx, gy, gz, bx, by, bz, shared, stream, extra != 0);
    for (const char *kind = getenv("KINDS"); *kind; kind++, arguments++)
        if (*kind == 'p') printf("%llu ", *(unsigned long long *)*arguments);
        else printf("%d ", *(int *)*arguments);
    printf("\n");
    fflush(stdout);
    return 0;
}
int cuGetProcAddress_v2(const char *name, void **function, int version, unsigned long long flags, int *status) {
    void *library = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD);
    *function = library ? dlsym(library, name) : 0;
    if (status) *status = *function ? 0 : 1;
    return 0;
}
"""
PROGRAM = """
import sys
from pathlib import Path
from engines.plugins.fused_moe import MoEShape
from engines.plugins.fused_moe_launch import Driver
from engines.plugins.kernel_folder import KernelFolder
driver = Driver()
capability = driver.capability()
compiled, _, image = next(KernelFolder(MoEShape(48, 4, 40, 2), Path(sys.argv[1])).images(capability, "route-fp32-small"))
driver.launch(driver.load(image, compiled.kernel), compiled, (3, 2), 0x5E, (2**40 + 16, 32, 48, -7, 64, 80))
try:
    driver.load(b"broken", "route")
except RuntimeError as error:
    print(error)
"""


def test_a_launch_reaches_the_driver_as_it_was_meant(tmp_path: Path) -> None:
    pytest.importorskip("cuda.bindings", reason="cuda-bindings is not installed; it is part of the dev extra on Linux")
    write_folder(tmp_path, SHAPE, (87,))
    source, library = tmp_path / "cuda.c", tmp_path / "libcuda.so.1"
    source.write_text(SOURCE)
    subprocess.run(["cc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", str(library), str(source), "-ldl"], check=True)
    kernel = KernelPlan(SHAPE, "fp32", SMALL).kernels[0]
    kinds = "".join("p" if kind.startswith("*") else "i" for _, kind in kernel.arguments)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "KINDS": kinds}
    words = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment, timeout=60, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    launch, failure = done.stdout.splitlines()
    assert launch == "cubin 87 route-fp32-small|route|3 2 1|256 1 1|1024|0x5e|0|1099511627792 32 48 -7 64 80 "
    assert failure == "cuModuleLoadData failed in CUDA: CUDA_ERROR_INVALID_IMAGE"


def test_without_a_driver_the_reason_is_named(tmp_path: Path) -> None:
    pytest.importorskip("cuda.bindings", reason="cuda-bindings is not installed; it is part of the dev extra on Linux")
    (tmp_path / "libcuda.so.1").write_bytes(b"")  # found before any real one, and no library
    words = [sys.executable, "-c", "from engines.plugins.fused_moe_launch import Driver; Driver().capability()"]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment, timeout=60, cwd=Path(__file__).parents[2])
    assert done.returncode == 1
    assert "BackendError: cuCtxGetDevice: no usable CUDA driver" in done.stderr
