"""ONNX Runtime with a view inside: intermediate tensors of a graph as outputs of a session.

A tensor that is a graph output is never fused away, so with all graph optimizations on what is
observed are the real values of the float model, at close to its real speed (NCHWc convolutions
included; switching the optimizations off takes 1.2 times as long).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from edgekit import onnx_file
from edgekit.errors import UsageError, nearest
from edgekit.runtimes.base import SessionOptions
from edgekit.runtimes.onnxruntime import OnnxRuntimeSession
from edgekit.types import TensorSpec

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

_FLOATS = frozenset({"float32", "float16", "float64"})

# what these make are shapes and constants, whatever they read
_NOT_DATA = frozenset({"Constant", "Shape", "Size"})


def _element_types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every value whose type is known or can be inferred; 0 for non-tensors."""
    import onnx

    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=False).graph
    return {
        value.name: value.type.tensor_type.elem_type
        for values in (inferred.value_info, inferred.output, inferred.input)
        for value in values
        if value.HasField("type")
    }


def float_activations(model: onnx.ModelProto) -> tuple[str, ...]:
    """Every floating-point tensor of the main graph that depends on an input, in graph order.

    Constants and what is computed from shapes alone are left out, and so is the inside of If, Loop
    and Scan bodies (their results are part of the main graph). Tensors whose type cannot be inferred
    are included: the session knows it.
    """
    from onnx import TensorProto

    wanted = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE}
    types = _element_types(model)
    graph = model.graph
    constants = {item.name for item in graph.initializer}
    constants.update(item.values.name for item in graph.sparse_initializer)
    alive = {value.name for value in graph.input if value.name not in constants}
    names = {value.name: None for value in graph.input if value.name in alive}
    for node in graph.node:
        reads = {*node.input, *_captured(node)}
        if node.op_type in _NOT_DATA or not reads & alive:
            continue
        alive.update(name for name in node.output if name)
        names.update((name, None) for name in node.output if name)
    return tuple(name for name in names if name not in types or types[name] in wanted)


def _captured(node: onnx.NodeProto) -> set[str]:
    """Names that a node's subgraphs may read from the graph around them."""
    found: set[str] = set()
    for attribute in node.attribute:
        for body in [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]:
            for inner in body.node:
                found.update(inner.input)
                found.update(_captured(inner))
    return found


class ObservedModel:
    """An ONNX model opened so that `tensors` can be read after every run.

    `tensors` None observes every float activation; of a list, what is a constant, made of shapes, or
    not floating-point is left out. Attribute `tensors`: the names that are read, in graph order,
    inputs of the model included; `inputs`: what must be fed.
    Raises BadInput for a file that does not load, UsageError for a tensor that the main graph does
    not have.
    """

    def __init__(self, path: Path, tensors: Sequence[str] | None, options: SessionOptions) -> None:
        path = Path(path)
        model = onnx_file.load(path, external_data=False)
        everything = float_activations(model)
        if tensors is None:
            chosen = everything
        else:
            usable = set(everything)
            for name in tensors:
                if name in usable:
                    continue
                _check_exists(name, everything, model, path)
            asked = set(tensors)
            chosen = tuple(name for name in everything if name in asked)
        fed = {value.name for value in model.graph.input}
        present = {value.name for value in model.graph.output}
        import onnx

        for name in chosen:
            if name not in fed and name not in present:
                # without a type: ONNX Runtime infers it
                model.graph.output.append(onnx.ValueInfoProto(name=name))
        self._session = OnnxRuntimeSession(
            model.SerializeToString(), options, external_data=path.absolute().parent, name=str(path)
        )
        types = {spec.name: spec.dtype for spec in self._session.outputs}
        types.update((spec.name, spec.dtype) for spec in self._session.inputs)
        self.inputs: tuple[TensorSpec, ...] = self._session.inputs
        self.tensors = tuple(name for name in chosen if types.get(name) in _FLOATS)
        self._read = [name for name in self.tensors if name not in fed]
        specs = {spec.name: spec for spec in self._session.outputs}
        self._specs = [specs[name] for name in self._read]
        # ONNX Runtime gives an unknown rank as no dimensions, like a scalar's
        self._fixed = bool(self._specs) and all(s.is_static and s.shape for s in self._specs)
        self._buffers: dict[int, dict[str, NDArray[Any]]] = {}

    def run(self, feeds: Mapping[str, NDArray[Any]], slot: int = 0) -> dict[str, NDArray[Any]]:
        """Run once; every observed tensor by name. Raises BadInput for wrong feeds.

        The arrays belong to `slot` and are written again by the next run with the same slot: memory
        stays the same from run to run. (Where a shape is not known beforehand, they are new.)
        """
        found: dict[str, NDArray[Any]] = {}
        if self._fixed:
            found = self._slot(slot)
            try:
                self._session.run_into(feeds, found)
            except RuntimeError as error:
                # the file can state a shape that is not what comes out
                if "computed output shape" not in str(error):
                    raise
                self._fixed = False
        if not self._fixed and self._read:
            found = self._session.run(feeds, self._read)
        return {name: feeds[name] if name in feeds else found[name] for name in self.tensors}

    def _slot(self, slot: int) -> dict[str, NDArray[Any]]:
        import numpy as np

        if slot not in self._buffers:
            self._buffers[slot] = {
                spec.name: np.empty([int(size) for size in spec.shape], dtype=spec.dtype)
                for spec in self._specs
            }
        return self._buffers[slot]

    def close(self) -> None:
        self._session.close()
        self._buffers.clear()

    def __enter__(self) -> ObservedModel:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _check_exists(name: str, known: Sequence[str], model: onnx.ModelProto, path: Path) -> None:
    graph = model.graph
    if any(name == item.name for item in graph.initializer):
        return
    if not any(name in node.output for node in graph.node):
        raise UsageError(
            f"The main graph of {path} has no tensor '{name}'.", hint=nearest(name, list(known))
        )
