"""The search for the INT8 model that is nearest to float: which ranges, and which layers stay float.

It is given its score, its sensitivities and its clock as functions, and knows nothing of models:

1. every choice of ranges is tried with all layers in INT8; the best of them (a second one where it
   is close) is tried with its biases corrected; the one that agrees best wins;
2. when that is not near enough, layers are ranked by the damage each does alone, and the worst ones
   are left float, a growing number of them, as long as enough of the work stays INT8;
3. of everything tried, the one with the fewest float layers that is within a small distance of the
   best is taken.

Every trial is handed to `remember`, and trials known from an interrupted run are not repeated.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from edgekit.types import Progress, no_progress

# prefixes of the ranking that are tried: dense where single layers matter
_COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One way to quantize: a calibration method, whether ranges look behind activations, the nodes
    left float, and whether biases are corrected."""

    method: str
    behind: bool = False
    keep_float: tuple[str, ...] = ()
    bias_correction: bool = False


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A choice with its agreement (0 to 1) and the share of MACs that stays INT8."""

    choice: Choice
    agreement: float
    int8_mac_share: float


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """`enough`: agreement that ends the search; `within`: how far from the best the taken trial may
    be for the sake of fewer float layers; `least_share`: share of the MACs that must stay INT8;
    `seconds`: no new trial starts after that."""

    enough: float = 0.985
    within: float = 0.004
    least_share: float = 0.85
    seconds: float = 120.0


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """The taken trial, all trials in order, and whether the time ran out."""

    best: Trial
    trials: tuple[Trial, ...]
    sensitivity_db: Mapping[str, float] = field(default_factory=dict)
    out_of_time: bool = False


def run(
    ranges: Sequence[Choice],
    attempt: Callable[[Choice], Trial],
    sensitivities: Callable[[Choice], Mapping[str, float]],
    share_without: Callable[[Iterable[str]], float],
    options: SearchOptions,
    *,
    corrects: bool = False,
    known: Sequence[Trial] = (),
    remember: Callable[[Sequence[Trial]], None] = lambda trials: None,
    clock: Callable[[], float] = time.monotonic,
    progress: Progress = no_progress,
) -> SearchResult:
    """Search. `ranges` are the choices of step 1, the default first.

    `attempt` quantizes and scores one choice; `sensitivities` gives the SQNR in dB of the outputs
    with only one layer in INT8, by layer; `share_without` the share of MACs in INT8 when some layers
    stay float. At least the first choice is always tried. `corrects`: biases can be corrected.
    """
    started = clock()
    done = {trial.choice: trial for trial in known}
    trials: list[Trial] = []
    late = False

    def tried(choice: Choice) -> Trial:
        if choice not in done:
            done[choice] = attempt(choice)
        trials.append(done[choice])
        remember(tuple(done.values()))
        progress(len(trials), 0, "search")
        return done[choice]

    def time_left() -> bool:
        nonlocal late
        late = late or clock() - started > options.seconds
        return not late

    for choice in ranges:
        if not trials or time_left():
            tried(choice)
    if corrects:
        for choice in _worth_correcting(trials, options.within):
            if time_left():
                tried(replace(choice, bias_correction=True))
    best = max(trials, key=lambda trial: trial.agreement)
    ranking: Mapping[str, float] = {}
    if best.agreement < options.enough and time_left():
        ranking = sensitivities(best.choice)
        worst_first = _affordable(
            sorted(ranking, key=lambda name: ranking[name]), share_without, options.least_share
        )
        for count in _counts(len(worst_first)):
            keep = tuple(worst_first[:count])
            if not time_left():
                break
            trial = tried(replace(best.choice, keep_float=keep))
            if trial.agreement >= options.enough:
                break
    top = max(trial.agreement for trial in trials)
    near = [trial for trial in trials if trial.agreement >= top - options.within]
    taken = min(near, key=lambda trial: (len(trial.choice.keep_float), -trial.agreement))
    return SearchResult(
        best=taken, trials=tuple(trials), sensitivity_db=dict(ranking), out_of_time=late
    )


def _worth_correcting(trials: Sequence[Trial], within: float) -> list[Choice]:
    """The best choice, and the second one when it is less than `within` behind."""
    ranked = sorted(trials, key=lambda trial: -trial.agreement)
    return [t.choice for t in ranked[:2] if t.agreement >= ranked[0].agreement - within]


def _counts(layers: int) -> tuple[int, ...]:
    """The sizes of prefixes to try, the longest that there is among them."""
    most = min(layers, _COUNTS[-1])
    return (*(count for count in _COUNTS if count < most), *((most,) if most else ()))


def _affordable(
    ranking: Sequence[str], share_without: Callable[[Iterable[str]], float], least_share: float
) -> list[str]:
    """The layers of `ranking` that can be float together, in order; one too large is passed over."""
    chosen: list[str] = []
    for name in ranking[: 2 * _COUNTS[-1]]:
        if share_without((*chosen, name)) >= least_share:
            chosen.append(name)
    return chosen
