"""From what a user named to what is compared: each model made ready to run, its INT8 form beside it.

A checkpoint is compared in PyTorch and, exported, in ONNX Runtime; an ONNX file and a bundle as they
are. Exports go through the stages of `edgekit export` and their cache. What fails for one model is
kept with that model.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit import onnx_file
from edgekit.errors import EdgekitError, UsageError
from edgekit.filehash import FileHashes
from edgekit.pipeline.compare.request import CompareRequest, Listed
from edgekit.pipeline.request import ExportRequest
from edgekit.pipeline.routes import steps_for
from edgekit.pipeline.runner import StageRunner
from edgekit.pipeline.steps import Steps
from edgekit.stages import graph_layers, model_facts
from edgekit.stages.model_facts import ModelFacts
from edgekit.stages.opening import TORCH, NamedModel, describe
from edgekit.stages.timed import ModelToTime
from edgekit.types import Engine

if TYPE_CHECKING:
    from edgekit.preprocess import Preprocess


@dataclass(frozen=True, kw_only=True)
class Runnable:
    """A model in one runtime: what is timed and evaluated, and the sha256 of its first file."""

    model: ModelToTime
    sha256: str


@dataclass(kw_only=True)
class Candidate:
    """One row on its way; `forms` are its runnable forms, the one that is deployed last."""

    name: str
    source: Path
    precision: str = ""
    contract: Preprocess | None = None
    head: str | None = None
    names: tuple[str, ...] = ()
    architecture: str = ""
    training_batch: int | None = None
    parameters: int | None = None
    size_bytes: int | None = None
    facts: ModelFacts | None = None
    forms: list[Runnable] = field(default_factory=list)
    made_from: str = ""
    variant: str | None = None
    errors: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def deployed(self) -> Runnable | None:
        """The form whose accuracy counts: PyTorch only where there is no other."""
        others = [form for form in self.forms if form.model.runtime != TORCH] or self.forms
        return others[-1] if others else None

    def failed(self, error: EdgekitError, doing: str = "") -> None:
        self.errors.append(f"{doing}: {error.message}" if doing else error.message)


def candidates(
    request: CompareRequest,
    models: list[Listed],
    runner: StageRunner,
    hashes: FileHashes,
) -> list[Candidate]:
    """All rows, in the order of `models`; a float model's INT8 form follows it.

    Raises UsageError when an INT8 target lacks calibration images.
    """
    if request.target.is_int8 and request.images is None and request.preset != "ablation":
        raise UsageError(
            f"The target {request.target.name} calibrates, and no calibration images were given.",
            hint="Give a folder of a hundred or so typical images (--images DIR), or a float target.",
        )
    found: list[Candidate] = []
    for number, model in enumerate(models):
        runner.progress(number, len(models), f"preparing {model.name}")
        found += _Builder(request, model, runner, hashes).build()
    return found


class _Builder:
    """Makes the rows of one model."""

    def __init__(
        self, request: CompareRequest, model: Listed, runner: StageRunner, hashes: FileHashes
    ) -> None:
        self.request = request
        self.model = model
        self.runner = runner
        self.hashes = hashes

    def build(self) -> list[Candidate]:
        row = Candidate(name=self.model.name, source=self.model.path)
        try:
            named = describe(self.model.path, self.request.load)
            _describe(row, named, self.request)
        except EdgekitError as error:
            row.failed(error)
            return [row]
        if named.runtime != TORCH:
            self._as_it_is(row, named)
            if not self._quantizes(named):
                return [row]
            int8 = self._sibling(row)
            try:
                self._int8(int8, self._steps())
            except EdgekitError as error:
                int8.failed(error)
            return [row, int8]
        assert row.contract is not None
        row.forms.append(_checkpoint_form(row, named))
        row.size_bytes = named.size_bytes
        try:
            steps = self._steps()
            self._exported(row, steps)
        except EdgekitError as error:
            row.failed(error, "export")
            return [row]
        if not self._quantizes(named):
            return [row]
        int8 = self._sibling(row)
        try:
            self._int8(int8, steps)
        except EdgekitError as error:
            int8.failed(error)
        return [row, int8]

    def _quantizes(self, named: NamedModel) -> bool:
        return (
            self.request.target.is_int8
            and named.precision == "fp32"
            and named.checkpoint.kind != "bundle"
            and named.runtime in (TORCH, "onnxruntime")
        )

    def _sibling(self, row: Candidate) -> Candidate:
        """The row of the INT8 form."""
        return Candidate(
            name=f"{row.name} INT8",
            source=row.source,
            precision="int8",
            contract=row.contract,
            head=row.head,
            names=row.names,
            architecture=row.architecture,
            training_batch=row.training_batch,
            parameters=row.parameters,
            made_from=row.name,
        )

    def _steps(self) -> Steps:
        return steps_for(export_request(self.request, self.model.path), self.runner, self.hashes)

    def _as_it_is(self, row: Candidate, named: NamedModel) -> None:
        """An ONNX file or a bundle: nothing is changed."""
        row.forms.append(
            Runnable(
                model=ModelToTime(
                    name=row.name,
                    runtime=named.runtime,
                    files=named.files,
                    contract=row.contract,
                    inputs=named.golden[0] if named.golden and _one(self.request) else None,
                ),
                sha256=named.checkpoint.sha256,
            )
        )
        row.size_bytes = named.size_bytes
        if named.files[0].suffix == ".onnx":
            row.facts = self._facts(row, named.files[0])
            if named.checkpoint.kind != "bundle":  # a file's scales are no parameters
                proto = onnx_file.load(named.files[0])
                row.parameters = graph_layers.parameters(proto)[0]

    def _exported(self, row: Candidate, steps: Steps) -> None:
        exported = steps.export()
        prepared = steps.prepare(exported, steps.simplify(exported))
        model = prepared.value.model
        row.contract = exported.value.contract
        row.parameters = exported.value.parameters or row.parameters
        row.size_bytes = model.size_bytes
        row.facts = self._facts(row, model.path)
        row.forms.append(onnx_form(row, model.path, model.sha256))
        plain = steps.float_model(exported, prepared).value
        if plain.engine.runtime != "onnxruntime":
            # the target's own runtime: what would be deployed there
            row.precision, row.size_bytes = plain.engine.precision, plain.size_bytes
            row.forms.append(self._engine_form(row, plain.engine))

    def _engine_form(self, row: Candidate, engine: Engine) -> Runnable:
        """What the target's builder made."""
        return Runnable(
            model=ModelToTime(
                name=row.name,
                runtime=engine.runtime,
                files=engine.files,
                contract=row.contract,
            ),
            sha256=engine.sha256,
        )

    def _int8(self, row: Candidate, steps: Steps) -> None:
        exported = steps.export()
        prepared = steps.prepare(exported, steps.simplify(exported))
        calibration = steps.calibrate(exported, prepared)
        quantized = steps.quantize(exported, prepared, calibration)
        built = steps.build(prepared, quantized)
        row.contract = exported.value.contract
        row.size_bytes = built.value.size_bytes
        # the network is that of the float graph: forms that INT8 takes add zeros to kernels
        plain = self._facts(row, prepared.value.model.path)
        row.facts = dataclasses.replace(
            self._facts(row, quantized.value.model.path),
            macs=plain.macs,
            channels=plain.channels,
            structure=plain.structure,
        )
        row.notes.append(f"{quantized.value.int8_mac_share:.0%} of the MACs in INT8")
        row.forms.append(self._engine_form(row, built.value.engine))

    def _facts(self, row: Candidate, path: Path) -> ModelFacts:
        shape = row.contract.input_shape if row.contract is not None else None
        return model_facts.read(path, shape)


