"""`edgekit draw`: images with boxes or classes drawn in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgekit.cli.checkpoint_options import checkpoint_options
from edgekit.cli.console import emit, json_option, note, progress, warn
from edgekit.cli.contract import contract_overrides, preprocess_options
from edgekit.cli.model_options import open_model, runtime_option, size_of


@click.command(
    epilog="""\b
Examples:
  edgekit draw best-x86-int8/ --images photos/ --out drawn/
  edgekit draw yolo11n.pt --images street.jpg --out drawn/ --conf 0.4
"""
)
@click.argument("model", metavar="MODEL|BUNDLE", type=click.Path(path_type=Path))
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder of images, or one image.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder to write to; files keep their place below --images.",
)
@click.option(
    "--conf",
    type=click.FloatRange(0, 1),
    default=0.25,
    show_default=True,
    help="Lowest score of a box that is drawn.",
)
@click.option(
    "--iou",
    type=click.FloatRange(0, 1),
    default=0.65,
    show_default=True,
    help="Overlap above which NMS drops the weaker box of a class.",
)
@click.option(
    "--head",
    help="yolov5, yolov8 (also YOLO11), yolo26, yolox or logits. [default: by metadata, shapes]",
)
@click.option("--imgsz", metavar="N|HxW", help="Input size, where the model leaves it open.")
@click.option(
    "--limit", metavar="N", type=click.IntRange(min=1), help="Draw N images, spread evenly."
)
@click.option(
    "--threads", type=click.IntRange(min=1), help="Runtime threads. [default: cores but one]"
)
@runtime_option
@checkpoint_options
@preprocess_options
@json_option
def command(
    model: Path,
    images: Path,
    out: Path,
    conf: float,
    iou: float,
    head: str | None,
    imgsz: str | None,
    limit: int | None,
    threads: int | None,
    as_json: bool,
    **arguments: Any,
) -> None:
    """Write IMAGES with what MODEL finds: boxes with class and score, or the five best classes.

    Images that cannot be read are named and left out.
    """
    from edgekit.cpu import available_cores
    from edgekit.images import list_images
    from edgekit.metrics.datasets import Sample
    from edgekit.metrics.postprocess import Suppression
    from edgekit.pipeline.model import Model
    from edgekit.runtimes.base import SessionOptions
    from edgekit.stages.draw import ImageWriter

    overrides = contract_overrides(arguments)
    named = open_model(model, arguments)
    files = list_images(images)
    if limit is not None and limit < len(files):
        files = [files[i * len(files) // limit] for i in range(limit)]
    root = images if images.is_dir() else images.parent
    samples = tuple(Sample(name=file.relative_to(root).as_posix(), path=file) for file in files)
    options = SessionOptions(threads=threads or max(1, available_cores() - 1))
    with (
        Model(
            named, overrides=overrides, size=size_of(imgsz), head=head, options=options
        ) as opened,
        progress(quiet=as_json) as bar,
    ):
        if opened.warning:
            warn(opened.warning)
        rule = Suppression(conf=conf, iou=iou, multi_label=False)
        skipped: list[str] = []
        writer: ImageWriter | None = None
        for prediction in opened.predictions(samples, rule, skipped=skipped, progress=bar):
            writer = writer or ImageWriter(out, opened.names, conf=conf)
            writer.write(prediction)
    count, marks = (writer.count, writer.marks) if writer else (0, 0)
    for message in skipped:
        note(f"Left out: {message}")
    if as_json:
        emit(
            {
                "out": out,
                "images": count,
                "boxes": marks if opened.task == "detect" else None,
                "task": opened.task,
                "skipped": skipped,
            }
        )
        return
    boxes = f", {marks} boxes" if opened.task == "detect" else ""
    click.echo(f"{count} images{boxes}: {out}")
