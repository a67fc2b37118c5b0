"""`python -m edgekit.builders.tensorrt_rtx_child MODEL SM OUT`: parse and build one graph, answer in JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main(model: str, sm: str, out: str) -> None:
    """Parse `model` strongly typed, build it for compute capability `sm` ("8.6"), write `out`."""
    import tensorrt_rtx_libs  # noqa: F401, I001 - loads the libraries
    import tensorrt_rtx_bindings as trt

    lines: list[str] = []
    layers: list[str] = []

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if message.startswith("Layers:"):
                layers.append(message)
            elif severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                lines.append(message)

    logger = Logger()
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    parsed = bool(parser.parse_from_file(model))
    errors = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        errors.append(f"{error.node_name() or 'node ' + str(error.node())}: {error.desc()}")
    engine = None
    if parsed:
        config = builder.create_builder_config()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, "SM" + sm.replace(".", "")), 0)
        engine = builder.build_serialized_network(network, config)
        if engine is None:
            errors += lines
    answer = {
        "version": trt.__version__,
        "parsed": parsed,
        "built": engine is not None,
        "errors": errors,
        "log": "\n".join(layers),
        "engine_bytes": 0 if engine is None else engine.nbytes,
    }
    Path(out).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
