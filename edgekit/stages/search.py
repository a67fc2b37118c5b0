"""The search for the INT8 model that is near float and pays: which ranges, and what stays float.

It is given its score, its sensitivities, its timer and its clock as functions, and knows nothing of
models:

1. every choice of ranges is tried with all layers in INT8; the best of them (a second one where it
   is close) is tried with its biases corrected; the one that agrees best wins;
2. stretches of layers that make the model faster when they are left float are left float, first
   each alone, then the best of them together, always measured in the target's runtime;
3. when agreement is not near enough, layers are ranked by the damage each does alone, and the worst
   ones are left float, a growing number of them, as long as enough of the work stays INT8; where the
   model is still broken then, more of them, whatever is left in INT8, and the ranges are chosen again:
   between broken models, the first choice was a blind one. A model that is broken from the start is
   mended before step 2: the speed of a model that is no good says nothing, and layers left float for it
   hide what breaks the rest;
4. of everything tried that is near enough, the fastest is taken; without a timer, the one with the
   fewest float layers.

Every trial is handed to `remember`, and trials known from an interrupted run are not repeated.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from edgekit.types import Progress, no_progress

# prefixes of the ranking that are tried: dense where single layers matter
_COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
MENDING_PARTS = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.9)
"""Parts of all layers, the most harmful first, that are left float where a model is broken otherwise:
such a model needs many, and each trial takes its time."""
# trials that are timed against each other in the end
_FINALISTS = 5
# how far behind the best ranges others may be to be corrected too: correction brings as much
_CLOSE = 0.02
# a difference in speed that is not worth a float layer
_SAME_SPEED = 1.01


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
    """A choice with its agreement (0 to 1), the share of MACs that stays INT8, and the ms of a run
    where it was timed."""

    choice: Choice
    agreement: float
    int8_mac_share: float
    latency_ms: float | None = None


@dataclass(frozen=True, kw_only=True)
class Pace:
    """One candidate beside the first of its race: `ms` of a run, and how many times as fast as the
    first it is (`ratio` > 1 is faster) with a 90 % interval."""

    ms: float
    ratio: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """When is enough enough.

    `enough`: agreement that ends the search; `within`: how far from the best the taken trial may
    be for the sake of speed or of fewer float layers; `least_agreement` takes the place of both:
    everything that reaches it is near enough. `broken`: agreement below which a model is no good, so
    that more is left float than `least_share`, the share of the MACs that must stay INT8, allows
    (layers left float for speed may go below it where INT8 is not faster otherwise); `seconds`: no
    new trial starts after that, or after `patience` times that while the model is still broken.
    """

    enough: float = 0.985
    broken: float = 0.9
    within: float = 0.004
    least_agreement: float | None = None
    least_share: float = 0.85
    seconds: float = 120.0
    patience: float = 3.0

    @property
    def goal(self) -> float:
        """Agreement at which nothing more is tried."""
        return self.enough if self.least_agreement is None else self.least_agreement


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """The taken trial, all trials in order, and whether the time ran out.

    `faster_float`: layers left float because the model is faster so. `met`: whether the taken trial
    reaches `least_agreement` (True where none was asked for).
    """

    best: Trial
    trials: tuple[Trial, ...]
    sensitivity_db: Mapping[str, float] = field(default_factory=dict)
    faster_float: tuple[str, ...] = ()
    met: bool = True
    out_of_time: bool = False


Racer = Callable[[Sequence["Choice | None"]], Sequence[Pace]]
"""Times candidates beside each other; None is the float model. Ratios are to the first."""


def run(
    ranges: Sequence[Choice],
    attempt: Callable[[Choice], Trial],
    sensitivities: Callable[[Choice], Mapping[str, float]],
    share_without: Callable[[Iterable[str]], float],
    options: SearchOptions,
    *,
    fits: Callable[[Iterable[str]], bool] = lambda names: True,
    corrects: bool = False,
    race: Racer | None = None,
    stretches: Sequence[tuple[str, ...]] = (),
    known: Sequence[Trial] = (),
    remember: Callable[[Sequence[Trial]], None] = lambda trials: None,
    clock: Callable[[], float] = time.monotonic,
    progress: Progress = no_progress,
) -> SearchResult:
    """Search. `ranges` are the choices of step 1, the default first.

    `attempt` quantizes and scores one choice; `sensitivities` gives the SQNR in dB of the outputs
    with only one layer in INT8, by layer, those to be left float first; `share_without` the share
    of MACs in INT8 when some layers stay float; `fits` says whether their weights are small enough
    for it. At least the first choice is always tried. `corrects`: biases can be corrected. `race`
    times candidates, None where this machine cannot; `stretches` are the groups of layers that it is
    tried on.
    """
    log = _Log(attempt, options, known, remember, clock, progress)
    for choice in ranges:
        if not log.trials or log.time_left():
            log.tried(choice)
    if corrects:
        for choice in _worth_correcting(log.trials):
            if log.time_left():
                log.tried(replace(choice, bias_correction=True))

    def mended(base: Trial, patient: bool) -> Mapping[str, float]:
        """Try `base` with harmful layers float where it is not near enough; gives their ranking."""
        if base.agreement >= options.goal or not log.time_left(patient):
            return {}
        ranking = sensitivities(base.choice)
        _leave_float(log, base, list(ranking), share_without, fits, options)
        _choose_again(log, base, ranges, options)
        return ranking

    best = log.best
    broken = best.agreement < options.broken
    ranking = mended(best, patient=True) if broken else {}
    best = log.best
    fast: tuple[str, ...] = ()
    if race is not None and stretches and log.time_left(patient=broken):
        progress(0, 0, "timing stretches of layers")
        fast = faster_float(best.choice, stretches, race, share_without, options.least_share)
        if fast:
            kept = (*best.choice.keep_float, *fast)
            best = log.tried(replace(best.choice, keep_float=kept))
    if not broken:
        ranking = mended(best, patient=False)
    near, met = _near(log.trials, options)
    taken = min(near, key=lambda trial: (len(trial.choice.keep_float), -trial.agreement))
    trials = log.trials
    if race is not None and len(near) > 1:
        progress(0, 0, "timing the best trials")
        taken, timed = _fastest(near, race)
        trials = [timed.get(trial.choice, trial) for trial in trials]
    return SearchResult(
        best=taken,
        trials=tuple(trials),
        sensitivity_db=dict(ranking),
        faster_float=fast,
        met=met,
        out_of_time=log.late,
    )


class _Log:
    """What was tried, in order, and how much time is left."""

    def __init__(
        self,
        attempt: Callable[[Choice], Trial],
        options: SearchOptions,
        known: Sequence[Trial],
        remember: Callable[[Sequence[Trial]], None],
        clock: Callable[[], float],
        progress: Progress,
    ) -> None:
        self.trials: list[Trial] = []
        self.late = False
        self._attempt = attempt
        self._options = options
        self._done = {trial.choice: trial for trial in known}
        self._remember = remember
        self._clock = clock
        self._started = clock()
        self._progress = progress

    @property
    def best(self) -> Trial:
        return max(self.trials, key=lambda trial: trial.agreement)

    def tried(self, choice: Choice) -> Trial:
        """The trial of `choice`, made now or known from an interrupted run."""
        if choice not in self._done:
            self._done[choice] = self._attempt(choice)
        self.trials.append(self._done[choice])
        self._remember(tuple(self._done.values()))
        self._progress(len(self.trials), 0, "search")
        return self._done[choice]

    def time_left(self, patient: bool = False) -> bool:
        """Whether a new trial may start; `patient`: it may start later than others."""
        limit = self._options.seconds * (self._options.patience if patient else 1)
        over = self._clock() - self._started > limit
        self.late = self.late or over
        return not over


def _leave_float(
    log: _Log,
    base: Trial,
    worst_first: Sequence[str],
    share_without: Callable[[Iterable[str]], float],
    fits: Callable[[Iterable[str]], bool],
    options: SearchOptions,
) -> None:
    """Try `base` with more and more of `worst_first` float: as many as can be afforded, and where the
    model is broken even so, any number."""
    fast = base.choice.keep_float
    worst_first = [name for name in worst_first if name not in fast]
    # what is float for speed does not use up what may be float for accuracy
    least_share = _share_from(fast, share_without, options.least_share)
    affordable = _affordable(
        worst_first,
        lambda names: fits(names) and share_without((*fast, *names)) >= least_share,
    )

    def broken() -> bool:
        return log.best.agreement < options.broken

    # what is broken is rarely mended by one layer more: every other step
    step = 2 if base.agreement < options.broken else 1
    for count in _counts(len(affordable))[::-step][::-1]:
        if not log.time_left(patient=broken()):
            return
        trial = log.tried(replace(base.choice, keep_float=(*fast, *affordable[:count])))
        if trial.agreement >= options.goal:
            return
    for part in MENDING_PARTS:
        kept = worst_first[: math.ceil(part * len(worst_first))]
        if not broken() or not log.time_left(patient=True):
            return
        if 0 < share_without((*fast, *kept)) < least_share:
            log.tried(replace(base.choice, keep_float=(*fast, *kept)))


def _choose_again(log: _Log, base: Trial, ranges: Sequence[Choice], options: SearchOptions) -> None:
    """Where a broken `base` was mended: try the other ranges with the layers that did it."""
    mended = log.best
    if not base.agreement < options.broken <= mended.agreement < options.goal:
        return
    for choice in ranges:
        again = replace(
            choice,
            keep_float=mended.choice.keep_float,
            bias_correction=mended.choice.bias_correction,
        )
        if again != mended.choice and log.time_left():
            log.tried(again)


def faster_float(
    base: Choice,
    stretches: Sequence[tuple[str, ...]],
    race: Racer,
    share_without: Callable[[Iterable[str]], float],
    least_share: float,
) -> tuple[str, ...]:
    """The layers that make the model of `base` faster when they are float, too: stretches, alone and then
    together."""

    def with_float(names: tuple[str, ...]) -> Choice:
        return replace(base, keep_float=(*base.keep_float, *names))

    left = [tuple(name for name in names if name not in base.keep_float) for names in stretches]
    stretches = [names for names in left if names]
    if not stretches:
        return ()
    alone = race([base, None, *map(with_float, stretches)])
    # where INT8 does not pay as it is, any share of it that does is welcome; what is float for accuracy
    # does not use up what may be float for speed
    pays = alone[1].ratio < 1.0
    least_share = _share_from(base.keep_float, share_without, least_share) if pays else 0.0
    order = sorted(range(len(stretches)), key=lambda index: -alone[2 + index].ratio)
    sets: list[tuple[str, ...]] = []
    for index in order:
        names = (*(sets[-1] if sets else ()), *stretches[index])
        share = share_without((*base.keep_float, *names))
        if alone[2 + index].low > 1.0 and share > 0 and share >= least_share:
            sets.append(names)
    if not sets:
        return ()
    together = race([base, *map(with_float, sets)])[1:]
    winner = max(range(len(sets)), key=lambda index: together[index].ratio)
    return sets[winner] if together[winner].low > 1.0 else ()


def _share_from(
    kept: Iterable[str], share_without: Callable[[Iterable[str]], float], least_share: float
) -> float:
    """`least_share` where `kept` is within it; otherwise as much below the share that `kept` leaves."""
    share = share_without(kept)
    return least_share if share >= least_share else share - (1 - least_share)


def _near(trials: Sequence[Trial], options: SearchOptions) -> tuple[list[Trial], bool]:
    """The trials that are near enough to float, each once, and whether the budget is met."""
    once = list({trial.choice: trial for trial in trials}.values())
    top = max(trial.agreement for trial in once)
    if options.least_agreement is not None:
        reached = [trial for trial in once if trial.agreement >= options.least_agreement]
        if reached:
            return reached, True
        # nothing is good enough: the best there is
        return [trial for trial in once if trial.agreement == top], False
    return [trial for trial in once if trial.agreement >= top - options.within], True


def _fastest(near: Sequence[Trial], race: Racer) -> tuple[Trial, dict[Choice, Trial]]:
    """The fastest of the trials with the fewest float layers, and all of these with their times."""
    final = sorted(near, key=lambda trial: (len(trial.choice.keep_float), -trial.agreement))
    final = final[:_FINALISTS]
    measured = race([trial.choice for trial in final])
    timed = [
        replace(trial, latency_ms=pace.ms) for trial, pace in zip(final, measured, strict=True)
    ]
    least = min(pace.ms for pace in measured)
    quick = [
        trial for trial, pace in zip(timed, measured, strict=True) if pace.ms <= _SAME_SPEED * least
    ]
    taken = min(quick, key=lambda trial: (len(trial.choice.keep_float), -trial.agreement))
    return taken, {trial.choice: trial for trial in timed}


def _worth_correcting(trials: Sequence[Trial]) -> list[Choice]:
    """The best choice, and the second one when it is not far behind: correction may turn them round."""
    ranked = sorted(trials, key=lambda trial: -trial.agreement)
    return [t.choice for t in ranked[:2] if t.agreement >= ranked[0].agreement - _CLOSE]


def _counts(layers: int) -> tuple[int, ...]:
    """The sizes of prefixes to try, the longest that there is among them."""
    most = min(layers, _COUNTS[-1])
    return (*(count for count in _COUNTS if count < most), *((most,) if most else ()))


def _affordable(ranking: Sequence[str], can_be: Callable[[Sequence[str]], bool]) -> list[str]:
    """The layers of `ranking` that can be float together, in order; one too large is passed over."""
    chosen: list[str] = []
    for name in ranking[: 2 * _COUNTS[-1]]:
        if can_be((*chosen, name)):
            chosen.append(name)
    return chosen
