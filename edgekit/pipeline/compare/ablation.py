"""One model with each optimization switched off in turn, against everything switched on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from edgekit.errors import EdgekitError, UsageError
from edgekit.filehash import FileHashes
from edgekit.pipeline.compare.candidates import Candidate, Runnable, export_request, onnx_form
from edgekit.pipeline.compare.request import CompareRequest, Listed
from edgekit.pipeline.records import Exported
from edgekit.pipeline.routes import steps_for
from edgekit.pipeline.runner import Outcome, StageRunner
from edgekit.stages import model_facts
from edgekit.stages.opening import describe
from edgekit.target import Quantize, TargetProfile
from edgekit.types import Engine, StageOutput


@dataclass(frozen=True, kw_only=True)
class _Recipe:
    """How a variant is made."""

    target: TargetProfile
    method: str
    simplify: bool = True
    int8: bool = False
    optimize: bool = True


_Change = Callable[[_Recipe], "_Recipe | None"]


def _without_int8(recipe: _Recipe) -> _Recipe | None:
    return dataclasses.replace(recipe, int8=False) if recipe.int8 else None


def _quantize(recipe: _Recipe, **changes: object) -> _Recipe | None:
    """The recipe with other fields in its [quantize] section, None where nothing would change."""
    section: Quantize | None = recipe.target.quantize
    if not recipe.int8 or section is None:
        return None
    changed = dataclasses.replace(section, **changes)  # type: ignore[arg-type]
    if changed == section:
        return None
    return dataclasses.replace(recipe, target=dataclasses.replace(recipe.target, quantize=changed))


def _minmax(recipe: _Recipe) -> _Recipe | None:
    if not recipe.int8 or recipe.method == "minmax":
        return None
    return dataclasses.replace(recipe, method="minmax")


# what is switched off → the changed recipe, None where it is not on; a new one is a line here
OPTIMIZATIONS: tuple[tuple[str, _Change], ...] = (
    ("INT8", _without_int8),
    ("per-channel weights", lambda recipe: _quantize(recipe, per_channel=False)),
    ("layers kept float by rule", lambda recipe: _quantize(recipe, keep_float=())),
    ("choice of ranges", _minmax),
    ("simplify", lambda recipe: dataclasses.replace(recipe, simplify=False)),
    ("runtime's graph optimizations", lambda recipe: dataclasses.replace(recipe, optimize=False)),
)


def variants(
    request: CompareRequest, model: Listed, runner: StageRunner, hashes: FileHashes
) -> list[Candidate]:
    """The rows of an ablation, everything on first. Raises what describing the model raises.

    Raises UsageError when an INT8 target lacks calibration images.
    """
    int8 = request.target.is_int8
    if int8 and request.images is None:
        raise UsageError(
            f"The target {request.target.name} calibrates, and no calibration images were given.",
            hint="Give a folder of a hundred or so typical images (--images DIR), or a float target.",
        )
    everything = _Recipe(target=request.target, method=request.method, int8=int8)
    plans: list[tuple[str, _Recipe]] = [("", everything)]
    for name, change in OPTIMIZATIONS:
        changed = change(everything)
        if changed is not None:
            plans.append((name, changed))
    named = describe(model.path, request.load)
    rows = []
    for number, (name, recipe) in enumerate(plans):
        runner.progress(number, len(plans), f"preparing without {name}" if name else "preparing")
        row = Candidate(
            name=f"without {name}" if name else "everything on",
            source=model.path,
            variant=name,
            precision="int8" if recipe.int8 else named.precision,
            head=request.head or named.checkpoint.head,
            names=named.checkpoint.names,
            architecture=named.checkpoint.architecture,
            training_batch=named.checkpoint.training_batch,
            parameters=named.checkpoint.parameters or None,
        )
        try:
            _make(row, recipe, request, runner, hashes)
        except EdgekitError as error:
            row.failed(error)
        rows.append(row)
    return rows


def _make(
    row: Candidate,
    recipe: _Recipe,
    request: CompareRequest,
    runner: StageRunner,
    hashes: FileHashes,
) -> None:
    changed = dataclasses.replace(request, target=recipe.target, method=recipe.method)
    steps = steps_for(export_request(changed, row.source), runner, hashes)
    exported = steps.export()
    row.contract = exported.value.contract
    simplified = steps.simplify(exported) if recipe.simplify else _unsimplified(exported)
    prepared = steps.prepare(exported, simplified)
    model = prepared.value.model
    if not recipe.int8:
        plain = steps.float_model(exported, prepared).value
        row.size_bytes = plain.size_bytes
        row.facts = model_facts.read(model.path, row.contract.input_shape)
        row.forms.append(_form(row, plain.engine, recipe))
        return
    calibration = steps.calibrate(exported, prepared)
    quantized = steps.quantize(exported, prepared, calibration)
    built = steps.build(prepared, quantized)
    row.size_bytes = built.value.size_bytes
    row.facts = model_facts.read(quantized.value.model.path, row.contract.input_shape)
    row.forms.append(_form(row, built.value.engine, recipe))


def _form(row: Candidate, engine: Engine, recipe: _Recipe) -> Runnable:
    form = onnx_form(row, engine.files[0], engine.sha256, optimize=recipe.optimize)
    model = dataclasses.replace(form.model, runtime=engine.runtime, files=engine.files)
    return Runnable(model=model, sha256=engine.sha256)


def _unsimplified(exported: Outcome[Exported]) -> Outcome[StageOutput]:
    return Outcome(
        value=StageOutput(model=exported.value.model),
        key=exported.key,
        cached=exported.cached,
        seconds=0.0,
    )
