"""Activation statistics of blobs of an ncnn graph, for layers that no ONNX tensor matches.

The same streaming statistics as everywhere (edgekit.calibration), run by the same collector; only the
tensors come from ncnn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.atomic import sha256_file
from edgekit.calibration import store
from edgekit.calibration.source import open_source
from edgekit.calibration.statistics import Origin, Statistics
from edgekit.errors import BadInput
from edgekit.images import check_bad_share
from edgekit.preprocess import Preprocess
from edgekit.require import versions_of
from edgekit.runtimes.base import SessionOptions
from edgekit.runtimes.ncnn import NcnnSession
from edgekit.stages.calibrate import fingerprints
from edgekit.stages.collect import Collector, Task
from edgekit.stages.unfinished import BASE, clear, resume, unfinished_folder
from edgekit.types import Engine, Progress, TensorSpec, no_progress

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION = 3


class ObservedNcnn:
    """An open ncnn model whose `run` gives the observed blobs by name."""

    def __init__(self, session: NcnnSession, blobs: Sequence[str]) -> None:
        self._session = session
        self._blobs = tuple(blobs)
        self.inputs: tuple[TensorSpec, ...] = session.inputs

    def run(self, feeds: Mapping[str, NDArray[Any]], slot: int = 0) -> dict[str, NDArray[Any]]:
        """Run once; the arrays are new ones, whatever the slot."""
        return self._session.run_blobs(feeds, self._blobs)


def run(
    engine: Engine,
    blobs: Sequence[str],
    images: Path | Sequence[Path],
    contract: Preprocess,
    out: Path,
    *,
    partial: Path | None = None,
    max_bad_share: float = 0.1,
    progress: Progress = no_progress,
) -> Path:
    """Collect statistics of `blobs` of the float ncnn model over `images` into `out`; returns it.

    `partial` keeps what an interrupted run had reached. Raises BadInput as `calibrate.run`.
    """
    source = open_source(images)
    origin = Origin(
        graph_sha256=engine.sha256,
        preprocess=contract.to_json(),
        versions={"collect_ncnn": str(VERSION), **versions_of("ncnn", "cv2", "numpy")},
        tensors=tuple(blobs),
    )
    found, unreadable = fingerprints(source, sha256_file, progress)
    with (
        NcnnSession(engine.files[0], SessionOptions(), observe=blobs) as session,
        unfinished_folder(partial) as folder,
    ):
        statistics: Statistics = resume(folder, origin, set(found))
        for sha256, reason in unreadable.items():
            statistics.skip(sha256, reason)
        task = Task(
            model=engine.files[0],
            origin=origin,
            source=source,
            contract=contract,
            threads=1,
            partial=None if partial is None else folder / BASE,
            save_every_s=5.0,
        )
        todo = [(index, sha256) for sha256, index in found.items() if sha256 not in statistics]
        done = len(found) - len(todo)

        def on_image(sha256: str, reason: str) -> None:
            nonlocal done
            done += 1
            progress(done, len(source), "calibrate on ncnn")

        Collector(task, statistics, on_image).run(ObservedNcnn(session, blobs), iter(todo))
        check_bad_share(sorted(statistics.skipped.values()), len(source), max_bad_share)
        if not statistics.images:
            raise BadInput(f"None of the {len(source)} images can be used.")
        store.write(statistics, out)
        clear(folder)
    return out
