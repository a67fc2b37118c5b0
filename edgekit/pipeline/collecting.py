"""Statistics of one ONNX model through the stage cache: known content is not collected again."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import onnx_file
from edgekit.cache import StageCache
from edgekit.cacheentry import CacheEntry
from edgekit.errors import BadInput
from edgekit.filehash import FileHashes
from edgekit.preprocess import Preprocess
from edgekit.target import TargetProfile
from edgekit.target_files import list_targets, load_target
from edgekit.types import Calibration, OnnxModel, Progress, no_progress

if TYPE_CHECKING:
    from edgekit.calibration.source import ImageSource
    from edgekit.stages.calibrate import CalibrateOptions

_STAGE = "calibration"
_FILE = "calibration.npz"
_KEPT = ("seconds", "inference_seconds", "peak_rss_mb")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model with its preprocessing contract; `warning` when that had to be assumed."""

    model: OnnxModel
    contract: Preprocess
    warning: str = ""


def open_subject(
    path: Path, overrides: Mapping[str, Any], size: tuple[int, int] | None = None
) -> Subject:
    """The ONNX model at `path`; its contract from overrides over metadata over an assumption.

    `size` (height, width) serves a model that leaves it open. Raises BadInput for other files.
    """
    from edgekit.checkpoint import load
    from edgekit.stages.contract import resolve

    checkpoint = load(path)
    if checkpoint.onnx is None:
        raise BadInput(
            f"{path} is not an ONNX model.", hint=f"edgekit export {path} makes one on its way."
        )
    model = onnx_file.describe(path)
    own = onnx_file.read_contract(model)
    if size is None and own is not None and checkpoint.input_shape is None:
        size = (own.height, own.width)
    resolved = resolve(checkpoint, dict(overrides), size)
    contract = resolved.contract
    dtype = onnx_file.main_input(model).dtype
    if own is None and "dtype" not in overrides and dtype in ("float16", "uint8"):
        contract = contract.replace(dtype=dtype)
    return Subject(model=model, contract=contract, warning=resolved.warning)


def observed(
    model: OnnxModel, target: TargetProfile | None
) -> tuple[tuple[str, ...], dict[str, int]]:
    """Tensors that the target, or any INT8 target there is, may quantize.

    With them the channel axis of those whose channel means bias correction needs.
    """
    import onnx_ir as ir

    from edgekit.quantization import forms, placement
    from edgekit.quantization.bias_correction import input_channels
    from edgekit.stages.quantize import observed_channels, observed_tensors, rules_of

    if target is not None:
        return observed_tensors(model, target), observed_channels(model, target)
    graph = ir.load(str(model.path))
    names: dict[str, None] = {}
    channels: dict[str, int] = {}
    seen = []
    for name in list_targets():
        profile = load_target(name)
        if profile.quantize is None:
            continue
        rules = rules_of(profile)
        if rules not in seen:
            seen.append(rules)
            channels = {**input_channels(graph, rules), **channels}
            formed = ir.load(str(model.path)) if rules.forms else graph
            forms.take(formed, rules.forms)
            names.update(dict.fromkeys(placement.observed(formed, rules)))
    if not names:
        raise BadInput(
            f"{model.path} has nothing that a target computes in INT8.",
            hint="--all-tensors observes every float tensor.",
        )
    return tuple(names), channels


def collect(
    subject: Subject,
    source: ImageSource,
    out: Path,
    options: CalibrateOptions,
    progress: Progress = no_progress,
    say: Callable[[str], None] = lambda message: None,
) -> Calibration:
    """Statistics of `source` in the file `out`: from the cache, else collected and kept there.

    `say` hears which field of the content key changed when there was something similar. Raises what
    `edgekit.stages.calibrate.run` raises.
    """
    from edgekit.stages import calibrate

    calibrate.check_fits(subject.model, subject.contract)
    with StageCache(note=say) as cache, FileHashes(cache.folder / "hashes.json") as hashes:
        options = dataclasses.replace(options, hash_file=hashes.sha256)
        found, _ = calibrate.fingerprints(source, hashes.sha256, progress)
        fields = calibrate.content_key(
            subject.model, list(found), subject.contract, options.tensors, options.channels
        ).fields
        key = cache.key(_STAGE, fields)
        entry = cache.get(key)
        if entry is not None:
            return _from_cache(entry, out, options)
        say(f"Not in the cache: {cache.why_missed(_STAGE, fields)}.")
        options = dataclasses.replace(options, partial=cache.partial(key))
        from edgekit import atomic

        with cache.put(key) as folder:
            made = calibrate.run(
                subject.model, source, subject.contract, folder / _FILE, options, progress
            )
            atomic.write_json(folder / "result.json", {name: getattr(made, name) for name in _KEPT})
            _copy(folder / _FILE, out)
        return dataclasses.replace(made, path=out)


def _from_cache(entry: CacheEntry, out: Path, options: CalibrateOptions) -> Calibration:
    from edgekit.stages import calibrate

    _copy(entry.file(_FILE), out)
    calibration = calibrate.open_calibration(
        out,
        options.method,
        symmetric=options.symmetric,
        levels=options.levels,
        overrides=options.overrides,
    )
    kept: dict[str, Any] = {name: float(entry.result[name]) for name in _KEPT}
    return dataclasses.replace(calibration, cached=True, **kept)


def _copy(source: Path, out: Path) -> None:
    from edgekit.atomic import replacing

    with replacing(out) as temporary:
        shutil.copyfile(source, temporary)
