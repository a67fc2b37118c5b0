"""The ways to CUDA, tried in order, or chosen by EDGEKIT_CUDA:

ctypes         libcudart, found in CUDA's and pip's folders; needs no Python package
cuda-python    cuda.bindings.runtime (or cuda.cudart of older versions)
pycuda         pycuda.driver, on the device's primary context; never pycuda.autoinit
"""

from __future__ import annotations

import os
from typing import Sequence

from edgekit.board.errors import MissingDependency, UsageError
from edgekit.board.trt.cuda import Cuda
from edgekit.board.trt.cuda_ctypes import CtypesCuda
from edgekit.board.trt.cuda_pycuda import PyCuda
from edgekit.board.trt.cuda_python import PythonCuda

ENVIRONMENT = "EDGEKIT_CUDA"

ROUTES = {"ctypes": CtypesCuda, "cuda-python": PythonCuda, "pycuda": PyCuda}


def open_cuda(device: int = 0, routes: Sequence[str] = ()) -> Cuda:
    """CUDA through the first route that loads. Raises MissingDependency when none does, BuildFailed
    when there is no device, UsageError for an unknown name in EDGEKIT_CUDA."""
    asked = os.environ.get(ENVIRONMENT)
    names = [asked] if asked else list(routes or ROUTES)
    reasons = []
    for name in names:
        if name not in ROUTES:
            raise UsageError(f"{ENVIRONMENT}={name}", f"Known: {', '.join(ROUTES)}.")
        try:
            opened: Cuda = ROUTES[name](device=device)
            return opened
        except MissingDependency as error:
            reasons.append(f"{name}: {error.message.rstrip('.')}")
    raise MissingDependency(
        f"There is no way to CUDA's memory ({'; '.join(reasons)}).",
        "Install CUDA's runtime (libcudart), cuda-python or pycuda.",
    )
