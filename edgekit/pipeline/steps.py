"""The stages behind the float model: calibrate, quantize, build, evaluate, measure, with their cache keys."""

from __future__ import annotations

import dataclasses
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import cpu
from edgekit.bundle import BundleModel
from edgekit.codec import to_record
from edgekit.errors import UsageError
from edgekit.pipeline.choosing import is_symmetric, search_notes, searched, taken, with_method
from edgekit.pipeline.records import (
    Built,
    Evaluated,
    Exported,
    Measured,
    QuantizedRecord,
)
from edgekit.pipeline.request import ExportRequest
from edgekit.pipeline.runner import Outcome
from edgekit.pipeline.steps_float import FloatSteps
from edgekit.stages.search import Choice, SearchOptions, SearchResult
from edgekit.types import Calibration, Engine, OnnxModel, StageOutput, TensorSpec

if TYPE_CHECKING:
    from edgekit.pipeline.packing import Made
    from edgekit.stages.quantize import QuantizeOptions

AUTO = "auto"
"""The method of a request that leaves ranges and float layers to the search."""


class Steps(FloatSteps):
    """The stages of one export; call them in the order of the methods."""

    least_share, within = SearchOptions.least_share, SearchOptions.within
    """For a search: share of the MACs that must stay in INT8, and how far from the best trial one with
    fewer float layers may be."""

    # --- INT8 -------------------------------------------------------------------------------

    def calibrate(
        self, exported: Outcome[Exported], prepared: Outcome[StageOutput]
    ) -> Outcome[Calibration] | None:
        """Statistics of every tensor that lacks a scale; None when no layer needs any.

        That is so where quantization-aware training, or another tool, has put scales everywhere.
        Without images it is enough that the layers have theirs. Raises UsageError when they do not.
        """
        from edgekit.stages.quantize import rules_of

        request = self.request
        if prepared.value.holds_qdq and not self._must_calibrate(prepared.value.model):
            return None
        rules = rules_of(self.profile)
        fields = self._fields(
            "calibrate",
            "onnxruntime",
            "cv2",
            "numpy",
            graph=prepared.value.model.sha256,
            images=sorted(self.images.sha256),
            preprocess=exported.value.contract.to_dict(),
            operators=list(rules.operators),
            follow=list(rules.follow),
            **({"forms": list(rules.forms)} if rules.forms else {}),
            operands_only=rules.operands_only,
            max_bad_share=request.max_bad_share,
        )
        key = self.runner.cache.key("calibrate", fields)

        def work(folder: Path) -> Calibration:
            from edgekit.stages import calibrate
            from edgekit.stages.quantize import observed_channels, observed_tensors

            options = calibrate.CalibrateOptions(
                method=_first_method(request.method),
                tensors=observed_tensors(prepared.value.model, self.profile),
                channels=observed_channels(prepared.value.model, self.profile),
                symmetric=is_symmetric(self.profile),
                workers=request.workers,
                threads=cpu.available_cores(),
                max_bad_share=request.max_bad_share,
                partial=self.runner.cache.partial(key),
            )
            made = calibrate.run(
                prepared.value.model,
                self.images.source,
                exported.value.contract,
                folder / "calibration.npz",
                options,
                self.runner.progress,
            )
            return calibrate.with_stability(made, symmetric=options.symmetric)

        outcome = self.runner.run("calibrate", fields, Calibration, work, tell=True)
        value = outcome.value
        notes = [f"{value.images} images, {len(value.ranges)} tensors"]
        if value.uncertainty is not None:
            notes.append(f"ranges certain to {value.uncertainty:.1%}")
        if value.skipped:
            notes.append(f"{len(value.skipped)} images skipped")
        self.runner.report("calibrate", outcome, notes=tuple(notes))
        return outcome

    def _must_calibrate(self, model: OnnxModel) -> bool:
        """Whether a graph with quantization of its own lacks scales that have to be found."""
        from edgekit.stages import quantize

        if not quantize.needs_calibration(model, self.profile):
            note = "every scale is there already: nothing to calibrate"
        elif self.images.paths:
            return True
        else:
            layers = quantize.uncalibrated_layers(model, self.profile)
            if layers:
                demand_images(self.request, f"{len(layers)} layers lack scales ({layers[0]}), and")
            note = "no images: all layers have their scales, what lies between them stays float"
        there = Outcome(value=None, key="calibrate-nothing", cached=False, seconds=0.0)
        self.runner.report("calibrate", there, notes=(note,))
        return False

    def quantize(
        self,
        exported: Outcome[Exported],
        prepared: Outcome[StageOutput],
        calibration: Outcome[Calibration] | None,
    ) -> Outcome[QuantizedRecord]:
        from edgekit.stages import quantize

        request = self.request
        replay = request.replay
        searches = request.method == AUTO and calibration is not None and replay is None
        collected = (
            calibration.value if calibration else quantize.no_calibration(prepared.value.model)
        )
        options = quantize.QuantizeOptions(keep_float=request.keep_float)
        fields = self._fields(
            "quantize",
            "onnx",
            "onnx_ir",
            "onnxruntime",
            "numpy",
            search=request.search_seconds if searches else None,
            replay=to_record(replay) if replay else None,
            **({"least": [self.least_share, self.within]} if type(self) is not Steps else {}),
            graph=prepared.value.model.sha256,
            statistics=collected.sha256,
            method=request.method,
            rules=to_record(quantize.rules_of(self.profile)),
            scheme=to_record(quantize.scheme_of(self.profile, options)),
            keep_float=list(request.keep_float),
            images=self.images.parity_key,
        )

        key = self.runner.cache.key("quantize", fields)

        def work(folder: Path) -> QuantizedRecord:
            result = None
            if searches:
                ranges, chosen, result = self._search(
                    exported.value, prepared.value.model, collected, options, key
                )
            elif replay is not None and calibration is not None:
                ranges, chosen = taken(
                    prepared.value.model, collected, self.profile, replay, options
                )
            else:
                ranges = collected
                if calibration is not None:
                    ranges = with_method(collected, request.method, is_symmetric(self.profile))
                chosen = options
            done = quantize.run(
                prepared.value.model,
                ranges,
                self.profile,
                self.feeds(exported.value),
                folder / "model.onnx",
                chosen,
            )
            told = search_notes(result) if result else (ranges.method,)
            choice = result.best.choice if result else replay
            if choice is None:
                choice = Choice(method=ranges.method)
            return QuantizedRecord(
                model=done.model,
                int8_mac_share=done.placement.int8_mac_share,
                compute=done.placement.compute,
                floats=done.placement.floats,
                weight_bits=done.scheme.weight_bits,
                choice=dataclasses.replace(choice, keep_float=chosen.keep_float),
                trials=result.trials if result else (),
                agreement=result.best.agreement if result else None,
                faster_float=result.faster_float if result else (),
                sensitivity_db=dict(result.sensitivity_db) if result else {},
                parity=done.parity,
                notes=done.notes + (told if calibration is not None else ()),
            )

        outcome = self.runner.run("quantize", fields, QuantizedRecord, work)
        value = outcome.value
        self.runner.report(
            "quantize",
            outcome,
            size_bytes=value.model.size_bytes,
            parity=value.parity,
            notes=value.notes,
        )
        return outcome

    def _search(
        self,
        exported: Exported,
        model: OnnxModel,
        calibration: Calibration,
        options: QuantizeOptions,
        key: str,
    ) -> tuple[Calibration, QuantizeOptions, SearchResult]:
        """The calibration and the options that the search chose, and how it went."""
        from edgekit.stages.search_int8 import JUDGED_IMAGES

        return searched(
            model,
            calibration,
            self.profile,
            exported.contract,
            self.images.spread(JUDGED_IMAGES),
            options,
            SearchOptions(
                seconds=self.request.search_seconds,
                least_share=self.least_share,
                within=self.within,
            ),
            self.runner.cache.partial(key),
            self.runner.progress,
            head=exported.head,
            names=exported.names,
            task=exported.task,
        )

    # --- what the runtime loads, and what it is worth ----------------------------------------

    def build(
        self, prepared: Outcome[StageOutput], quantized: Outcome[QuantizedRecord] | None
    ) -> Outcome[Built]:
        model = quantized.value.model if quantized else prepared.value.model
        fields = self._fields(
            "build",
            self.profile.runtime.name,
            model=model.sha256,
            target=_build_key(self.profile),
        )

        def work(folder: Path) -> Built:
            from edgekit.builders import build

            engine = build(model, self.profile, folder)
            return Built(engine=engine, size_bytes=sum(f.stat().st_size for f in engine.files))

        outcome = self.runner.run("build", fields, Built, work)
        value = outcome.value
        self.runner.report("build", outcome, size_bytes=value.size_bytes, notes=value.engine.notes)
        return outcome

    def evaluate(
        self, name: str, exported: Outcome[Exported], engine: Engine
    ) -> Outcome[Evaluated] | None:
        """Accuracy of a model on the labelled images; None when there are none."""
        dataset = self.dataset
        if dataset is None:
            return None
        value = exported.value
        fields = self._fields(
            "evaluate",
            engine.runtime,
            "faster_coco_eval",
            "numpy",
            "cv2",
            model=engine.sha256,
            preprocess=value.contract.to_dict(),
            head=value.head,
            data=dataset.sha256(),
            isa=list(cpu.detect().isa),
        )

        def work(folder: Path) -> Evaluated:
            from edgekit.runtimes import open_session
            from edgekit.runtimes.base import SessionOptions
            from edgekit.stages import evaluate

            options = evaluate.EvaluateOptions(head=value.head)
            threads = max(1, cpu.available_cores() - 1)
            with open_session(
                engine.runtime, engine.files, SessionOptions(threads=threads)
            ) as session:
                accuracy = evaluate.run(
                    session, dataset, value.contract, options, self.runner.progress
                )
            hashes = tuple(sample.sha256() for sample in dataset.samples)
            return Evaluated(accuracy=accuracy, image_sha256=hashes, notes=dataset.notes)

        outcome = self.runner.run("evaluate", fields, Evaluated, work)
        accuracy = outcome.value.accuracy
        self.runner.report(
            name,
            outcome,
            notes=(f"{accuracy.metric} {100 * accuracy.value:.2f} on {accuracy.images} images",),
        )
        return outcome

    def measure(
        self,
        exported: Outcome[Exported],
        plain: Outcome[Built],
        built: Outcome[Built],
        quantized: Outcome[QuantizedRecord] | None,
    ) -> Outcome[Measured]:
        """Latency on this machine; nothing where the target is of another architecture."""
        machine = cpu.detect()
        settings = self.profile.measure
        if self.profile.device.arch != machine.arch:
            elsewhere = Outcome(
                value=Measured(), key=f"measure-{machine.arch}", cached=True, seconds=0.0
            )
            text = f"built for {self.profile.device.arch}: not timed on {machine.arch}"
            self.runner.report("measure", elsewhere, notes=(text,))
            return elsewhere
        fields = self._fields(
            "measure",
            self.profile.runtime.name,
            float=plain.value.engine.sha256,
            model=built.value.engine.sha256,
            settings=dataclasses.asdict(settings),
            machine=[platform.node(), machine.model, list(machine.isa), machine.cores],
        )

        def work(folder: Path) -> Measured:
            from edgekit.stages import time_export

            timed, int8, speedup, blame = time_export.run(
                plain.value.engine,
                built.value.engine if quantized else None,
                self.feeds(exported.value),
                settings,
                self.runner.progress,
            )
            return Measured(float_latency=timed, int8_latency=int8, speedup=speedup, blame=blame)

        outcome = self.runner.run("measure", fields, Measured, work)
        value = outcome.value
        notes = []
        if value.float_latency is not None:
            notes.append(f"float p50 {value.float_latency.p50_ms:.2f} ms")
        if value.int8_latency is not None and value.speedup is not None:
            notes.append(f"int8 p50 {value.int8_latency.p50_ms:.2f} ms")
            notes.append(f"{value.speedup.ratio:.2f}x")
        self.runner.report("measure", outcome, notes=tuple(notes))
        return outcome

    # --- what the bundle says beside the model ------------------------------------------------

    def runnable(self, engine: Engine) -> Engine:
        """What computes the golden outputs on this machine: the model that is carried."""
        return engine

    def stand_ins(
        self, engine: Engine, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
    ) -> tuple[BundleModel, ...]:
        """Further models of the bundle, for other runtimes."""
        return ()

    def details(self, made: Made) -> dict[str, Any]:
        """Further values for the manifest's `details`, by topic."""
        return {}


def demand_images(request: ExportRequest, why: str = "") -> None:
    """Raises UsageError, with `why` in it, when there are no calibration images."""
    if request.images is None:
        why = why or f"The target {request.target.name} calibrates, and"
        raise UsageError(
            f"{why} no calibration images were given.",
            hint="Give a folder of a hundred or so typical images: --images DIR.",
        )


def _first_method(method: str) -> str:
    """A method to choose the first ranges by; a search chooses again."""
    return "percentile" if method == AUTO else method


def _build_key(profile: Any) -> dict[str, Any]:
    plain = profile.to_dict()
    return {"runtime": plain["runtime"], "build": plain["build"]}
