"""The last step: what the stages made becomes a bundle, and the bundle is checked before it counts."""

from __future__ import annotations

import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit import __version__, bundle
from edgekit.atomic import sha256_json
from edgekit.bundle import BundleContents, BundleModel, ChainStep, GoldenSample
from edgekit.codec import to_record
from edgekit.errors import EdgekitError, VerificationFailed
from edgekit.pipeline.device_files import DeviceFiles
from edgekit.pipeline.records import Built, Evaluated, Exported, Measured, QuantizedRecord
from edgekit.pipeline.request import ExportRequest
from edgekit.pipeline.runner import Outcome
from edgekit.pipeline.steps import Steps
from edgekit.pipeline.verdict import Verdict
from edgekit.require import versions_of
from edgekit.types import Calibration, Engine, StageOutput, to_json


@dataclass(frozen=True, kw_only=True)
class Made:
    """All outcomes of one export."""

    exported: Outcome[Exported]
    simplified: Outcome[StageOutput]
    prepared: Outcome[StageOutput]
    plain: Outcome[Built]
    calibration: Outcome[Calibration] | None
    quantized: Outcome[QuantizedRecord] | None
    built: Outcome[Built]
    evaluated_float: Outcome[Evaluated] | None
    evaluated_int8: Outcome[Evaluated] | None
    measured: Outcome[Measured]
    verdict: Verdict

    def key(self, steps: Steps, device: DeviceFiles) -> str:
        """Hash of everything the bundle's content depends on: the stages' keys and what is carried."""
        outcomes = (
            self.exported,
            self.simplified,
            self.prepared,
            self.plain,
            self.calibration,
            self.quantized,
            self.built,
            self.evaluated_float,
            self.evaluated_int8,
            self.measured,
        )
        return sha256_json(
            {
                "edgekit": __version__,
                "target": steps.profile.to_dict(),
                "stages": [outcome.key if outcome else None for outcome in outcomes],
                "precision": self.verdict.precision,
                "golden": steps.request.golden,
                "device": device.key,
            }
        )


def is_there(folder: Path, key: str) -> bool:
    """Whether an intact bundle with this very content lies at `folder` already."""
    if not bundle.is_bundle(folder):
        return False
    from edgekit.integrity import file_problem, sums_problem, unlisted

    try:
        manifest = bundle.read_manifest(folder)
    except EdgekitError:
        return False
    details = manifest.raw.get("details")
    if not isinstance(details, dict) or details.get("export_key") != key:
        return False
    return (
        sums_problem(manifest) is None
        and not unlisted(manifest)
        and all(file_problem(manifest, name) is None for name in manifest.files)
    )


def pack(steps: Steps, made: Made, key: str, device: DeviceFiles) -> None:
    """Write the bundle at the request's `out`; it replaces an earlier one only once it verifies."""
    from edgekit.runtimes import open_session
    from edgekit.stages.blocks import find_blocks
    from edgekit.stages.verify import verify_bundle

    request, exported = steps.request, made.exported.value
    carried = _carried(made)
    contract = exported.contract
    pictures = steps.images.samples(contract, request.golden)
    golden = []
    from edgekit.preprocess import apply

    runs = steps.runnable(carried.engine)
    with open_session(runs.runtime, runs.files) as session:
        name = session.inputs[0].name
        for picture in pictures:
            tensor, _ = apply(picture, contract)
            golden.append(
                GoldenSample(image=picture, input=tensor, outputs=session.run({name: tensor}))
            )
        inputs, outputs = session.inputs, session.outputs
    blocks = find_blocks(made.prepared.value.model.path, exported.head, {name: golden[0].input})
    calibration = made.calibration.value if made.calibration else None
    evaluated = made.evaluated_int8 or made.evaluated_float
    contents = BundleContents(
        name=request.out.name,
        target=steps.profile.to_dict(),
        checkpoint={
            "file": request.checkpoint.name,
            "sha256": steps.checkpoint_sha256,
            "kind": exported.kind,
            "parameters": exported.parameters,
        },
        chain=_chain(steps, made),
        models=(
            BundleModel(engine=carried.engine, inputs=inputs, outputs=outputs),
            *steps.stand_ins(carried.engine, inputs, outputs),
        ),
        preprocess=contract,
        golden=tuple(golden),
        golden_runtime=runs.runtime,
        golden_runtime_version=versions_of(runs.runtime)[runs.runtime],
        blocks=tuple(blocks),
        verdict=made.verdict.text,
        task=exported.task,
        head=exported.head,
        names=exported.names,
        versions=versions_of(
            "onnx", "onnxruntime", "numpy", "cv2", "torch", *_runtime_packages(carried.engine)
        ),
        calibration=calibration.path if calibration else None,
        calibration_method=_method(made, request.method) if calibration else None,
        calibration_sha256=calibration.image_sha256 if calibration else (),
        calibration_skipped=calibration.skipped if calibration else (),
        validation_sha256=evaluated.value.image_sha256 if evaluated else (),
        latency_float=made.measured.value.float_latency,
        latency_int8=made.measured.value.int8_latency,
        speedup=made.measured.value.speedup,
        accuracy_float=made.evaluated_float.value.accuracy if made.evaluated_float else None,
        accuracy_int8=made.evaluated_int8.value.accuracy if made.evaluated_int8 else None,
        details=_details(steps, made, key),
    )

    def check(folder: Path) -> None:
        failed = [item for item in verify_bundle(folder) if not item.ok]
        if failed:
            raise VerificationFailed(
                "The new bundle does not verify: "
                + "; ".join(f"{item.name}: {item.detail}" for item in failed),
            )

    with tempfile.TemporaryDirectory(prefix="edgekit-") as temporary:
        extra = (*contents.extra, *device.write(Path(temporary)))
        bundle.write(request.out, dataclasses.replace(contents, extra=extra), check=check)


