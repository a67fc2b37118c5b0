"""An ncnn model's first run, in a process of its own: ncnn checks no shapes, and a wrong graph can end
the process that runs it.

`run` starts the child; `main` is the child: it opens a model.json, runs the samples of an .npz and
writes the outputs into another.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import BuildFailed, EdgekitError

if TYPE_CHECKING:
    from numpy.typing import NDArray

TIME_LIMIT_S = 300.0

# the child imports what the parent would: `-m` would look into the working directory first
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from edgekit.stages.ncnn_probe import main; main(*sys.argv[2:])"
)
_REFUSED = 3


def run(
    model: Path, feeds: Sequence[NDArray[Any]], *, time_limit_s: float = TIME_LIMIT_S
) -> list[dict[str, NDArray[Any]]]:
    """The outputs of the ncnn model (a model.json) for each of `feeds`, tensors of its one input.

    Raises BuildFailed when ncnn refuses the model, crashes, or does not end in time.
    """
    import numpy as np

    with tempfile.TemporaryDirectory(prefix="edgekit-ncnn-") as name:
        given, found = Path(name) / "in.npz", Path(name) / "out.npz"
        named: dict[str, Any] = {str(number): feed for number, feed in enumerate(feeds)}
        np.savez(given, allow_pickle=False, **named)
        command = [sys.executable, "-c", _START, json.dumps(sys.path)]
        try:
            done = subprocess.run(
                [*command, str(model), str(given), str(found)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=time_limit_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise BuildFailed(
                f"ncnn did not finish {len(feeds)} runs within {time_limit_s:.0f} s."
            ) from error
        words = done.stderr.decode(errors="replace").strip().splitlines()
        if done.returncode < 0:
            raise BuildFailed(f"ncnn crashes on the model, with signal {-done.returncode}.")
        if done.returncode == _REFUSED:
            raise BuildFailed(words[-1] if words else "ncnn refuses the model.")
        if done.returncode:
            raise RuntimeError("in the ncnn probe:\n" + "\n".join(words))
        with np.load(found, allow_pickle=False) as arrays:
            outputs: list[dict[str, NDArray[Any]]] = [{} for _ in feeds]
            # keys are "SAMPLE NAME": the names themselves may hold anything
            for key in arrays.files:
                number, _, output = key.partition(" ")
                outputs[int(number)][output] = arrays[key]
    return outputs


def main(model: str, given: str, found: str) -> None:
    """The child's part."""
    import numpy as np

    from edgekit.runtimes import open_session

    try:
        results: dict[str, Any] = {}
        with np.load(given, allow_pickle=False) as arrays, open_session("ncnn", Path(model)) as net:
            (spec,) = net.inputs
            for number in range(len(arrays.files)):
                for name, value in net.run({spec.name: arrays[str(number)]}).items():
                    results[f"{number} {name}"] = value
        with open(found, "wb") as file:
            np.savez(file, allow_pickle=False, **results)
    except EdgekitError as error:
        print(error.message, file=sys.stderr)
        sys.exit(_REFUSED)
