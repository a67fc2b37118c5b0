"""The runtimes that can be driven here, by name, and which of them runs a bundle.

A further runtime is a module with the functions of edgekit.board.session, and a line in DRIVERS.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from edgekit.board.errors import MissingDependency, NotPossible, UsageError
from edgekit.board.manifest import Manifest, Model
from edgekit.board.session import Availability, Session, SessionOptions

# name → (module, the manifest's runtime whose model it runs); in the order in which they are tried
DRIVERS: dict[str, tuple[str, str]] = {
    "tensorrt": ("edgekit.board.trt", "tensorrt"),
    "onnxruntime": ("edgekit.board.drivers.onnxruntime", "onnxruntime"),
    "edgekit-ncnn": ("edgekit.board.drivers.native", "ncnn"),
    "ncnn": ("edgekit.board.drivers.ncnn", "ncnn"),
}


def module(name: str) -> Any:
    """The driver `name`. Raises UsageError for an unknown one, MissingDependency where it is not packed."""
    if name not in DRIVERS:
        raise UsageError(f"There is no runtime {name!r}.", f"Known: {', '.join(DRIVERS)}.")
    try:
        return importlib.import_module(DRIVERS[name][0])
    except ModuleNotFoundError as error:
        if error.name != DRIVERS[name][0]:
            raise
        raise MissingDependency(f"This program has no driver for {name}.") from error


def available(name: str, manifest: Manifest | None, options: SessionOptions) -> Availability:
    """Whether `name` can be used here, for this bundle where it depends on it."""
    try:
        driver = module(name)
    except MissingDependency as error:
        return Availability(ok=False, why=error.message)
    if name == "edgekit-ncnn":
        answer: Availability = driver.available(manifest, options)
    else:
        answer = driver.available()
    return answer


def model_for(name: str, manifest: Manifest) -> Model | None:
    """The first of the bundle's models that the driver `name` runs."""
    for model in manifest.models:
        if model.runtime == DRIVERS[name][1]:
            return model
    return None


def choose(manifest: Manifest, wanted: str | None, options: SessionOptions) -> tuple[str, Model]:
    """The driver and the model to run: `wanted`, else the first model that something here can run.

    Raises UsageError (unknown name), NotPossible (the bundle has no such model), MissingDependency.
    """
    if wanted is not None:
        module(wanted)
        model = model_for(wanted, manifest)
        if model is None:
            has = ", ".join(model.runtime for model in manifest.models)
            raise NotPossible(f"The bundle has no model for {wanted}.", f"It has: {has}.")
        found = available(wanted, manifest, options)
        if not found.ok:
            raise MissingDependency(f"{wanted} cannot be used here: {found.why}.", _hint(model))
        return wanted, model
    reasons = []
    for model in manifest.models:
        for name, (_, runtime) in DRIVERS.items():
            if runtime != model.runtime:
                continue
            found = available(name, manifest, options)
            if found.ok:
                return name, model
            reasons.append(f"{name}: {found.why}")
    raise MissingDependency(
        "Nothing here can run a model of this bundle"
        + (f" ({'; '.join(reasons)})." if reasons else "."),
        _hint(manifest.models[0]),
    )


def _hint(model: Model) -> str:
    if model.runtime == "tensorrt":
        return "TensorRT's Python package belongs to JetPack: apt-get install python3-libnvinfer"
    return f"Install it on the board: python3 -m pip install {model.runtime}"


def open_session(name: str, folder: Path, manifest: Manifest, options: SessionOptions) -> Session:
    """Open the bundle's model in the driver `name`. Raises DeviceError."""
    session: Session = module(name).open_session(folder, manifest, options)
    return session
