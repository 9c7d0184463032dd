"""Memory, copies and graphs through pycuda and through cuda-bindings: the same contract on both doubles.

The real ``cuda-bindings`` are held to it too, in front of a CUDA driver of paper that is compiled here.
"""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from f2edge.backends.tensorrt.cuda import CudaDevice, Lines
from f2edge.backends.tensorrt.device import open_device
from f2edge.errors import BackendError
from tests.support.tensorrt.cuda_double import NON_BLOCKING, CudaDouble, install

ROOT = Path(__file__).parents[4]


def exercise(device: CudaDevice) -> None:
    """Every operation once; memory goes in and comes out as it should."""
    with device.current():
        free, total = device.memory()
        assert 0 < free <= total
        first, second = device.allocate(96), device.allocate(96)
        source = device.host_buffer(96)
        source.bytes[:] = np.arange(96, dtype=np.uint8)
        assert (source.address is not None) == device.integrated
        device.upload(first, source.bytes)
        device.zero(second, 96)
        device.copy_lines(Lines(second + 2, 16), Lines(first, 24), 10, 4)
        device.copy_lines(Lines(second, 16), Lines(first, 24), 0, 4)
        target = np.empty(96, dtype=np.uint8)
        device.download(target, second)
        device.synchronize()
        wanted = np.zeros(96, dtype=np.uint8)
        for line in range(4):
            wanted[16 * line + 2 : 16 * line + 12] = np.arange(24 * line, 24 * line + 10)
        assert np.array_equal(target, wanted)
        device.release(first)
        device.release(second)


