"""Calibrators for implicit quantization: scales from the bundle's cache, or images for TensorRT to count.

Given a cache, TensorRT never asks for a batch. An exception inside of a calibrator's method would have
to pass through TensorRT's C++ code; it is kept here and raised when the build has returned.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Sequence

from edgekit.board.errors import DeviceError, NotPossible
from edgekit.board.npy import read_npy
from edgekit.board.trt.cuda import Cuda
from edgekit.board.trt.features import cache_stamp, optional

BASES = {"entropy": "IInt8EntropyCalibrator2", "minmax": "IInt8MinMaxCalibrator"}
"""Method → TensorRT's class; the name of its algorithm stands in a cache's first line."""


def stamped(cache: bytes, version: str) -> bytes:
    """`cache` with the digits of TensorRT `version` in its first line: a cache of another version only
    brings a warning, one of this version none."""
    first, newline, rest = cache.partition(b"\n")
    parts = first.split(b"-", 2)
    if len(parts) != 3 or parts[0] != b"TRT":
        raise NotPossible(
            "The calibration cache does not begin with TRT-VERSION-ALGORITHM.",
            "Export the bundle again.",
        )
    return b"-".join([b"TRT", cache_stamp(version).encode(), parts[2]]) + newline + rest


def make(
    trt: Any,
    method: str,
    cache: bytes | None,
    batches: Sequence[Path] = (),
    cuda: Cuda | None = None,
) -> Any:
    """A calibrator of TensorRT's class for `method`, with `failure` (an exception or None) and `written`.

    `cache` is read by TensorRT as it is but for the version's digits. Without one the files `batches`
    (.npy, one batch each, all of one shape) are copied to the device by `cuda` and handed over one
    after the other; `written` then holds the cache that TensorRT made of them. Raises NotPossible
    where this TensorRT has no such class.
    """
    base = {
        "entropy": optional(trt, "IInt8EntropyCalibrator2"),
        "minmax": optional(trt, "IInt8MinMaxCalibrator"),
    }[method]
    if base is None:
        raise NotPossible(
            f"TensorRT {trt.__version__} has no {BASES[method]}.", "Use --method qdq."
        )
    given = None if cache is None else stamped(cache, str(trt.__version__))

    class Calibrator(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            base.__init__(self)
            self.failure: BaseException | None = None
            self.written: bytes | None = None
            self.asked = 0
            self._pointer = 0
            self._bytes = 0

        def get_batch_size(self) -> int:
            return 1

        def get_batch(self, names: Sequence[str]) -> Any:
            """Device pointers of the next batch, None when there is none (or after a failure)."""
            if self.failure is not None or self.asked >= len(batches):
                return None
            try:
                pointers = [self._copied(batches[self.asked])]
                if len(names) != 1:
                    raise NotPossible(f"The network has {len(names)} inputs, not one.")
                self.asked += 1
                return pointers
            except BaseException as error:
                self.failure = error
                return None

        def _copied(self, path: Path) -> int:
            if cuda is None:
                raise NotPossible("Batches were given, but no way to CUDA's memory.")
            tensor = read_npy(path)
            size = memoryview(tensor.data).nbytes
            if not self._pointer:
                self._pointer, self._bytes = cuda.malloc(size), size
            if size != self._bytes:
                raise NotPossible(
                    f"{path.name} has {size} bytes, the batches before {self._bytes}."
                )
            cuda.write(self._pointer, tensor.data)
            return self._pointer

        def read_calibration_cache(self) -> bytes | None:
            """The bundle's scales; None makes TensorRT ask for batches."""
            return given

        def write_calibration_cache(self, cache: Any) -> None:
            try:
                self.written = bytes(memoryview(cache))
            except BaseException as error:
                self.failure = error

        def release(self) -> None:
            """Give the batch's memory back."""
            if self._pointer and cuda is not None:
                cuda.free(self._pointer)
            self._pointer = 0

    calibrator = Calibrator()
    if given is None and not batches:
        raise NotPossible(
            f"The bundle has neither a calibration cache for {method} nor batches.",
            "Export it again, or use --method qdq.",
        )
    return calibrator


def demand_no_failure(calibrator: Any) -> None:
    """Raise what went wrong inside of the calibrator, as the build's error."""
    failure = None if calibrator is None else calibrator.failure
    if failure is None:
        return
    if isinstance(failure, DeviceError) or not isinstance(failure, Exception):
        raise failure  # an interruption stays one
    raise NotPossible(f"Calibration failed: {type(failure).__name__}: {failure}.") from failure
