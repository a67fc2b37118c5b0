"""Latency of an export: the float model alone, or float and INT8 taking turns in one run."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import onnx_file
from edgekit.stages.blame import slower_in_int8
from edgekit.stages.measure import MeasureOptions, ModelToTime, measure, measure_against
from edgekit.types import Engine, LatencyReport, Progress, SpeedUp

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgekit.target import Measure


def run(
    plain: Engine,
    engine: Engine | None,
    feeds: Sequence[NDArray[Any]],
    settings: Measure,
    progress: Progress,
) -> tuple[LatencyReport, LatencyReport | None, SpeedUp | None, tuple[str, ...]]:
    """(float latency, INT8 latency, speed-up of INT8, what is slower in INT8).

    `plain` is the float model, `engine` the INT8 one, None for a float target. The last is only
    looked for in ONNX Runtime, when the speed-up's interval does not lie above 1.
    """
    import numpy as np

    options = MeasureOptions.from_profile(settings)
    with tempfile.TemporaryDirectory(prefix="edgekit-measure-") as folder:
        inputs = Path(folder) / "inputs.npy"
        np.save(inputs, feeds[0])
        reference = ModelToTime(
            name="float", runtime=plain.runtime, files=plain.files, inputs=inputs
        )
        if engine is None:
            return measure(reference, options, progress), None, None, ()
        candidate = ModelToTime(
            name="int8", runtime=engine.runtime, files=engine.files, inputs=inputs
        )
        int8, timed, speedup = measure_against(candidate, reference, options, progress)
    blame: tuple[str, ...] = ()
    if speedup.low <= 1.0 and engine.runtime == plain.runtime == "onnxruntime":
        name = onnx_file.main_input(onnx_file.describe(plain.files[0])).name
        blame = slower_in_int8(plain.files[0], engine.files[0], {name: feeds[0]})
    return timed, int8, speedup, blame
