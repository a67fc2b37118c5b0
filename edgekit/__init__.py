"""edgekit: from a compressed vision checkpoint to a verified, measured INT8 bundle for an edge board.

`edgekit.load(model)` opens a bundle, an ONNX file or a checkpoint for prediction; see docs/python.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgekit.pipeline.model import ClassificationResult, Detection, DetectionResult, Model, load

__version__ = "0.1.0"
__all__ = ["ClassificationResult", "Detection", "DetectionResult", "Model", "__version__", "load"]


def __getattr__(name: str) -> Any:
    # `import edgekit` stays light: what runs models is imported when it is asked for (PEP 562)
    if name in __all__:
        import importlib

        return getattr(importlib.import_module("edgekit.pipeline.model"), name)
    raise AttributeError(f"module 'edgekit' has no attribute '{name}'")
