"""Write generated scenes as a data set: `python make_data.py --split validation --out DIR`.

With labels (YOLO style):

    DIR/data.yaml                        names, `train: images`, `val: images`
    DIR/images/cells_s3_00000.png        lossless
    DIR/labels/cells_s3_00000.txt        one line per object: class cx cy w h, fractions of 1

With --no-labels the images lie in DIR itself, as a calibration set wants them. The seed and the
index stand in the name of every file. Files of earlier runs (cells_s*) that do not belong to the
new set are removed; anything else in DIR stays as it is.
"""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from scenes import (
    CALIBRATION_SEED,
    CLASS_NAMES,
    DEFAULT_SIZE,
    TRAIN_SEED,
    VALIDATION_SEED,
    scene,
)

# Seed and usual number of scenes of each use; the seeds are disjoint and must stay so.
SPLITS: dict[str, tuple[int, int]] = {
    "training": (TRAIN_SEED, 5000),
    "calibration": (CALIBRATION_SEED, 64),
    "validation": (VALIDATION_SEED, 200),
}
_OURS = re.compile(r"cells_s\d+_\d{5,}\.(png|jpg|txt)")


def file_stem(seed: int, index: int) -> str:
    """Name of a scene's files without the ending."""
    return f"cells_s{seed}_{index:05d}"


def encoded(image: NDArray[np.uint8], ending: str, quality: int) -> bytes:
    """The RGB image [H, W, 3] as the bytes of a "png" or "jpg" file."""
    settings = []
    if ending == "jpg":
        # Full chroma resolution: halved, it would smooth away the sensor noise.
        full = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444
        settings = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, full]
    done, data = cv2.imencode(f".{ending}", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), settings)
    if not done:
        raise RuntimeError(f"OpenCV could not encode a {ending} image")
    return data.tobytes()


def label_text(boxes: NDArray[np.float32], classes: NDArray[np.int64], size: int) -> str:
    """YOLO label lines of boxes [N, 4] (corners in pixels); an empty text for an empty scene."""
    lines = []
    for (x1, y1, x2, y2), label in zip(boxes.astype(np.float64) / size, classes, strict=True):
        centre = f"{(x1 + x2) / 2:.7f} {(y1 + y2) / 2:.7f}"
        lines.append(f"{label} {centre} {x2 - x1:.7f} {y2 - y1:.7f}\n")
    return "".join(lines)


def data_yaml() -> str:
    """data.yaml: paths relative to itself, class names by number."""
    names = "".join(f"  {number}: {name}\n" for number, name in enumerate(CLASS_NAMES))
    # `train` is there because readers of this format ask for it; nothing is trained from files.
    return (
        "# Synthetic scenes, written by examples/cells/make_data.py\n"
        f"train: images\nval: images\nnames:\n{names}"
    )


def put(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_dataset(
    out: Path,
    seed: int,
    count: int,
    *,
    labels: bool = True,
    ending: str = "png",
    quality: int = 92,
    size: int = DEFAULT_SIZE,
) -> list[Path]:
    """Write scenes 0 to count - 1 of a seed under `out` and return the image files in order.

    Raises FileExistsError when the image folder of a labelled set holds files that are not ours:
    an evaluation would take them in without labels.
    """
    image_folder = out / "images" if labels else out
    label_folder = out / "labels"
    image_folder.mkdir(parents=True, exist_ok=True)
    if labels:
        label_folder.mkdir(exist_ok=True)
        foreign = [p.name for p in sorted(image_folder.iterdir()) if not _OURS.fullmatch(p.name)]
        if foreign:
            raise FileExistsError(f"{image_folder} holds other files, such as {foreign[0]}")
    written: list[Path] = []
    for index in range(count):
        image, boxes, classes = scene(seed, index, size)
        stem = file_stem(seed, index)
        if labels:
            text = label_text(boxes, classes, size)
            put(label_folder / f"{stem}.txt", text.encode("ascii"))
        written.append(image_folder / f"{stem}.{ending}")
        put(written[-1], encoded(image, ending, quality))
    if labels:
        put(out / "data.yaml", data_yaml().encode("ascii"))
    current = {path.name for path in written} | {f"{path.stem}.txt" for path in written if labels}
    for folder in {image_folder, label_folder}:
        for old in folder.iterdir() if folder.is_dir() else ():
            if _OURS.fullmatch(old.name) and old.name not in current:
                old.unlink()
    return written


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--split", choices=SPLITS, help="a use with its fixed seed and usual count")
    which.add_argument("--seed", type=int, help="another seed")
    parser.add_argument("--count", type=int, help="number of scenes (default: the split's)")
    parser.add_argument("--no-labels", action="store_true", help="images only, in DIR itself")
    parser.add_argument("--format", choices=("png", "jpg"), default="png", help="default: png")
    parser.add_argument("--quality", type=int, default=92, help="of jpg, 1-100 (default: 92)")
    options = parser.parse_args()
    seed, count = SPLITS[options.split] if options.split else (options.seed, 100)
    count = count if options.count is None else options.count
    if count < 1:
        parser.error("--count must be at least 1")
    if not 1 <= options.quality <= 100:
        parser.error("--quality must be from 1 to 100")
    try:
        written = write_dataset(
            options.out,
            seed,
            count,
            labels=not options.no_labels,
            ending=options.format,
            quality=options.quality,
        )
    except (FileExistsError, ValueError) as error:
        parser.error(str(error))
    total = sum(path.stat().st_size for path in written)
    print(f"{len(written)} scenes of seed {seed} in {options.out} ({total / 1e6:.2f} MB of images)")


if __name__ == "__main__":
    main()
