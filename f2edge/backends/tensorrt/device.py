"""Choice of the CUDA library: pycuda where it is installed, else ``cuda-bindings``."""

from __future__ import annotations

import logging

from f2edge.backends.tensorrt.cuda import CudaDevice
from f2edge.backends.tensorrt.cuda_bindings import BindingsDevice
from f2edge.backends.tensorrt.cuda_pycuda import PycudaDevice
from f2edge.errors import BackendError

logger = logging.getLogger(__name__)


def open_device() -> CudaDevice:
    """Return the first CUDA device of this process.

    Raises:
        BackendError: neither library is installed, or there is no device; the message names the cure.
    """
    reasons = []
    for kind in (PycudaDevice, BindingsDevice):
        try:
            device: CudaDevice = kind()
        except ImportError as error:
            reasons.append(f"{kind.binding}: {error}")
            continue
        logger.info("CUDA through %s%s", device.binding, f" ({reasons[0]})" if reasons else "")
        return device
    raise BackendError(
        f"TensorRT needs pycuda or cuda-bindings, and neither can be imported ({'; '.join(reasons)}); pip install 'f2edge[tensorrt]' "
        "installs cuda-bindings, in the version of the newest CUDA: on a Jetson name the board's (docs/jetson.md)"
    )
