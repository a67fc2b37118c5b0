"""Latency of an export: the float model alone, or float and INT8 taking turns in one run."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import onnx_file
from edgekit.stages.blame import slower_in_int8
from edgekit.stages.measure import MeasureOptions, ModelToTime, measure, measure_against
from edgekit.types import Engine, LatencyReport, OnnxModel, Progress, SpeedUp

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgekit.target import Measure


def run(
    float_model: OnnxModel,
    engine: Engine | None,
    feeds: Sequence[NDArray[Any]],
    settings: Measure,
    progress: Progress,
) -> tuple[LatencyReport, LatencyReport | None, SpeedUp | None, tuple[str, ...]]:
    """(float latency, INT8 latency, speed-up of INT8, what is slower in INT8).

    `engine` is the INT8 model, None for a float target. The last is only looked for when the
    speed-up's interval does not lie above 1.
    """
    import numpy as np

    name = onnx_file.main_input(float_model).name
    options = MeasureOptions.from_profile(settings)
    with tempfile.TemporaryDirectory(prefix="edgekit-measure-") as folder:
        inputs = Path(folder) / "inputs.npy"
        np.save(inputs, feeds[0])
        reference = ModelToTime(
            name="float", runtime="onnxruntime", files=(float_model.path,), inputs=inputs
        )
        if engine is None:
            return measure(reference, options, progress), None, None, ()
        candidate = ModelToTime(
            name="int8", runtime=engine.runtime, files=engine.files, inputs=inputs
        )
        int8, plain, speedup = measure_against(candidate, reference, options, progress)
    blame: tuple[str, ...] = ()
    if speedup.low <= 1.0 and engine.runtime == "onnxruntime":
        blame = slower_in_int8(float_model.path, engine.files[0], {name: feeds[0]})
    return plain, int8, speedup, blame
