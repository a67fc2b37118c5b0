"""ONNX Runtime on the CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from edgekit.errors import BadInput
from edgekit.require import require
from edgekit.runtimes.base import SessionOptions
from edgekit.types import TensorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

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


def _specs(values: Sequence[Any]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(
            name=value.name,
            shape=tuple(
                size if isinstance(size, int) else str(size or "?") for size in value.shape
            ),
            dtype=_DTYPES.get(value.type, value.type),
        )
        for value in values
    )


class OnnxRuntimeSession:
    """A model open in ONNX Runtime with the CPU execution provider.

    For a model given as bytes, `external_data` is the folder of its external data and `name` what
    errors call it.
    """

    def __init__(
        self,
        model: Path | bytes,
        options: SessionOptions,
        *,
        external_data: Path | None = None,
        name: str = "the model",
    ) -> None:
        ort = require("onnxruntime", "Running ONNX models")
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = options.threads
        settings.inter_op_num_threads = 1
        settings.log_severity_level = 3
        if not options.spinning:
            settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        settings.enable_mem_pattern = options.memory_pattern
        if not options.optimize:
            settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        if options.profile_prefix:
            settings.enable_profiling = True
            settings.profile_file_prefix = options.profile_prefix
        if external_data is not None:
            settings.add_session_config_entry(
                "session.model_external_initializers_file_folder_path", str(external_data)
            )
        if isinstance(model, Path):
            name = str(model)
            if not model.is_file():
                raise BadInput(f"The model {model} does not exist.")
        try:
            self._session = ort.InferenceSession(
                str(model) if isinstance(model, Path) else model,
                sess_options=settings,
                providers=["CPUExecutionProvider"],
            )
        # onnxruntime's exceptions share no base below RuntimeError/Exception that is public
        except Exception as error:
            if type(error).__module__.startswith("onnxruntime"):
                raise BadInput(
                    f"ONNX Runtime cannot load {name}: {_first_line(error)}",
                    hint="Check the file with `edgekit inspect`, or export it again.",
                ) from error
            raise
        self.inputs = _specs(self._session.get_inputs())
        self.outputs = _specs(self._session.get_outputs())
        self._names = [output.name for output in self.outputs]

    def run(
        self, feeds: Mapping[str, NDArray[Any]], names: Sequence[str] | None = None
    ) -> dict[str, NDArray[Any]]:
        """Run once; see `Session.run`. `names` asks for some of the outputs only."""
        wanted = self._names if names is None else list(names)
        with _refusals(feeds, self.inputs):
            values = self._session.run(wanted, dict(feeds))
        return dict(zip(wanted, values, strict=True))

    def run_into(
        self, feeds: Mapping[str, NDArray[Any]], outputs: Mapping[str, NDArray[Any]]
    ) -> None:
        """Run once and write the named outputs into the arrays given, of the right shape and type.

        Spares the allocation of outputs on every run; an output whose shape depends on the values
        cannot be written this way.
        """
        ort = require("onnxruntime", "Running ONNX models")
        binding = self._session.io_binding()
        for name, array in outputs.items():
            binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(array))
        with _refusals(feeds, self.inputs):
            for name, array in feeds.items():
                binding.bind_cpu_input(name, array)
            self._session.run_with_iobinding(binding)

    def end_profiling(self) -> Path:
        """Stop profiling and return the path of the trace that ONNX Runtime wrote."""
        return Path(self._session.end_profiling())

    def close(self) -> None:
        self._session = None

    def __enter__(self) -> OnnxRuntimeSession:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


@contextlib.contextmanager
def _refusals(feeds: Mapping[str, NDArray[Any]], inputs: Sequence[TensorSpec]) -> Iterator[None]:
    """What ONNX Runtime says of wrong inputs, as the error a user can act on."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.startswith("onnxruntime") or isinstance(error, ValueError):
            given = {name: (str(a.dtype), list(a.shape)) for name, a in feeds.items()}
            raise BadInput(
                f"ONNX Runtime refused the inputs {given}: {_first_line(error)}",
                hint=f"The model takes {[(s.name, list(s.shape)) for s in inputs]}.",
            ) from error
        raise


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def open(files: Sequence[Path], options: SessionOptions) -> OnnxRuntimeSession:
    """Open the first of `files`."""
    return OnnxRuntimeSession(files[0], options)


def open_bytes(model: bytes, options: SessionOptions) -> OnnxRuntimeSession:
    """Open a serialized model from memory."""
    return OnnxRuntimeSession(model, options)
