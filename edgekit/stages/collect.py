"""Running images through an observed model and adding up what its tensors hold: one process's part.

Three things go on at once: the next images are decoded, one image runs in ONNX Runtime, and the
tensors of the image before it are counted. Images run one at a time, because a batch changes the
low bits of what each of them gives. At most two images' tensors exist together, so memory does not
depend on the number of images.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgekit.calibration import store
from edgekit.calibration.source import ImageSource
from edgekit.calibration.statistics import Origin, Statistics
from edgekit.errors import BadInput, EdgekitError
from edgekit.preprocess import Preprocess, apply
from edgekit.runtimes.base import SessionOptions
from edgekit.runtimes.observe import ObservedModel
from edgekit.types import TensorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Observed(Protocol):
    """A model whose `run` gives every observed tensor by name (edgekit.runtimes.observe)."""

    inputs: tuple[TensorSpec, ...]

    def run(self, feeds: Mapping[str, NDArray[Any]], slot: int = 0) -> dict[str, NDArray[Any]]: ...


OnImage = Callable[[str, str], None]
"""`on_image(sha256, reason)`: an image is done; reason "" when it was used, else why it was not."""

# images decoded ahead of the one that runs
_AHEAD = 2
# where one image's tensors are larger than this, counting waits for the run instead of overlapping
_OVERLAP_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a process needs to collect; travels to workers by pickle.

    `partial` is where unfinished statistics are kept, None keeps none; `save_every_s` how often.
    """

    model: Path
    origin: Origin
    source: ImageSource
    contract: Preprocess
    threads: int
    partial: Path | None
    save_every_s: float


@dataclass(frozen=True)
class _Loaded:
    sha256: str
    name: str
    tensor: NDArray[Any] | None
    reason: str = ""


class Collector:
    """Collects into `statistics`, which are sound after every return and every raise but one.

    The exception is an image that gives NaN or infinity: after it the statistics hold part of that
    image and are not saved.
    """

    def __init__(self, task: Task, statistics: Statistics, on_image: OnImage) -> None:
        self._task = task
        self.statistics = statistics
        self._on_image = on_image
        self._sound = True
        self._saved_at = time.monotonic()

    def run(self, model: Observed, images: Iterator[tuple[int, str]]) -> None:
        """Collect `images`, given as (number in the source, sha256).

        When interrupted (KeyboardInterrupt, SystemExit), the images under way are finished and the
        statistics saved. Raises BadInput for an image that is not finite somewhere in the graph.
        """
        loader = ThreadPoolExecutor(1, "load")
        counter = ThreadPoolExecutor(1, "count")
        helpers = ThreadPoolExecutor(self._task.threads, "histogram")
        spread = helpers.map if self._task.threads > 1 else map
        feed = model.inputs[0].name
        loads: deque[Future[_Loaded]] = deque()
        counting: Future[None] | None = None
        slot = 0
        try:
            while True:
                while len(loads) <= _AHEAD and (image := next(images, None)) is not None:
                    loads.append(loader.submit(self._load, *image))
                if not loads:
                    break
                loaded = loads.popleft().result()
                if loaded.tensor is None:
                    counter.submit(self._skip, loaded).result()
                    continue
                # the tensors of the image before are being counted in the other slot
                values = model.run({feed: loaded.tensor}, slot)
                if counting is not None:
                    counting.result()
                counting = counter.submit(self._count, loaded, values, spread)
                if sum(value.nbytes for value in values.values()) > _OVERLAP_BYTES:
                    counting.result()
                else:
                    slot = 1 - slot
                # where there are no slots, the counting thread must hold the last reference
                del values
            if counting is not None:
                counting.result()
        except BaseException:
            for load in loads:
                load.cancel()
            # an image that is being counted is finished, so that none is ever half in
            counter.shutdown(wait=True)
            # what stopped us is to be reported, not that saving failed as well
            with contextlib.suppress(EdgekitError, OSError):
                self.save()
            raise
        finally:
            for threads in (loader, counter, helpers):
                threads.shutdown(wait=True)

    def save(self) -> None:
        """Write the unfinished statistics, if they are sound and there is a place for them."""
        if self._sound and self._task.partial is not None:
            store.write(self.statistics, self._task.partial, compress=False)
        self._saved_at = time.monotonic()

    def _load(self, index: int, sha256: str) -> _Loaded:
        source = self._task.source
        name = source.name(index)
        try:
            found, image = source.read(index)
            tensor, _ = apply(image, self._task.contract)
        except BadInput as error:
            return _Loaded(sha256, name, None, error.message)
        if found != sha256:
            raise BadInput(
                f"The image {name} changed while it was calibrated on.", hint="Run it again."
            )
        return _Loaded(sha256, name, tensor)

    def _skip(self, loaded: _Loaded) -> None:
        self.statistics.skip(loaded.sha256, loaded.reason)
        self._finished(loaded)

    def _count(self, loaded: _Loaded, values: dict[str, NDArray[Any]], spread: Any) -> None:
        try:
            self.statistics.add(loaded.sha256, loaded.name, values, spread)
        except BaseException:
            self._sound = False
            raise
        self._finished(loaded)

    def _finished(self, loaded: _Loaded) -> None:
        if time.monotonic() - self._saved_at >= self._task.save_every_s:
            self.save()
        self._on_image(loaded.sha256, loaded.reason)


def open_observed(path: Path, tensors: Sequence[str] | None, threads: int) -> ObservedModel:
    """The model with `tensors` (None: every float activation) as outputs.

    The runtime's threads do not spin between runs: the cores are wanted for counting.
    """
    options = SessionOptions(threads=threads, spinning=False, memory_pattern=False)
    return ObservedModel(path, tensors, options)
