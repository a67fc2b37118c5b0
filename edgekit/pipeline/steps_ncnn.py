"""The stages of an export to ncnn: the prepared graph is converted, and ncnn's own files are quantized.

prepare → convert (pnnx) → quantize (ncnn int8, ranges from the same Calibration); nothing is left to
build behind that.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.codec import to_record
from edgekit.pipeline.choosing import search_notes
from edgekit.pipeline.records import Built, Exported, QuantizedRecord
from edgekit.pipeline.runner import Outcome
from edgekit.pipeline.steps import AUTO, Steps
from edgekit.stages.search import SearchOptions, SearchResult
from edgekit.types import Calibration, Engine, StageOutput

if TYPE_CHECKING:
    from edgekit.stages.quantize_ncnn import NcnnQuantizer
    from edgekit.stages.search_ncnn import NcnnSearch


class NcnnSteps(Steps):
    """The stages of one export to ncnn."""

    _plain: Outcome[Built] | None = None

    def float_model(
        self, exported: Outcome[Exported], prepared: Outcome[StageOutput]
    ) -> Outcome[Built]:
        """The model converted to ncnn: in the target's precision, float32 for an INT8 target."""
        if self._plain is not None:
            return self._plain
        model = prepared.value.model
        precision = "fp32" if self.profile.is_int8 else self.profile.build.precision
        fields = self._fields(
            "convert",
            "ncnn",
            "pnnx",
            "onnx",
            "onnx_ir",
            "onnxruntime",
            model=model.sha256,
            precision=precision,
            images=self.images.parity_key,
        )

        def work(folder: Path) -> Built:
            from edgekit.stages import convert_ncnn

            done = convert_ncnn.run(model, self.feeds(exported.value), precision, folder)
            return Built(
                engine=dataclasses.replace(done.engine, notes=done.notes),
                size_bytes=_size_bytes(done.engine),
                parity=done.parity,
            )

        outcome = self.runner.run("convert", fields, Built, work)
        value = outcome.value
        self.runner.report(
            "convert",
            outcome,
            size_bytes=value.size_bytes,
            parity=value.parity,
            notes=value.engine.notes,
        )
        self._plain = outcome
        return outcome

    def quantize(
        self,
        exported: Outcome[Exported],
        prepared: Outcome[StageOutput],
        calibration: Outcome[Calibration] | None,
    ) -> Outcome[QuantizedRecord]:
        request, rules = self.request, self.profile.quantize
        # ncnn reads no QDQ, so the graphs that need no calibration never come this far
        assert rules is not None and calibration is not None
        plain = self.float_model(exported, prepared)
        searches = request.method == AUTO
        fields = self._fields(
            "quantize_ncnn",
            "ncnn",
            "onnx",
            "onnx_ir",
            "onnxruntime",
            "numpy",
            search=request.search_seconds if searches else None,
            model=plain.value.engine.sha256,
            graph=prepared.value.model.sha256,
            statistics=calibration.value.sha256,
            method=request.method,
            rules=to_record(rules),
            keep_float=list(request.keep_float),
            table=None if request.ncnn_table is None else self.hashes.sha256(request.ncnn_table),
            images=self.images.parity_key,
        )
        key = self.runner.cache.key("quantize_ncnn", fields)

        def work(folder: Path) -> QuantizedRecord:
            return self._quantized(exported.value, prepared, plain, calibration, key, folder)

        outcome = self.runner.run("quantize_ncnn", fields, QuantizedRecord, work)
        # the graph lies in another entry of the cache than the record
        value = dataclasses.replace(outcome.value, model=prepared.value.model)
        outcome = dataclasses.replace(outcome, value=value)
        self.runner.report(
            "quantize",
            outcome,
            size_bytes=_size_bytes(value.runnable),
            parity=value.parity,
            notes=value.notes,
        )
        return outcome

    def _quantized(
        self,
        exported: Exported,
        prepared: Outcome[StageOutput],
        plain: Outcome[Built],
        calibration: Outcome[Calibration],
        key: str,
        folder: Path,
    ) -> QuantizedRecord:
        from edgekit.formats import ncnn_table
        from edgekit.preprocess import apply
        from edgekit.stages import collect_ncnn, quantize_ncnn, round_ncnn, search_ncnn

        request, rules = self.request, self.profile.quantize
        assert rules is not None
        partial = self.runner.cache.partial(key)
        feeds = self.feeds(exported)
        quantizer = quantize_ncnn.NcnnQuantizer(
            plain.value.engine, prepared.value.model, calibration.value, rules, feeds[0]
        )
        if quantizer.unmatched:
            quantizer.add_statistics(
                collect_ncnn.run(
                    plain.value.engine,
                    quantizer.unmatched,
                    self.images.source,
                    exported.contract,
                    folder / "ncnn-calibration.npz",
                    partial=partial,
                    max_bad_share=request.max_bad_share,
                    progress=self.runner.progress,
                )
            )
        if request.ncnn_table is None:
            pictures = self.images.spread(round_ncnn.IMAGES)
            tensors = [apply(picture, exported.contract)[0] for picture in pictures]
            quantizer.round_weights(tensors, self.runner.progress)
            del tensors
        keep = quantizer.always_float(request.keep_float)
        method, methods = request.method, {}
        result: SearchResult | None = None
        if request.ncnn_table is not None:
            method = f"table {request.ncnn_table.name}"
            keep.update(quantizer.take_table(ncnn_table.read(request.ncnn_table)))
        elif method == AUTO:
            subject = self._search_of(exported, quantizer, list(keep))
            options = SearchOptions(
                enough=search_ncnn.ENOUGH,
                broken=search_ncnn.BROKEN,
                within=search_ncnn.WITHIN,
                seconds=request.search_seconds,
            )
            result = subject.run(options, partial, self.runner.progress)
            choice = result.best.choice
            methods = subject.methods_of(choice)
            method = search_ncnn.METHODS[0] if methods else choice.method
            keep.update(dict.fromkeys(choice.keep_float, "the search left it float"))
        else:
            keep.update(quantizer.default_float())
        done = quantize_ncnn.run(quantizer, method, keep, feeds, folder, methods)
        return QuantizedRecord(
            model=prepared.value.model,
            engine=done.engine,
            int8_mac_share=done.int8_mac_share,
            compute=done.compute,
            floats=done.floats,
            weight_bits=done.weight_bits,
            choice=result.best.choice if result else None,
            trials=result.trials if result else (),
            agreement=result.best.agreement if result else None,
            methods=methods,
            parity=done.parity,
            notes=done.notes + (search_notes(result) if result else (method,)),
        )

    def _search_of(
        self, exported: Exported, quantizer: NcnnQuantizer, always: list[str]
    ) -> NcnnSearch:
        from edgekit.stages import search_ncnn

        return search_ncnn.NcnnSearch(
            quantizer,
            exported.contract,
            self.images.spread(search_ncnn.JUDGED_IMAGES),
            always,
            head=exported.head,
            names=exported.names,
            task=exported.task,
        )

    def build(
        self, prepared: Outcome[StageOutput], quantized: Outcome[QuantizedRecord] | None
    ) -> Outcome[Built]:
        """What the other stages wrote: the INT8 files, or the converted model."""
        if quantized is None:
            if self._plain is None:
                raise ValueError("build comes after float_model")
            return self._plain
        engine = quantized.value.runnable
        return Outcome(
            value=Built(engine=engine, size_bytes=_size_bytes(engine)),
            key=quantized.key,
            cached=quantized.cached,
            seconds=quantized.seconds,
        )


def _size_bytes(engine: Engine) -> int:
    """What the runtime loads: .param and .bin."""
    return sum(file.stat().st_size for file in engine.files if file.suffix in (".param", ".bin"))
