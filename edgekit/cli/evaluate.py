"""`edgekit evaluate`: accuracy of a model on labelled images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekit.cli.checkpoint_options import checkpoint_options
from edgekit.cli.console import emit, json_option, note, print_table, progress, warn
from edgekit.cli.contract import contract_overrides, preprocess_options
from edgekit.cli.model_options import open_model, runtime_option, size_of

if TYPE_CHECKING:
    from edgekit.metrics.bootstrap import Interval
    from edgekit.metrics.datasets import Dataset
    from edgekit.preprocess import Preprocess
    from edgekit.stages.opening import NamedModel
    from edgekit.stages.predict import Prediction
    from edgekit.types import AccuracyReport

_LABELS = {
    "map50_95": "mAP50-95",
    "map50": "mAP50",
    "map75": "mAP75",
    "precision": "precision",
    "recall": "recall",
    "top1": "top-1",
    "top5": "top-5",
}
# more classes than this are listed only when asked for
_FEW_CLASSES = 20


@click.command(
    epilog="""\b
Examples:
  edgekit evaluate yolov5n.onnx --data coco/data.yaml
  edgekit evaluate yolov5n.onnx --data instances_val2017.json --limit 500 --json
  edgekit evaluate best.pt --data data.yaml --save-images drawn/
  edgekit evaluate best-x86-int8/ --data data.yaml --against best.pt
  edgekit evaluate resnet20.onnx --data cifar10.npz --batch 8 --resize none \\
      --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225
"""
)
@click.argument("model", metavar="MODEL|BUNDLE", type=click.Path(path_type=Path))
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    required=True,
    help="YOLO data.yaml, COCO json, folder of class folders, or .npz (images, labels).",
)
@click.option("--split", default="val", show_default=True, help="train, val or test.")
@click.option(
    "--data-images",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Folder of a COCO json's images. [default: found beside it]",
)
@click.option(
    "--limit", metavar="N", type=click.IntRange(min=1), help="Use N images, spread evenly."
)
@click.option(
    "--head",
    help="yolov5, yolov8 (also YOLO11), yolo26, yolox or logits. [default: by metadata, shapes]",
)
@click.option(
    "--conf", type=click.FloatRange(0, 1), default=0.001, show_default=True, help="Lowest score."
)
@click.option(
    "--iou",
    type=click.FloatRange(0, 1),
    default=0.65,
    show_default=True,
    help="Overlap above which NMS drops the weaker box of a class.",
)
@click.option(
    "--max-det",
    type=click.IntRange(min=1),
    default=300,
    show_default=True,
    help="Boxes kept per image.",
)
@click.option("--batch", type=click.IntRange(min=1), help="Images per run. [default: 1]")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Threads that read images. [default: cores but one]",
)
@click.option(
    "--threads", type=click.IntRange(min=1), help="Runtime threads. [default: cores but one]"
)
@click.option("--imgsz", metavar="N|HxW", help="Input size, where the model leaves it open.")
@click.option(
    "--max-bad-images",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="Share of unreadable images that may be left out.",
)
@click.option(
    "--resamples",
    type=click.IntRange(min=0),
    default=1000,
    show_default=True,
    help="Bootstrap resamples for the 95 % interval; 0 for none.",
)
@click.option(
    "--against",
    metavar="MODEL",
    type=click.Path(path_type=Path),
    help="Another model on the same images: the difference, with its paired 95 % interval.",
)
@click.option("--per-class", is_flag=True, help="List every class, however many.")
@click.option(
    "--save-images",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Write the images there with what was found, labelled boxes as thin white lines.",
)
@click.option(
    "--save-conf",
    type=click.FloatRange(0, 1),
    default=0.25,
    show_default=True,
    help="Lowest score of a box that --save-images draws.",
)
@runtime_option
@checkpoint_options
@preprocess_options
@json_option
def command(
    model: Path,
    data: Path,
    split: str,
    data_images: Path | None,
    limit: int | None,
    head: str | None,
    conf: float,
    iou: float,
    max_det: int,
    batch: int | None,
    workers: int | None,
    threads: int | None,
    imgsz: str | None,
    max_bad_images: float,
    resamples: int,
    against: Path | None,
    per_class: bool,
    save_images: Path | None,
    save_conf: float,
    as_json: bool,
    **arguments: Any,
) -> None:
    """Measure the accuracy of MODEL on labelled images: a checkpoint, an ONNX file, or a bundle.

    Detection: mAP by the COCO protocol, precision and recall at the best mean F1. Classification:
    top-1 and top-5. The 95 % intervals come from resampling the images; with --against, both models
    are resampled together, so that what is hard for both does not blur the difference.
    """
    import time

    from edgekit.cpu import available_cores
    from edgekit.metrics.datasets import open_dataset
    from edgekit.runtimes.base import SessionOptions
    from edgekit.stages import evaluate

    overrides = contract_overrides(arguments)
    other = None
    if against is not None:  # --runtime means MODEL's
        other = open_model(against, {**arguments, "runtime": None})
    named = open_model(model, arguments)
    contract = _contract(named, overrides, imgsz)
    options = evaluate.EvaluateOptions(
        head=head or named.checkpoint.head,
        conf=conf,
        iou=iou,
        max_det=max_det,
        batch=batch,
        workers=workers,
        names=named.checkpoint.names,
        resamples=resamples,
        max_bad_share=max_bad_images,
    )
    dataset = open_dataset(data, split=split, images=data_images, limit=limit)
    settings = SessionOptions(threads=threads or max(1, available_cores() - 1))
    see = _writer(save_images, save_conf) if save_images is not None else None
    started = time.perf_counter()
    with named.open(contract, settings) as session, progress(quiet=as_json) as bar:
        outcome = evaluate.measure(session, dataset, contract, options, bar, see)
        report = evaluate.report(outcome, options)
    seconds = time.perf_counter() - started
    for text in report.notes:
        note(f"Note: {text}")
    compared = None
    if other is not None:
        own = dataclasses.replace(
            options, head=head or other.checkpoint.head, names=other.checkpoint.names
        )
        second = _contract(other, overrides, imgsz)
        with other.open(second, settings) as session, progress(quiet=as_json) as bar:
            rival = evaluate.measure(session, dataset, second, own, bar)
        compared = _against(other, evaluate.report(rival), evaluate.difference(rival, outcome, own))
    expected = _expected(model, report)
    if as_json:
        answer = _answer(report, contract, dataset, named.runtime, seconds)
        answer["against"] = compared
        emit({**answer, **({"expected": expected} if expected else {})})
        return
    _show(model.name, dataset, report, per_class)
    if compared is not None:
        click.echo(
            f"Against {compared['model']} ({100 * compared['value']:.2f}): "
            f"{100 * compared['difference']:+.2f} points in {compared['metric']} on the same images, "
            f"95 % interval {100 * compared['low']:+.2f} to {100 * compared['high']:+.2f}."
        )
    if expected:
        note(
            f"The bundle expects {expected['metric']} {100 * expected['value']:.2f} on "
            f"{expected['images']} images ({expected['runtime']}): {expected['points']:+.2f} points here."
        )


def _against(other: NamedModel, report: AccuracyReport, found: Interval) -> dict[str, Any]:
    """This model minus the `other`, whose `report` it is, in fractions of 1."""
    return {
        "model": other.path.name,
        "runtime": other.runtime,
        "metric": report.metric,
        "value": report.value,
        "difference": found.estimate,
        "low": found.low,
        "high": found.high,
    }


def _expected(model: Path, report: AccuracyReport) -> dict[str, Any] | None:
    """What a TensorRT bundle says of its own accuracy, and how far this one is from it, in points."""
    from edgekit.bundle import is_bundle, read_manifest

    if not is_bundle(model):
        return None
    details = read_manifest(model).raw.get("details")
    section = details.get("tensorrt") if isinstance(details, dict) else None
    expected = section.get("expected_accuracy") if isinstance(section, dict) else None
    if not isinstance(expected, dict) or expected.get("metric") != report.metric:
        return None
    value = expected.get("value")
    if not isinstance(value, (int, float)):
        return None
    return {**expected, "points": 100 * (report.value - value)}


def _writer(out: Path, conf: float) -> Callable[[Prediction, Sequence[str]], object]:
    """Draws every prediction into a file below `out`."""
    from edgekit.stages.draw import ImageWriter

    writers: list[ImageWriter] = []

    def see(prediction: Prediction, names: Sequence[str]) -> None:
        if not writers:  # a classifier's names are known after its first run
            writers.append(ImageWriter(out, names, conf=conf))
        writers[0].write(prediction)

    return see


def _contract(model: NamedModel, overrides: dict[str, Any], imgsz: str | None) -> Preprocess:
    """The preprocessing contract: flags over metadata; assumed, with a warning, without either."""
    resolved = model.contract(overrides, size_of(imgsz))
    if resolved.warning:
        warn(resolved.warning)
    return resolved.contract


def _answer(
    report: AccuracyReport, contract: Preprocess, dataset: Dataset, runtime: str, seconds: float
) -> dict[str, Any]:
    """The report's keys, with the runtime, the contract, the class names and the time taken."""
    from edgekit.types import to_json

    answer: dict[str, Any] = to_json(report)
    answer["runtime"] = runtime
    answer["preprocess"] = contract.to_dict()
    answer["classes"] = list(dataset.names)
    answer["seconds"] = seconds
    return answer


