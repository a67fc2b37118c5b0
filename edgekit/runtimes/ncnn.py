"""ncnn on the CPU, through its Python binding.

The binding keeps no reference to what it is given, checks no size and returns codes that are easily
overlooked; a file that does not fit its graph ends the process. So everything is checked here before
ncnn sees it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from edgekit.atomic import sha256_file
from edgekit.errors import BadInput, BuildFailed
from edgekit.formats import ncnn_bin, ncnn_json, ncnn_param
from edgekit.formats.ncnn_json import File, Sidecar, Tensor
from edgekit.formats.ncnn_param import NcnnGraph
from edgekit.require import require
from edgekit.runtimes.base import SessionOptions
from edgekit.types import TensorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray


def unknown_layers(graph: NcnnGraph) -> list[str]:
    """Types of the graph's layers that the installed ncnn does not have, sorted."""
    ncnn = require("ncnn", "Running ncnn models")
    return sorted({x.type for x in graph.layers if ncnn.layer_to_index(x.type) < 0})


class NcnnSession:
    """A model open in ncnn: `path` is its model.json.

    One image at a time, float32; inputs and outputs have the names and shapes of the ONNX model, the
    batch included. `observe` names blobs that `run` can be asked for by name, beside the outputs.
    """

    def __init__(self, path: Path, options: SessionOptions, *, observe: Sequence[str] = ()) -> None:
        ncnn = require("ncnn", "Running ncnn models")
        sidecar = ncnn_json.read(path)
        param, weights = (_checked(path.parent, item) for item in (sidecar.param, sidecar.bin))
        graph = ncnn_param.read(param)
        ncnn_bin.read(weights, graph)
        _check_names(path, sidecar, graph, observe)
        unknown = unknown_layers(graph)
        if unknown:
            raise BadInput(
                f"{param}: this ncnn has no layer {', '.join(unknown)}.",
                hint=f"The model was made for ncnn {sidecar.versions.get('ncnn', '?')}.",
            )
        self._net = _configured(ncnn, sidecar.options, options)
        for what, code in (
            (param, self._net.load_param(str(param))),
            (weights, self._net.load_model(str(weights))),
        ):
            if code != 0:
                raise BadInput(f"ncnn cannot load {what} (code {code}).")
        self._ncnn, self._graph = ncnn, graph
        self._inputs, self._outputs = sidecar.inputs, sidecar.outputs
        self._light = not observe
        self.inputs = tuple(_spec(tensor) for tensor in sidecar.inputs)
        self.outputs = tuple(_spec(tensor) for tensor in sidecar.outputs)

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run once; see `Session.run`. Raises BuildFailed when ncnn does not compute an output."""
        extractor = self._fed(feeds)
        return {t.name: self._extract(extractor, t.blob).reshape(t.shape) for t in self._outputs}

    def run_blobs(
        self, feeds: Mapping[str, NDArray[Any]], blobs: Sequence[str]
    ) -> dict[str, NDArray[Any]]:
        """Run once and return these blobs, which were named on opening; shapes without the batch."""
        extractor = self._fed(feeds)
        return {blob: self._extract(extractor, blob) for blob in blobs}

    def layer_times(
        self, feeds: Mapping[str, NDArray[Any]]
    ) -> list[tuple[str, str, tuple[str, ...], float]]:
        """Run once, layer by layer: (type, name, output blobs, milliseconds) of each.

        Blobs are asked for in running order and as ncnn holds them (packed, in its own precision), so
        that each call computes one layer more. Layers that work in place copy their input here: to be
        opened with `observe`, which keeps every blob.
        """
        import time

        extractor = self._fed(feeds)
        times = []
        for layer in self._graph.layers:
            started = time.perf_counter_ns()
            for blob in layer.outputs:
                code, _ = extractor.extract(blob, 1)
                if code != 0:
                    raise BuildFailed(f"ncnn does not compute the blob '{blob}' (code {code}).")
            elapsed_ms = (time.perf_counter_ns() - started) / 1e6
            times.append((layer.type, layer.name, layer.outputs, elapsed_ms))
        return times

    def _fed(self, feeds: Mapping[str, NDArray[Any]]) -> Any:
        """An extractor with its inputs."""
        import numpy as np

        if self._net is None:
            raise ValueError("the session is closed")
        given = {name: (str(array.dtype), list(array.shape)) for name, array in feeds.items()}
        wanted = {tensor.name: ("float32", list(tensor.shape)) for tensor in self._inputs}
        if given != wanted:
            raise BadInput(
                f"The ncnn model does not take the inputs {given}.",
                hint=f"It takes {wanted}: ncnn models are made for one size.",
            )
        extractor = self._net.create_extractor()
        extractor.set_light_mode(self._light)
        for tensor in self._inputs:
            array = np.ascontiguousarray(feeds[tensor.name].reshape(tensor.inner))
            # a copy that ncnn owns: the binding keeps no reference to the array, and a first layer
            # that works in place would write into it, or crash on memory that is not ncnn's
            code = extractor.input(tensor.blob, self._ncnn.Mat(array).clone())
            if code != 0:
                raise BuildFailed(f"ncnn does not take the input '{tensor.blob}' (code {code}).")
        return extractor

    def _extract(self, extractor: Any, blob: str) -> NDArray[Any]:
        import numpy as np

        code, mat = extractor.extract(blob)
        if code != 0:
            raise BuildFailed(
                f"ncnn does not compute the blob '{blob}' (code {code}).",
                hint="Out of memory, or a layer that does not take this shape.",
            )
        result: NDArray[Any] = np.array(mat, dtype=np.float32)
        return result

    def close(self) -> None:
        if self._net is not None:
            self._net.clear()
        self._net = None

    def __enter__(self) -> NcnnSession:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _checked(folder: Path, item: File) -> Path:
    """The file that the sidecar names, when it is the one."""
    path = folder / item.file
    if not path.is_file():
        raise BadInput(
            f"The ncnn model's {path} does not exist.",
            hint="Keep model.json, model.param and model.bin together.",
        )
    if path.stat().st_size != item.size or sha256_file(path) != item.sha256:
        raise BadInput(
            f"{path} is not the file that was exported with its model.json.",
            hint="Copy the bundle again, or export it again.",
        )
    return path


def _check_names(path: Path, sidecar: Sidecar, graph: NcnnGraph, observe: Sequence[str]) -> None:
    blobs = set(graph.blobs)
    if {tensor.blob for tensor in sidecar.inputs} != set(graph.inputs):
        raise BadInput(f"{path}: its inputs are not those of its .param.")
    for blob in (*(tensor.blob for tensor in sidecar.outputs), *observe):
        if blob not in blobs:
            raise BadInput(f"{path}: its .param has no blob '{blob}'.")


def _configured(ncnn: Any, wanted: Mapping[str, bool], options: SessionOptions) -> Any:
    """A net whose options are set, which must be before anything is loaded."""
    net = ncnn.Net()
    net.opt.num_threads = options.threads
    # milliseconds that OpenMP's threads wait busily after a parallel region
    net.opt.openmp_blocktime = 20 if options.spinning else 0
    net.opt.use_vulkan_compute = False
    for name, value in wanted.items():
        if not hasattr(net.opt, name):
            raise BadInput(
                f"This ncnn has no option '{name}', which the model asks for.",
                hint="Install the version that made it: see 'versions' in model.json.",
            )
        setattr(net.opt, name, value)
    return net


def _spec(tensor: Tensor) -> TensorSpec:
    return TensorSpec(name=tensor.name, shape=tensor.shape, dtype="float32")


def open(files: Sequence[Path], options: SessionOptions) -> NcnnSession:
    """Open the model whose model.json is the first of `files`, or lies beside it."""
    path = Path(files[0])
    return NcnnSession(path if path.suffix == ".json" else path.with_suffix(".json"), options)