def _carried(made: Made) -> Built:
    """The model that goes into the bundle: what was built, or the float model where INT8 lost."""
    if made.quantized is None or made.verdict.precision == "int8":
        return made.built.value
    engine = dataclasses.replace(
        made.plain.value.engine,
        precision=made.verdict.precision,
        notes=("the float model: INT8 does not pay here",),
    )
    return dataclasses.replace(made.plain.value, engine=engine)


def _details(steps: Steps, made: Made, key: str) -> dict[str, Any]:
    exported = made.exported.value
    details: dict[str, Any] = {
        **steps.details(made),
        "export_key": key,
        "preprocess_origin": exported.origin,
        "notes": list(exported.notes),
    }
    if exported.warning:
        details["warning"] = exported.warning
    if made.quantized is not None:
        record = made.quantized.value
        details["quantization"] = {
            "int8_mac_share": record.int8_mac_share,
            "weight_bits": record.weight_bits,
            "int8_layers": list(record.compute),
            "float_layers": record.floats,
            "slower_in_int8": list(made.measured.value.blame),
            "search": list(record.trials),
            "sensitivity_db": record.sensitivity_db,
            "faster_float": list(record.faster_float),
            "layer_methods": record.methods,
        }
    return to_json(details)  # type: ignore[no-any-return]


def _method(made: Made, asked: str) -> str:
    if made.calibration is None:
        return "none"  # every scale was there
    choice = made.quantized.value.choice if made.quantized else None
    return choice.method if choice is not None else asked


def _quantize_options(made: Made, request: ExportRequest) -> dict[str, Any]:
    """What a second run needs to get the same graph without searching (`--replay`)."""
    choice = made.quantized.value.choice if made.quantized else None
    keep = dict.fromkeys((*request.keep_float, *(choice.keep_float if choice else ())))
    return {
        "method": _method(made, request.method),
        "behind_activations": bool(choice and choice.behind),
        "bias_correction": bool(choice and choice.bias_correction),
        "keep_float": list(keep),
        "choice": to_record(choice) if choice else None,
    }


def _chain(steps: Steps, made: Made) -> tuple[ChainStep, ...]:
    request = steps.request
    exported, simplified, prepared = made.exported, made.simplified, made.prepared
    options: dict[str, Any] = {"opset": steps.profile.build.opset, "dynamic": request.dynamic_batch}
    if request.load.arch:
        options["arch"] = request.load.arch
        options["arch_args"] = dict(request.load.arch_args)
    chain = [
        ChainStep(
            name="export",
            input_sha256=(steps.checkpoint_sha256,),
            output_sha256=(exported.value.model.sha256,),
            options=options,
            versions=versions_of("torch", "onnx"),
            seconds=exported.seconds,
            cached=exported.cached,
            parity=exported.value.parity,
            notes=exported.value.notes,
        )
    ]
    before = exported.value.model.sha256
    for name, outcome, libraries in (
        ("simplify", simplified, ("onnxsim", "onnxslim")),
        ("prepare", prepared, ("onnx", "onnx_ir")),
    ):
        chain.append(
            ChainStep(
                name=name,
                input_sha256=(before,),
                output_sha256=(outcome.value.model.sha256,),
                versions=versions_of(*libraries),
                seconds=outcome.seconds,
                cached=outcome.cached,
                parity=outcome.value.parity,
                notes=outcome.value.notes,
            )
        )
        before = outcome.value.model.sha256
    graph, plain = before, made.plain.value.engine
    if plain.sha256 != graph:
        chain.append(
            ChainStep(
                name="float twin" if plain.runtime == "onnxruntime" else "convert",
                input_sha256=(graph,),
                output_sha256=(plain.sha256,),
                options={"precision": plain.precision},
                versions=versions_of(*_runtime_packages(plain)),
                seconds=made.plain.seconds,
                cached=made.plain.cached,
                parity=made.plain.value.parity,
                notes=plain.notes,
            )
        )
        if plain.runtime != "onnxruntime":
            before = plain.sha256
    statistics: tuple[str, ...] = ()
    if made.calibration is not None:
        statistics = (made.calibration.value.sha256,)
        chain.append(
            ChainStep(
                name="calibrate",
                input_sha256=(graph,),
                output_sha256=statistics,
                options={"max_bad_share": request.max_bad_share},
                versions=versions_of("onnxruntime", "numpy", "cv2"),
                seconds=made.calibration.seconds,
                cached=made.calibration.cached,
            )
        )
    if made.quantized is not None:
        quantized = made.quantized.value
        chain.append(
            ChainStep(
                name="quantize",
                input_sha256=(before, *statistics),
                output_sha256=(quantized.runnable.sha256,),
                options=_quantize_options(made, request),
                versions=versions_of("onnx", "onnx_ir", "numpy"),
                seconds=made.quantized.seconds,
                cached=made.quantized.cached,
                parity=quantized.parity,
                notes=quantized.notes,
            )
        )
        before = quantized.runnable.sha256
    # where a conversion or a quantization wrote the runtime's files, nothing is left to build
    if made.built.key not in (made.plain.key, made.quantized.key if made.quantized else ""):
        chain.append(
            ChainStep(
                name="build",
                input_sha256=(before,),
                output_sha256=(made.built.value.engine.sha256,),
                versions=versions_of(steps.profile.runtime.name),
                seconds=made.built.seconds,
                cached=made.built.cached,
                notes=made.built.value.engine.notes,
            )
        )
    return tuple(chain)


def _runtime_packages(engine: Engine) -> tuple[str, ...]:
    """What makes and runs the engine's files."""
    return {"ncnn": ("ncnn", "pnnx")}.get(engine.runtime, (engine.runtime,))
