"""A prepared float graph, ranges and rules become a QDQ graph: forms, placement, insertion, forms."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from edgekit.quantization import forms, integer_forms
from edgekit.quantization.placement import Placement, place
from edgekit.quantization.qdq import insert
from edgekit.quantization.rules import Rules
from edgekit.quantization.scheme import Scheme
from edgekit.types import Range

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def placed(
    model: Any, rules: Rules, ranges: Mapping[str, Range], keep: Collection[str] = ()
) -> Placement:
    """The placement in the forms that `rules` ask for; `model` (onnx_ir.Model) takes the float ones."""
    forms.take(model, rules.forms)
    return place(model, rules, ranges, keep)


def quantized(
    model: Any,
    rules: Rules,
    ranges: Mapping[str, Range],
    scheme: Scheme,
    keep: Collection[str] = (),
    means: Mapping[str, NDArray[np.float64]] | None = None,
) -> Placement:
    """Turn `model` (onnx_ir.Model, changed in place) into its QDQ graph; return what was placed where.

    `keep` names nodes that stay float; `means` corrects biases, see `qdq.insert`.
    """
    placement = placed(model, rules, ranges, keep)
    insert(model, placement, ranges, scheme, means)
    integer_forms.take(model, placement, rules.forms)
    return placement
