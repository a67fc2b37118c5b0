"""The parts of the report that are worked out anew: layers, losses, tensors, answers on samples.

All of them run on the bundle's golden samples, so the page shows what the board is checked with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.golden import read_image, read_npy
from edgekit.manifest import Manifest
from edgekit.metrics.postprocess import Detections, Suppression
from edgekit.pipeline.profile import layer_times
from edgekit.preprocess import fit
from edgekit.report.bundle_report import (
    BoxMark,
    LayerLine,
    OperatorLine,
    SampleImage,
    SampleView,
    TensorChart,
)
from edgekit.report.drawing import encode
from edgekit.runtimes import open_session
from edgekit.stages import tensor_ranges
from edgekit.stages.decoding import Decoder
from edgekit.stages.profile import OperatorTime, Profile
from edgekit.types import Progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MOST_LAYERS = 80
MOST_TENSORS = 8
_RUNS = 15
_SHOWN_SIDE = 720
_CONF = 0.25
_RANKED = 5


def profiles(
    runtime: str,
    model: Path,
    float_model: Path | None,
    tensors: Sequence[NDArray[Any]],
    progress: Progress,
) -> tuple[Profile, Profile | None]:
    """Time per layer of the bundle's model, and of the float one where it is known."""
    found = []
    for path in (model, float_model):
        if path is None:
            continue
        found.append(layer_times(runtime, path, tensors, runs=_RUNS, progress=progress))
    return found[0], found[1] if len(found) > 1 else None


def layers(
    carried: Profile, plain: Profile | None, loss: dict[str, float]
) -> tuple[LayerLine, ...]:
    """The layers that take longest or lose most, in running order."""
    plain_ms = {layer.name: layer.ms for layer in plain.layers} if plain is not None else {}
    lines = []
    for number, layer in enumerate(carried.layers, start=1):
        known = [loss[name] for name in layer.outputs if name in loss]
        lines.append(
            LayerLine(
                number=number,
                name=layer.name,
                op_type=layer.op_type,
                ms=layer.ms,
                share=layer.share,
                float_ms=plain_ms.get(layer.name) if layer.outputs else None,
                sqnr_db=min(known) if known else None,
            )
        )
    by_time = sorted(lines, key=lambda line: -line.ms)[: MOST_LAYERS * 3 // 4]
    by_loss = sorted(lines, key=lambda line: _loss_order(line.sqnr_db))[: MOST_LAYERS // 4]
    kept = {line.number for line in by_time}
    kept |= {line.number for line in by_loss if line.sqnr_db is not None}
    return tuple(line for line in lines if line.number in kept)


def _loss_order(sqnr_db: float | None) -> float:
    return math.inf if sqnr_db is None else sqnr_db


def operators(found: Sequence[OperatorTime]) -> tuple[OperatorLine, ...]:
    return tuple(
        OperatorLine(op_type=item.op_type, count=item.count, ms=item.ms, share=item.share)
        for item in found
    )


def tensors(
    manifest: Manifest, model: Path, loss: dict[str, float]
) -> tuple[tuple[TensorChart, ...], int]:
    """The activations that their ranges serve worst, and how many are quantized in all."""
    if manifest.calibration is None:
        return (), 0
    found = tensor_ranges.read(model, manifest.path(manifest.calibration))
    charts = tuple(
        TensorChart(
            name=item.name,
            low=item.low,
            high=item.high,
            scale=item.scale,
            minimum=item.minimum,
            maximum=item.maximum,
            bars=item.bars,
            clipped_share=item.clipped_share,
            sqnr_db=item.sqnr_db,
            measured_db=loss.get(item.name),
        )
        for item in found[:MOST_TENSORS]
    )
    return charts, len(found)


def samples(manifest: Manifest, float_model: Path | None) -> tuple[SampleImage, ...]:
    """The golden images with the answers of the float model (where known) and of the bundle's."""
    contract = manifest.preprocess
    size = (contract.height, contract.width)
    entry = manifest.models[0]
    title = "INT8" if entry.precision == "int8" else entry.precision.upper()
    images = []
    session = None
    if float_model is not None and entry.precision == "int8":
        session = open_session(entry.runtime, float_model)
    try:
        for number, sample in enumerate(manifest.golden.samples):
            image = read_image(manifest.path(sample.image))
            outputs = {name: read_npy(manifest.path(file)) for name, file in sample.outputs}
            views = []
            if session is not None:
                tensor = read_npy(manifest.path(sample.input))
                answer = session.run({session.inputs[0].name: tensor})
                views.append(_view("FP32", answer, image, manifest, size))
            views.append(_view(title, outputs, image, manifest, size))
            images.append(_sample(number, image, views))
    finally:
        if session is not None:
            session.close()
    return tuple(images)


def _view(
    title: str,
    outputs: dict[str, NDArray[Any]],
    image: NDArray[np.uint8],
    manifest: Manifest,
    size: tuple[int, int],
) -> SampleView:
    """One model's answer, decoded as everywhere else."""
    decoder = Decoder(size, head=manifest.head, names=manifest.names, task=manifest.task)
    decoder.settle(outputs)
    _, placement = fit(image, manifest.preprocess)
    rule = Suppression(conf=_CONF, multi_label=False)
    answer = decoder.decode(outputs[decoder.match.output][0], placement, rule, "the golden sample")
    names = manifest.names

    def name(number: int) -> str:
        return names[number] if 0 <= number < len(names) else f"class {number}"

    if not isinstance(answer, Detections):
        probabilities = answer.probabilities()
        ranked = answer.ranked(_RANKED).tolist()
        return SampleView(
            title=title,
            ranking=tuple((name(number), float(probabilities[number])) for number in ranked),
        )
    return SampleView(
        title=title,
        boxes=tuple(
            BoxMark(
                x1=box[0],
                y1=box[1],
                x2=box[2],
                y2=box[3],
                number=number,
                name=name(number),
                score=score,
            )
            for box, score, number in zip(
                answer.boxes.tolist(), answer.scores.tolist(), answer.classes.tolist(), strict=True
            )
        ),
    )


def _sample(number: int, image: NDArray[np.uint8], views: list[SampleView]) -> SampleImage:
    """The image reduced for the page, boxes with it."""
    import dataclasses

    import cv2
    import numpy as np

    height, width = image.shape[:2]
    factor = min(1.0, _SHOWN_SIDE / max(height, width))
    shown = image
    if factor < 1.0:
        size = (max(1, round(width * factor)), max(1, round(height * factor)))
        shown = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    scaled = [
        dataclasses.replace(
            view,
            boxes=tuple(
                dataclasses.replace(
                    box,
                    x1=box.x1 * factor,
                    y1=box.y1 * factor,
                    x2=box.x2 * factor,
                    y2=box.y2 * factor,
                )
                for box in view.boxes
            ),
        )
        for view in views
    ]
    return SampleImage(
        name=f"golden sample {number}",
        media_type="image/jpeg",
        data=encode(shown, ".jpg", 82),
        width=shown.shape[1],
        height=shown.shape[0],
        views=tuple(scaled),
    )
