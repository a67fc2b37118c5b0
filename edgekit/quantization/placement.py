"""Which nodes compute in INT8 and which tensors carry integers: rules about structure, never names.

Two questions, asked of the prepared graph:

- before calibration: which tensors might carry integers (`observed`);
- with their ranges: which do (`place`).

A *compute* node (Conv, Gemm, MatMul with constant weights) is worth integers by itself. A *follow*
node (MaxPool, Concat, Add, …) only carries them through: it becomes INT8 when everything it reads
is quantized anyway and something behind it wants integers. What a fused activation (Relu, Clip)
makes is quantized behind the activation.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgekit.quantization import existing, operands
from edgekit.quantization.macs import graph_macs
from edgekit.quantization.rules import (
    FUSED_ACTIVATIONS,
    Rules,
    can_compute,
    compute_nodes,
    data_inputs,
    fused_output,
    is_constant,
    is_float,
    resize_keeps_values,
    results,
    shares_scale,
)
from edgekit.types import Range

MIXED_RANGES = frozenset({"Concat", "Add"})
"""Operators that join tensors: one scale for inputs of very different range loses the small one."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """The decision: node names that compute or carry INT8, with the tensors that get QDQ.

    `tensors` maps a tensor's name to the name of the tensor whose range it takes (itself, unless it
    shares a scale). `floats` maps each compute node left float to the reason. `operands_only`: QDQ
    is for the nodes named here; everybody else reads the tensors in float.
    """

    compute: tuple[str, ...]
    carry: tuple[str, ...]
    tensors: dict[str, str]
    floats: dict[str, str] = field(default_factory=dict)
    macs: dict[str, int] = field(default_factory=dict)
    operands_only: bool = False

    @property
    def int8_mac_share(self) -> float:
        """Share of the counted MACs that INT8 nodes compute."""
        total = sum(self.macs.values())
        return sum(self.macs.get(name, 0) for name in self.compute) / total if total else 0.0


def _range_source(value: Any) -> Any:
    """The tensor whose range holds every value of `value`: back through operators that move values."""
    producer = value.producer()
    while producer is not None and shares_scale(producer):
        value = data_inputs(producer)[0] if data_inputs(producer) else value
        if value.producer() is producer:
            break
        producer = value.producer()
    return value


def _has_range(value: Any, ranges: Mapping[str, Range]) -> bool:
    """Whether it is known what `value` is quantized with: by calibration, or by the graph itself."""
    source = _range_source(value)
    return (
        existing.is_settled(value)
        or source.name in ranges
        or existing.fixed_params(source) is not None
    )


def _has_compute_behind(graph: Any, rules: Rules) -> dict[Any, bool]:
    """For each node, whether a compute node reads its result, directly or through others."""
    behind: dict[Any, bool] = {}
    for node in reversed(list(graph)):
        readers = {use.node for output in node.outputs for use in output.uses()}
        behind[node] = any(
            reader.op_type in rules.operators or behind.get(reader, False) for reader in readers
        )
    return behind


def observed(model: Any, rules: Rules) -> tuple[str, ...]:
    """Names of all tensors that may need a range under any choice of float nodes; graph order.

    What an operator moves needs no range of its own, and what no compute node lies behind is never
    carried in integers: leaving both out nearly halves the cost of calibrating a detector. Nor does
    what the graph quantizes already, or hands to a quantizer through operators that only move values.
    """
    graph = model.graph
    names: dict[str, None] = {}
    behind = _has_compute_behind(graph, rules)

    def add(value: Any) -> None:
        if value is not None and not is_constant(value) and is_float(value):
            source = _range_source(value)
            if source.name and not any(map(_is_settled_behind, (value, source))):
                names.setdefault(source.name)

    for node in graph:
        if node.op_type in rules.operators and not can_compute(node, rules):
            add(node.inputs[0])
            if not rules.operands_only:
                add(fused_output(node, rules))
        elif node.op_type in rules.follow and behind[node]:
            if _is_fused_and_settled(node, rules):
                continue
            for value in data_inputs(node):
                add(value)
            for value in results(node, rules):
                add(value)
    return tuple(names)


def _is_settled_behind(value: Any) -> bool:
    """Whether `value`, or all that moving operators make of it, has a quantizer."""
    if existing.is_settled(value):
        return True
    readers = [use.node for use in value.uses()]
    return bool(readers) and all(
        shares_scale(reader) and all(_is_settled_behind(made) for made in reader.outputs)
        for reader in readers
    )


def _is_fused_and_settled(node: Any, rules: Rules) -> bool:
    """Whether `node` is an activation inside of a quantized layer: nobody sees the value before it."""
    maker = node.inputs[0].producer() if node.op_type in FUSED_ACTIVATIONS else None
    return (
        maker is not None
        and results(maker, rules) == [node.outputs[0]]
        and existing.is_settled(node.outputs[0])
    )


def every_activation(model: Any) -> dict[str, str]:
    """Every float activation of the main graph → the tensor whose range holds its values; graph order.

    Graph inputs come first; what an operator only moves takes the range of what it moved. Constants
    and what is computed from constants and shapes alone are left out.
    """
    graph = model.graph
    alive = {value for value in graph.inputs if not is_constant(value) and is_float(value)}
    owners = {value.name: value.name for value in graph.inputs if value in alive}
    for node in graph:
        if not any(value in alive for value in node.inputs):
            continue
        for output in node.outputs:
            if output.name and is_float(output) and output.dtype is not None:
                alive.add(output)
                owners[output.name] = _range_source(output).name
    return owners


def place(
    model: Any, rules: Rules, ranges: Mapping[str, Range], keep: Collection[str] = ()
) -> Placement:
    """Decide. `keep` names nodes that must stay float; nodes without ranges stay float too."""
    graph = model.graph
    macs = graph_macs(graph)
    chosen, floats = compute_nodes(graph, rules, keep, macs)
    wanted: set[Any] = set()
    produced: set[Any] = set()
    compute = []
    for node in chosen:
        source, result = node.inputs[0], fused_output(node, rules)
        read = [source] if rules.operands_only else [source, result]
        missing = [value.name for value in read if not _has_range(value, ranges)]
        if missing:
            floats[node.name] = f"no calibrated range for '{missing[0]}'"
            continue
        wanted.add(source)
        if not rules.operands_only:
            produced.add(result)
        compute.append(node)

    if rules.operands_only:
        carry, carried_values = operands.carried(
            graph,
            [node for node in graph if node.op_type in rules.follow and node.name not in keep],
            compute,
            wanted,
            moves=lambda node: shares_scale(node),
            known=lambda value: _has_range(value, ranges),
        )
        tensors = wanted | carried_values
    else:
        carry = _carried(graph, rules, ranges, keep, wanted, produced)
        tensors = wanted | produced
        for node in carry:
            tensors.update(data_inputs(node))
            tensors.update(results(node, rules))
    # what has a scale keeps it, and gets no second one
    tensors = {value for value in tensors if not existing.is_settled(value)}
    return Placement(
        compute=tuple(node.name for node in compute),
        carry=tuple(node.name for node in carry),
        tensors=_scale_owners(graph, tensors, ranges, carry if "concat" in rules.forms else ()),
        floats=floats,
        macs=macs,
        operands_only=rules.operands_only,
    )


def _carried(
    graph: Any,
    rules: Rules,
    ranges: Mapping[str, Range],
    keep: Collection[str],
    wanted: set[Any],
    produced: set[Any],
) -> list[Any]:
    """Follow nodes that carry integers: all inputs quantized, and integers wanted behind them."""
    have = wanted | produced
    have.update(
        value
        for node in graph
        for value in node.outputs
        if existing.fixed_params(value) is not None
    )
    tentative: list[Any] = []
    for node in graph:
        if node.op_type not in rules.follow or node.name in keep:
            continue
        inputs = data_inputs(node)
        if not inputs or any(value not in have for value in inputs):
            continue
        if node.op_type == "Resize" and not resize_keeps_values(node):
            continue
        if node.op_type in ("Add", "Mul", "Sub") and len(inputs) != 2:
            continue
        made = results(node, rules)
        if not all(existing.is_settled(v) or _has_range(v, ranges) for v in made):
            continue
        if (
            node.op_type in MIXED_RANGES
            and _ratio(inputs, ranges) > rules.max_range_ratio
            and any(_read_as_float(value, rules) for value in made)
        ):
            continue
        tentative.append(node)
        have.update(made)

    kept: list[Any] = []
    demanded = set(wanted)
    for node in reversed(tentative):
        if demanded.intersection(results(node, rules)):
            kept.append(node)
            demanded.update(data_inputs(node))
    return kept[::-1]


def _read_as_float(value: Any, rules: Rules) -> bool:
    """Whether somebody reads `value` who never takes integers, or it is an output of the graph.

    Where only integer operators read a join, its one scale is what they are fed with in any case.
    """
    integer = (*rules.operators, *rules.follow)
    return value.is_graph_output() or any(use.node.op_type not in integer for use in value.uses())


def _ratio(values: list[Any], ranges: Mapping[str, Range]) -> float:
    sources = [_range_source(value).name for value in values]
    spans = [ranges[name].amax for name in sources if name in ranges]
    spans = [span for span in spans if span > 0]
    return max(spans) / min(spans) if len(spans) > 1 else 1.0


def _scale_owners(
    graph: Any, tensors: set[Any], ranges: Mapping[str, Range], joining: Collection[Any] = ()
) -> dict[str, str]:
    """Map each quantized tensor to the tensor whose range it takes.

    A value-moving operator's outputs take the range of its input, whether it carries integers (then
    it must) or not (then nothing better is known). What only a Concat of `joining` reads takes the
    Concat's range: it would be rounded to that a second time, and equal scales are only copied.
    """
    owners = {value.name: _range_source(value).name for value in tensors}
    for node in reversed(list(joining)):
        owner = owners.get(node.outputs[0].name)
        if node.op_type != "Concat" or owner is None or owner not in ranges:
            continue
        for value in data_inputs(node):
            lonely = {use.node for use in value.uses()} == {node} and not value.is_graph_output()
            if lonely and owners.get(value.name) == value.name and value.producer() is not None:
                owners[value.name] = owner
    order = {value.name: None for value in graph.inputs}
    for node in graph:
        for output in node.outputs:
            order[output.name] = None
    fixed = existing.fixed_tensors(graph)
    return {
        name: owners[name]
        for name in order
        if name in owners and (owners[name] in ranges or owners[name] in fixed)
    }
