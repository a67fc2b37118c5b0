"""ncnn on the CPU, through its Python wheel.

The wheel keeps no reference to what it is given, checks no size and returns codes that are easily
overlooked, so that sizes are checked here and every code is looked at. The files' hashes are checked
before a model is opened: a file that does not fit its graph ends the process.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Mapping

from edgekit.board.drivers.arrays import check_feeds, to_array, to_tensor
from edgekit.board.drivers.packages import installed, load
from edgekit.board.errors import BadInput, BuildFailed
from edgekit.board.manifest import Manifest
from edgekit.board.session import Availability, SessionOptions
from edgekit.board.tensor import Tensor

NAME = "ncnn"


def available() -> Availability:
    """Whether the wheel is here."""
    return installed("ncnn")


class NcnnSession:
    """A model open in ncnn: `path` is its model.json (edgekit.formats.ncnn_json). float32, batch 1."""

    def __init__(self, path: Path, options: SessionOptions) -> None:
        ncnn = load("ncnn")
        try:
            sidecar = json.loads(path.read_text(encoding="utf-8"))
            param, weights = (
                path.parent / _plain(sidecar[key]["file"]) for key in ("param", "bin")
            )
            self._inputs = [(t["blob"], t["name"], tuple(t["shape"])) for t in sidecar["inputs"]]
            self._outputs = [(t["blob"], t["name"], tuple(t["shape"])) for t in sidecar["outputs"]]
            wanted = dict(sidecar["options"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadInput(f"{path} does not describe an ncnn model: {error}.") from error
        net = ncnn.Net()
        net.opt.num_threads = options.threads
        net.opt.openmp_blocktime = 20 if options.spinning else 0
        net.opt.use_vulkan_compute = False
        for name, value in wanted.items():
            if not hasattr(net.opt, name):
                raise BadInput(f"This ncnn has no option '{name}', which the model asks for.")
            setattr(net.opt, name, bool(value))
        for what, code in (
            (param, net.load_param(str(param))),
            (weights, net.load_model(str(weights))),
        ):
            if code != 0:
                raise BadInput(f"ncnn cannot load {what} (code {code}).")
        self._ncnn, self._net = ncnn, net
        self._feeds: list[tuple[str, Any]] = []
        self.inputs = [
            {"name": name, "shape": list(shape), "dtype": "float32"}
            for _, name, shape in self._inputs
        ]
        self.outputs = [
            {"name": name, "shape": list(shape), "dtype": "float32"}
            for _, name, shape in self._outputs
        ]
        self.facts: dict[str, Any] = {"version": str(ncnn.__version__)}

    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self.prepare(feeds)
        arrays = self._run()
        return {
            name: to_tensor(array.reshape(shape))
            for (_, name, shape), array in zip(self._outputs, arrays)
        }

    def prepare(self, feeds: Mapping[str, Tensor]) -> None:
        check_feeds(feeds, self.inputs)
        self._feeds = []
        for blob, name, shape in self._inputs:
            inner = shape[1:] if len(shape) > 1 else shape
            self._feeds.append((blob, to_array(feeds[name]).reshape(inner)))

    def step(self) -> None:
        self._run()

    def _run(self) -> list[Any]:
        import numpy

        extractor = self._net.create_extractor()
        for blob, array in self._feeds:
            # a copy that ncnn owns: a first layer that works in place would write into the array
            code = extractor.input(blob, self._ncnn.Mat(array).clone())
            if code != 0:
                raise BuildFailed(f"ncnn does not take the input '{blob}' (code {code}).")
        arrays = []
        for blob, _, _ in self._outputs:
            code, mat = extractor.extract(blob)
            if code != 0:
                raise BuildFailed(f"ncnn does not compute the blob '{blob}' (code {code}).")
            arrays.append(numpy.array(mat, dtype=numpy.float32))
        return arrays

    def close(self) -> None:
        if self._net is not None:
            self._net.clear()
        self._net = None


def _plain(name: str) -> str:
    if "/" in name or "\\" in name or name in ("", ".", ".."):
        raise ValueError(f"{name!r} is not a file beside it")
    return name


def open_session(folder: Path, manifest: Manifest, options: SessionOptions) -> NcnnSession:
    """Open the bundle's ncnn model."""
    model = next(model for model in manifest.models if model.runtime == NAME)
    path = folder / model.files[0]
    return NcnnSession(path if path.suffix == ".json" else path.with_suffix(".json"), options)
