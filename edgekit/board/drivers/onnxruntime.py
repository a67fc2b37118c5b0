"""ONNX Runtime on the CPU, through its Python package."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Mapping

from edgekit.board.drivers.arrays import check_feeds, to_array, to_tensor
from edgekit.board.drivers.packages import installed, load
from edgekit.board.errors import BadInput, BuildFailed
from edgekit.board.manifest import Manifest
from edgekit.board.session import Availability, SessionOptions, Spec
from edgekit.board.tensor import Tensor

NAME = "onnxruntime"

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}


def available() -> Availability:
    """Whether the Python package is here."""
    return installed("onnxruntime", "onnxruntime", "onnxruntime-gpu", "onnxruntime-silicon")


class OnnxRuntimeSession:
    """A model open in ONNX Runtime with the CPU execution provider."""

    def __init__(self, path: Path, options: SessionOptions) -> None:
        onnxruntime = load("onnxruntime")
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = options.threads
        settings.inter_op_num_threads = 1
        settings.log_severity_level = 3
        if not options.spinning:
            settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            session = onnxruntime.InferenceSession(
                str(path), sess_options=settings, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its exceptions share no public base below Exception
            if type(error).__module__.startswith("onnxruntime"):
                raise BadInput(f"ONNX Runtime cannot load {path}: {_line(error)}") from error
            raise
        self._session: Any = session
        self.inputs = _specs(session.get_inputs())
        self.outputs = _specs(session.get_outputs())
        self._names = [spec["name"] for spec in self.outputs]
        self._feeds: dict[str, Any] = {}
        self.facts: dict[str, Any] = {
            "version": str(onnxruntime.__version__),
            "provider": "CPUExecutionProvider",
        }

    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self.prepare(feeds)
        return dict(zip(self._names, map(to_tensor, self._run())))

    def prepare(self, feeds: Mapping[str, Tensor]) -> None:
        check_feeds(feeds, self.inputs)
        self._feeds = {name: to_array(tensor) for name, tensor in feeds.items()}

    def step(self) -> None:
        self._session.run(self._names, self._feeds)

    def _run(self) -> list[Any]:
        try:
            values: list[Any] = self._session.run(self._names, self._feeds)
        except Exception as error:
            if type(error).__module__.startswith("onnxruntime"):
                raise BuildFailed(f"ONNX Runtime cannot run the model: {_line(error)}") from error
            raise
        return values

    def close(self) -> None:
        self._session = None


def _specs(values: Any) -> list[Spec]:
    return [
        {
            "name": value.name,
            "shape": [size if isinstance(size, int) else str(size or "?") for size in value.shape],
            "dtype": _DTYPES.get(value.type, value.type),
        }
        for value in values
    ]


def _line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def open_session(folder: Path, manifest: Manifest, options: SessionOptions) -> OnnxRuntimeSession:
    """Open the first file of the bundle's ONNX Runtime model."""
    model = next(model for model in manifest.models if model.runtime == NAME)
    return OnnxRuntimeSession(folder / model.files[0], options)
