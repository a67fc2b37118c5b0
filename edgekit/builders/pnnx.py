"""The pnnx program: one ONNX file in, ncnn's `.param` and `.bin` out, in a process of its own.

The wheel's program is called, never its Python package, which imports torch. pnnx ends with exit code
0 also when what it wrote cannot be used, so its output is only a proposal: see
edgekit.stages.convert_ncnn for the checks.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit.errors import BuildFailed, MissingDependency
from edgekit.formats import ncnn_bin, ncnn_param
from edgekit.formats.ncnn_bin import Weights
from edgekit.formats.ncnn_param import NcnnGraph
from edgekit.require import install_line

TIME_LIMIT_S = 300.0


@dataclass(frozen=True, kw_only=True)
class NcnnModel:
    """An ncnn model in memory: graph and weights, layer by layer."""

    graph: NcnnGraph
    weights: Weights


def program() -> Path:
    """Where the pnnx program lies, without importing its package.

    Raises MissingDependency when the wheel is not installed or holds no program for this machine.
    """
    found = importlib.util.find_spec("pnnx")
    places = list(found.submodule_search_locations or []) if found is not None else []
    name = "pnnx.exe" if sys.platform == "win32" else "pnnx"
    for place in places:
        path = Path(place) / name
        if path.is_file():
            return path
    problem = "its program is not in the installed wheel" if places else "it is not installed"
    raise MissingDependency(
        f"Converting to ncnn needs pnnx: {problem}.",
        hint=f"Install it with: {install_line('pnnx')}",
    )


def convert(
    model: Path, shapes: Sequence[Sequence[int]], *, time_limit_s: float = TIME_LIMIT_S
) -> NcnnModel:
    """Run pnnx on a single-file ONNX model whose inputs have these shapes; weights stay float32.

    Raises BuildFailed when pnnx crashes, does not end in time, writes nothing, or writes what
    cannot be read.
    """
    tool = program()
    sizes = ",".join(f"[{','.join(str(int(size)) for size in shape)}]f32" for shape in shapes)
    with tempfile.TemporaryDirectory(prefix="edgekit-pnnx-") as name:
        folder = Path(name)
        (folder / "model.onnx").write_bytes(Path(model).read_bytes())
        command = [str(tool), "model.onnx", f"inputshape={sizes}", "fp16=0"]
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=time_limit_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise BuildFailed(f"pnnx did not finish within {time_limit_s:.0f} s.") from error
        except OSError as error:
            raise BuildFailed(f"pnnx does not start: {error.strerror or error}.") from error
        param, weights = folder / "model.ncnn.param", folder / "model.ncnn.bin"
        if done.returncode or not param.is_file() or not weights.is_file():
            raise BuildFailed(
                f"pnnx {_how(done.returncode)}: {_last_words(done.stdout)}",
                hint="The model has a part that ncnn's converter cannot read; `edgekit export` to "
                "an ONNX Runtime target (arm-ort-int8) does not need it.",
            )
        graph = ncnn_param.read(param)
        return NcnnModel(graph=graph, weights=ncnn_bin.read(weights, graph))


def _how(code: int) -> str:
    if code < 0:
        return f"crashed with signal {-code}"
    return f"failed with exit code {code}" if code else "wrote no model"


def _last_words(output: bytes) -> str:
    lines = [line.strip() for line in output.decode(errors="replace").splitlines() if line.strip()]
    return " / ".join(lines[-3:]) if lines else "it said nothing"