def _one(request: CompareRequest) -> bool:
    return request.batches == (1,)


def _describe(row: Candidate, named: NamedModel, request: CompareRequest) -> None:
    resolved = named.contract(request.overrides, request.size)
    row.contract = resolved.contract
    if resolved.warning:
        row.notes.append(resolved.warning)
    row.precision = named.precision
    row.head = request.head or named.checkpoint.head
    row.names = named.checkpoint.names
    row.architecture = named.checkpoint.architecture
    row.training_batch = named.checkpoint.training_batch
    row.parameters = named.checkpoint.parameters or None
    # what was quantized and is compared in float must be known
    row.notes += [note for note in named.checkpoint.notes if "turned into float" in note]


def _checkpoint_form(row: Candidate, named: NamedModel) -> Runnable:
    return Runnable(
        model=ModelToTime(
            name=row.name,
            runtime=TORCH,
            files=named.files,
            contract=row.contract,
            load=named.load,
        ),
        sha256=named.checkpoint.sha256,
    )


def onnx_form(row: Candidate, path: Path, sha256: str, *, optimize: bool = True) -> Runnable:
    """An ONNX file as it runs in ONNX Runtime."""
    return Runnable(
        model=ModelToTime(
            name=row.name,
            runtime="onnxruntime",
            files=(path,),
            contract=row.contract,
            optimize=optimize,
        ),
        sha256=sha256,
    )


def export_request(request: CompareRequest, path: Path) -> ExportRequest:
    """The export of one model, as far as comparing it needs one."""
    return ExportRequest(
        checkpoint=path,
        target=request.target,
        out=Path(),  # nothing is packed
        images=request.images,
        load=request.load,
        size=request.size,
        overrides=request.overrides,
        head=request.head,
        method=request.method,
        search_seconds=request.search_seconds,
        dynamic_batch=max(request.batches) > 1,
    )
