"""Every name of TensorRT's API that the board's adapter uses, read from its source.

By the package's own convention (edgekit/board/trt/features.py): a plain attribute exists in every
version; what came or went is asked for with `optional(owner, "NAME")` or `assign(owner, "NAME", …)`.
Objects are recognized by the names of variables, each of which stands for one class of TensorRT; a
variable that is given a TensorRT object under another name fails the test that looks for that.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "edgekit" / "board" / "trt"

# variable → class of TensorRT
CLASSES = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "config": "IBuilderConfig",
    "parser": "OnnxParser",
    "parser_error": "ParserError",
    "profile": "IOptimizationProfile",
    "timing": "ITimingCache",
    "after": "ITimingCache",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "inspector": "EngineInspector",
    "kind": "DataType",
    "flags": "BuilderFlag",
    "creation": "NetworkDefinitionCreationFlag",
    "levels": "HardwareCompatibilityLevel",
    "level": "ILogger.Severity",
    "input_tensor": "ITensor",
}
# modules of the package in which those variables hold TensorRT's objects
MODULES = ("features.py", "builder.py", "engine.py", "calibrators.py", "logger.py", "__init__.py")
# what makes an object of a class: its result must be kept under a name of CLASSES
FACTORIES = {
    "create_network": "INetworkDefinition",
    "create_builder_config": "IBuilderConfig",
    "create_optimization_profile": "IOptimizationProfile",
    "create_timing_cache": "ITimingCache",
    "get_timing_cache": "ITimingCache",
    "deserialize_cuda_engine": "ICudaEngine",
    "create_execution_context": "IExecutionContext",
    "create_engine_inspector": "EngineInspector",
    "get_error": "ParserError",
    "get_tensor_dtype": "DataType",
    "get_input": "ITensor",
    "Builder": "Builder",
    "OnnxParser": "OnnxParser",
    "Runtime": "Runtime",
}


@dataclass
class Names:
    """Dotted names below the module: those that must be everywhere, and those asked for."""

    required: set[str] = field(default_factory=set)
    optional: set[str] = field(default_factory=set)
    unnamed: list[str] = field(default_factory=list)


def collect(sources: dict[str, str] | None = None) -> Names:
    """Read the adapter's sources (file name → text; default: the package's)."""
    if sources is None:
        sources = {name: (FOLDER / name).read_text(encoding="utf-8") for name in MODULES}
    names = Names()
    for file, text in sources.items():
        _Collector(file, names).visit(ast.parse(text))
    return names


class _Collector(ast.NodeVisitor):
    def __init__(self, file: str, names: Names) -> None:
        self.file, self.names = file, names

    def dotted(self, node: ast.expr) -> str | None:
        """The dotted name below TensorRT's module that `node` stands for; None for others."""
        if isinstance(node, ast.Name):
            if node.id in ("trt", "tensorrt"):
                return ""
            return CLASSES.get(node.id)
        if isinstance(node, ast.Attribute):
            if isinstance(node.value, ast.Name) and node.value.id == "self":
                return self.dotted(ast.Name(node.attr.lstrip("_")))
            owner = self.dotted(node.value)
            return None if owner is None else f"{owner}.{node.attr}".lstrip(".")
        return None

    def visit_Attribute(self, node: ast.Attribute) -> None:
        name = self.dotted(node)
        own = isinstance(node.value, ast.Name) and node.value.id == "self"
        if name and not own:
            self.names.required.add(name)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        function = node.func.id if isinstance(node.func, ast.Name) else ""
        if function in ("optional", "assign") and len(node.args) >= 2:
            owner, name = self.dotted(node.args[0]), node.args[1]
            if owner is not None and isinstance(name, ast.Constant):
                self.names.optional.add(f"{owner}.{name.value}".lstrip("."))
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        self._kept(node.value, node.targets)
        self.generic_visit(node)

    def _kept(self, value: ast.expr, targets: list[ast.expr]) -> None:
        """A TensorRT object must be kept under the name that stands for its class."""
        if not (isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute)):
            return
        made = FACTORIES.get(value.func.attr)
        if made is None or self.dotted(value.func) is None:
            return
        for target in targets:
            name = target.id if isinstance(target, ast.Name) else getattr(target, "attr", "")
            if CLASSES.get(name.lstrip("_")) != made:
                self.names.unnamed.append(f"{self.file}: {name} = …{value.func.attr}()")