@pytest.mark.parametrize("library", ["pycuda", "cuda-bindings"])
@pytest.mark.parametrize("integrated", [False, True])
def test_both_libraries_keep_the_contract(library: str, integrated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = CudaDouble(integrated=integrated)
    install(monkeypatch, cuda, library=library)
    device = open_device()
    assert (device.binding, device.name, device.capability, device.multiprocessors) == (library, "Orin", "8.7", 8)
    assert (device.cuda, device.integrated, device.stream, device.no_graphs) == ("12.6", integrated, cuda.stream, None)
    assert cuda.stream_flags == NON_BLOCKING
    exercise(device)
    with device.current():
        graph = device.capture(lambda: cuda.enqueue(cuda.stream, lambda: None))
        device.launch(graph)
        device.synchronize()
        device.destroy(graph)
        with pytest.raises(BackendError, match="CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"):
            device.capture(lambda: bool(device.allocate(8)))
        assert not cuda.error, "cleared"
        cuda.room = 1 << 20
        with pytest.raises(BackendError, match=r"no room for 2048 MiB \(.* free\)"):
            device.allocate(1 << 31)
    assert not cuda.graphs
    gc.collect()


@pytest.mark.parametrize("library", ["pycuda", "cuda-bindings"])
def test_nothing_is_allocated_in_a_capture(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = CudaDouble()
    install(monkeypatch, cuda, library=library)
    device = open_device()
    with device.current(), pytest.raises(BackendError):
        device.capture(lambda: bool(device.host_buffer(8)))
    assert cuda.invalidated == ["host memory was allocated"]


@pytest.mark.slow
def test_pinned_memory_of_cuda_bindings_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = CudaDouble(integrated=True)
    install(monkeypatch, cuda, library="cuda-bindings")
    device = open_device()
    with device.current():
        kept = device.host_buffer(64)
        for _ in range(10):
            device.host_buffer(4096)
            gc.collect()
        assert sum(map(len, cuda.blocks.values())) <= 64 + 2 * 4096
        assert kept.bytes.nbytes == 64


#: Device memory is host memory; what is asked for is done at once.
SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
typedef struct { size_t srcX, srcY; int srcType; const void *srcHost; unsigned long long srcDevice; void *srcArray; size_t srcPitch;
                 size_t dstX, dstY; int dstType; void *dstHost; unsigned long long dstDevice; void *dstArray; size_t dstPitch;
                 size_t width, height; } Copy;
int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int *version) { *version = 12060; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
int cuDeviceGetName(char *name, int length, int device) { strncpy(name, "Paper", length); return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? 8 : attribute == 76 ? 7 : attribute == 16 ? 8 : 1;
    return 0;
}
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)0xC0; return 0; }
int cuCtxPushCurrent(void *context) { return context == (void *)0xC0 ? 0 : 201; }
int cuCtxPopCurrent(void **context) { *context = (void *)0xC0; return 0; }
int cuMemGetInfo(size_t *free, size_t *total) { *free = 1 << 30; *total = 1u << 31; return 0; }
int cuMemAlloc(unsigned long long *address, size_t size) {
    if (size > 1 << 30) return 2;
    *address = (unsigned long long)malloc(size);
    return 0;
}
int cuMemFree(unsigned long long address) { free((void *)address); return 0; }
int cuMemHostAlloc(void **address, size_t size, unsigned flags) { *address = malloc(size); return flags == 2 ? 0 : 1; }
int cuMemHostGetDevicePointer(unsigned long long *address, void *host, unsigned flags) {
    *address = (unsigned long long)host;
    return 0;
}
int cuMemFreeHost(void *address) { free(address); return 0; }
int cuStreamCreate(void **stream, unsigned flags) { *stream = (void *)0x5E; return flags == 1 ? 0 : 1; }
int cuStreamSynchronize(void *stream) { return stream == (void *)0x5E ? 0 : 400; }
int cuMemcpyHtoDAsync(unsigned long long target, const void *source, size_t size, void *stream) {
    memcpy((void *)target, source, size);
    return stream == (void *)0x5E ? 0 : 400;
}
int cuMemcpyDtoHAsync(void *target, unsigned long long source, size_t size, void *stream) {
    memcpy(target, (void *)source, size);
    return stream == (void *)0x5E ? 0 : 400;
}
int cuMemsetD8Async(unsigned long long target, unsigned char value, size_t size, void *stream) {
    memset((void *)target, value, size);
    return stream == (void *)0x5E ? 0 : 400;
}
int cuMemcpy2DAsync(const Copy *copy, void *stream) {
    if (copy->srcType != 2 || copy->dstType != 2 || copy->srcX || copy->dstX || stream != (void *)0x5E) return 1;
    for (size_t line = 0; line < copy->height; line++)
        memcpy((char *)copy->dstDevice + line * copy->dstPitch, (char *)copy->srcDevice + line * copy->srcPitch, copy->width);
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
sys.modules["pycuda"] = sys.modules["pycuda.driver"] = None
from f2edge.backends.tensorrt.device import open_device
from f2edge.errors import BackendError
from tests.f2edge.backends.tensorrt.test_cuda_device import exercise
device = open_device()
exercise(device)
print(device.binding, device.name, device.capability, device.multiprocessors, device.integrated, device.cuda, device.stream)
try:
    with device.current():
        device.allocate(1 << 31)
except BackendError as error:
    print(error, "/", error.__cause__)
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler for the driver of paper")
def test_the_real_cuda_bindings_keep_it_too(tmp_path: Path) -> None:
    pytest.importorskip("cuda.bindings", reason="cuda-bindings is not installed; it is part of the dev extra on Linux")
    source, library = tmp_path / "cuda.c", tmp_path / "libcuda.so.1"
    source.write_text(SOURCE)
    subprocess.run(["cc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", str(library), str(source), "-ldl"], check=True)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False, env=environment, timeout=60, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == "cuda-bindings Paper 8.7 8 True 12.6 94"
    assert second.startswith("the GPU has no room for 2048 MiB (1024 of 2048 MiB free)")
    assert second.endswith("cuMemAlloc failed in CUDA: CUDA_ERROR_OUT_OF_MEMORY")
