"""TensorRT on the machine that built the engine: a session over edgekit.board.trt, with numpy arrays.

An engine is opened from its bundle (any of the bundle's TensorRT files leads to it) or, where it was
built outside of one, from its own .engine or .plan file. Buffers go by tensor name, copies through
pinned memory, everything on one stream; `run` is complete on return, copies included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from edgekit.device_errors import board_errors
from edgekit.errors import BadInput, MissingDependency, NotPossible
from edgekit.manifest import MANIFEST
from edgekit.runtimes.base import SessionOptions
from edgekit.types import TensorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgekit.board.session import SessionOptions as BoardOptions
    from edgekit.board.trt.engine import EngineSession

ENGINE_SUFFIXES = (".engine", ".plan")


class TensorRtSession:
    """An engine open in TensorRT; see `Session`. `facts` says what runs it: version, GPU, flags."""

    def __init__(self, session: EngineSession) -> None:
        self._session: EngineSession | None = session
        self.facts: dict[str, Any] = session.facts
        self.inputs = tuple(_spec(item) for item in session.inputs)
        self.outputs = tuple(_spec(item) for item in session.outputs)

    def _open(self) -> EngineSession:
        if self._session is None:
            raise ValueError("the session is closed")
        return self._session

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run once; see `Session.run`."""
        import numpy as np

        session = self._open()
        self.prepare(feeds)
        with board_errors():
            session.step()
            found = session.read()
        return {
            name: np.frombuffer(tensor.data, dtype=tensor.dtype).reshape(tensor.shape)
            for name, tensor in found.items()
        }

    def prepare(self, feeds: Mapping[str, NDArray[Any]]) -> None:
        """Put `feeds` into pinned memory, for `timings` and `layer_times`. BadInput for wrong ones."""
        import numpy as np

        from edgekit.board.tensor import ITEM_BYTES, Tensor

        tensors = {}
        for name, array in feeds.items():
            if str(array.dtype) not in ITEM_BYTES:
                raise BadInput(f"The input '{name}' is {array.dtype}.")
            data = np.ascontiguousarray(array).data.cast("B")
            tensors[name] = Tensor(tuple(array.shape), str(array.dtype), data)
        with board_errors():
            self._open().prepare(tensors)

    def timings(self, runs: int) -> dict[str, list[float]]:
        """Milliseconds of `runs` inferences on what was prepared: "wall" and "gpu" (events) with copies,
        "wall_compute" and "gpu_compute" without."""
        with board_errors():
            return self._open().timings(runs)

    def device_ms(self) -> dict[str, float]:
        """Medians of `timings` on what ran last; empty before the first run."""
        with board_errors():
            return self._open().device_ms()

    def layer_times(self) -> list[tuple[str, float]]:
        """One inference on what was prepared, under TensorRT's profiler: (layer, milliseconds)."""
        with board_errors():
            return self._open().layer_times()

    def close(self) -> None:
        if self._session is not None:
            self._session.close()
        self._session = None

    def __enter__(self) -> TensorRtSession:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _spec(item: Mapping[str, Any]) -> TensorSpec:
    return TensorSpec(name=item["name"], shape=tuple(item["shape"]), dtype=item["dtype"])


def open(files: Sequence[Path], options: SessionOptions) -> TensorRtSession:
    """Open the engine that belongs to the first of `files`.

    Raises MissingDependency without TensorRT or CUDA, NotPossible where the engine was not built yet or
    is another device's, BadInput for a file that is neither an engine nor part of a bundle.
    """
    from edgekit.board.session import SessionOptions as BoardOptions

    path = Path(files[0])
    settings = BoardOptions(threads=options.threads, cuda_graph=options.cuda_graph)
    try:
        with board_errors():
            return _opened(path, settings)
    except MissingDependency as error:
        if path.suffix.lower() == ".onnx":
            raise MissingDependency(
                error.message,
                hint="The engine runs where it is built. On this machine `--runtime onnxruntime` runs "
                f"the graph that it is built from. {error.hint}",
            ) from error
        raise


def _opened(path: Path, settings: BoardOptions) -> TensorRtSession:
    from edgekit.board import trt
    from edgekit.board.manifest import BUILT, read_manifest

    if path.suffix.lower() in ENGINE_SUFFIXES and path.parent.name != BUILT:
        if not path.is_file():
            raise BadInput(f"The engine {path} does not exist.")
        return TensorRtSession(trt.open_file(path, settings))
    folder = path.absolute().parent.parent
    if not (folder / MANIFEST).is_file():
        raise NotPossible(
            f"{path.name} is what an engine is built from, and belongs to no bundle.",
            hint="`edgekit export --target jetson-int8` makes a bundle, `edgekit build` its engine.",
        )
    return TensorRtSession(trt.open_session(folder, read_manifest(folder), settings))
