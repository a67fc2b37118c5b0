"""One simplifier on one file: `python -m edgekit.stages.simplify_child TOOL IN OUT`.

Runs in a process of its own because these tools can crash the interpreter.
"""

from __future__ import annotations

import sys


def main(tool: str, source: str, out: str) -> None:
    """Simplify `source` with `tool` ("onnxsim" or "onnxslim") and write `out`."""
    import onnx

    model = onnx.load(source)
    if tool == "onnxsim":
        import onnxsim

        simplified, right = onnxsim.simplify(model)
        if not right:
            raise SystemExit("onnxsim's own check failed")
    elif tool == "onnxslim":
        import onnxslim

        simplified = onnxslim.slim(model)
    else:
        raise SystemExit(f"unknown simplifier {tool}")
    onnx.save(simplified, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
