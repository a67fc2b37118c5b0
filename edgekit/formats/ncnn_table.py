"""ncnn's INT8 calibration tables: the scales of each layer, as text.

One row a layer, its numbers separated by spaces: `LAYER_param_0 s0 s1 …` gives the scales of the
weights (one for each output channel, or for each group), `LAYER s` that of the activation that enters.
A scale is what ncnn multiplies by: 127 / amax. ncnn2table writes all weight rows first, then the
activations; a layer that is to stay float has neither row.
Source: https://github.com/Tencent/ncnn/wiki/quantized-int8-inference and tools/quantize/ncnn2table.cpp
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path

from edgekit.atomic import write_text
from edgekit.errors import BadInput
from edgekit.formats import ncnn_bin
from edgekit.formats.ncnn_bin import Weights
from edgekit.formats.ncnn_param import NcnnGraph

MAX_FILE_BYTES = 256 << 20
_WEIGHTS = "_param_0"
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


@dataclass(frozen=True, kw_only=True)
class Table:
    """Scales by layer name: of the weights (one per output channel or group), of the activation."""

    weights: dict[str, tuple[float, ...]] = field(default_factory=dict)
    activations: dict[str, float] = field(default_factory=dict)

    @property
    def layers(self) -> tuple[str, ...]:
        """Layers that are to be INT8: those with both rows."""
        return tuple(name for name in self.weights if name in self.activations)


def parse(text: str, where: str = "table") -> Table:
    """Parse a table, ours or the stock tool's.

    A row may also hold more numbers than it needs, as older tools wrote for activations of grouped
    convolutions: the first counts. Raises BadInput, with the line, for everything else.
    """
    weights: dict[str, tuple[float, ...]] = {}
    activations: dict[str, float] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        name, *values = words
        if not values or not all(_NUMBER.fullmatch(value) for value in values):
            raise _refused(where, number, "a row is a layer's name and its scales")
        scales = tuple(float(value) for value in values)
        if not all(math.isfinite(scale) and scale >= 0 for scale in scales):
            raise _refused(where, number, f"the scales of '{name}' must be finite and not below 0")
        layer = name.removesuffix(_WEIGHTS)
        if layer == name:
            if name in activations:
                raise _refused(where, number, f"a second row for '{name}'")
            activations[name] = scales[0]
        else:
            if layer in weights:
                raise _refused(where, number, f"a second row for '{name}'")
            weights[layer] = scales
    if not weights and not activations:
        raise _refused(where, 1, "it has no row")
    return Table(weights=weights, activations=activations)


def _refused(where: str, line: int, problem: str) -> BadInput:
    return BadInput(
        f"{where}, line {line}: {problem}.",
        hint="Give a table of ncnn2table or of edgekit (model.table).",
    )


def text_of(table: Table) -> str:
    """The table as ncnn2table lays it out: weights first, six decimals."""
    rows = [
        " ".join([layer + _WEIGHTS, *(f"{scale:f}" for scale in scales)])
        for layer, scales in table.weights.items()
    ]
    rows += [f"{layer} {scale:f}" for layer, scale in table.activations.items()]
    return "\n".join(rows) + "\n"


def read(path: Path) -> Table:
    """Read a table. Raises BadInput as `parse`, and when it cannot be read."""
    path = Path(path)
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise BadInput(f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB.")
        return parse(path.read_text(encoding="ascii"), str(path))
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not an ncnn table: it is not text.") from error
    except FileNotFoundError as error:
        raise BadInput(f"The table {path} does not exist.") from error
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror or error}.") from error


def write(table: Table, path: Path) -> None:
    """Write `table` to `path`, atomically."""
    write_text(path, text_of(table))


def of_layers(graph: NcnnGraph, weights: Weights) -> Table:
    """The table that an INT8 model was made with, read back from its layers."""
    table = Table()
    for layer, arrays in zip(graph.layers, weights, strict=True):
        if "weight" in arrays and arrays["weight"].tag == ncnn_bin.INT8 and "input_scale" in arrays:
            table.weights[layer.name] = tuple(float(s) for s in arrays["weight_scales"].values)
            table.activations[layer.name] = float(arrays["input_scale"].values[0])
    return table