def _show(name: str, dataset: Dataset, report: AccuracyReport, per_class: bool) -> None:
    from rich.table import Table

    split = f" ({dataset.split})" if dataset.split else ""
    click.echo(f"{name} on {report.images} images of {dataset.source.name}{split}")
    table = Table()
    table.add_column("metric")
    table.add_column("%", justify="right")
    table.add_column("95 % interval", justify="right")
    for key, label in _LABELS.items():
        value = getattr(report, key)
        if value is None:
            continue
        ends = report.intervals.get(key)
        interval = f"{100 * ends[0]:.2f} to {100 * ends[1]:.2f}" if ends else ""
        table.add_row(label, f"{100 * value:.2f}", interval)
    print_table(table)
    if per_class or len(report.per_class) <= _FEW_CLASSES:
        classes = Table()
        classes.add_column("class")
        classes.add_column("mAP50-95 %" if report.task == "detect" else "%", justify="right")
        for label, value in report.per_class.items():
            classes.add_row(label, f"{100 * value:.2f}")
        print_table(classes)
    used = report.settings
    parts = [f"head {used['head']}"]
    if report.task == "detect":
        parts.append(f"confidence {used['conf']:g}")
        parts.append(f"NMS {used['nms']}" + (f" at IoU {used['iou']:g}" if "iou" in used else ""))
        parts.append(f"at most {used['max_det']} boxes")
        parts.append(
            f"precision and recall at confidence {used['precision_recall_confidence']:.3f} "
            "(best mean F1, IoU 0.5)"
        )
    click.echo("; ".join(parts) + ".")
