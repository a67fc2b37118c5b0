"""The search's control flow, with scores given as plain numbers (fakes: no model is run)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from edgekit.stages.search import Choice, Pace, SearchOptions, Trial, run

RANGES = (Choice(method="percentile"), Choice(method="mse"), Choice(method="minmax"))
# the most harmful first
DAMAGE = {"a": 10.0, "c": 20.0, "d": 30.0, "b": 40.0}
COST = {"a": 0.02, "b": 0.5, "c": 0.4, "d": 0.05}


class FakeModel:
    """Agreement rises with each damaged layer left float; counts how often it is asked."""

    def __init__(self, base: dict[str, float], gain: dict[str, float]) -> None:
        self.base, self.gain = base, gain
        self.asked: list[Choice] = []

    def attempt(self, choice: Choice) -> Trial:
        self.asked.append(choice)
        agreement = self.base[choice.method] + sum(self.gain.get(n, 0) for n in choice.keep_float)
        return Trial(
            choice=choice, agreement=agreement, int8_mac_share=self.share(choice.keep_float)
        )

    @staticmethod
    def share(keep: Iterable[str]) -> float:
        return 1.0 - sum(COST[name] for name in keep)


def _run(model: FakeModel, options: SearchOptions, **more: object):  # type: ignore[no-untyped-def]
    return run(RANGES, model.attempt, lambda choice: DAMAGE, model.share, options, **more)  # type: ignore[arg-type]


BASE = {"percentile": 0.90, "mse": 0.93, "minmax": 0.80}


def test_a_good_method_ends_the_search() -> None:
    model = FakeModel({"percentile": 0.99, "mse": 0.97, "minmax": 0.9}, {})
    result = _run(model, SearchOptions())
    assert result.best.choice == RANGES[0]
    assert model.asked == list(RANGES)


def test_the_most_damaging_layers_are_left_float_on_the_best_method() -> None:
    model = FakeModel(BASE, {"a": 0.03, "d": 0.03})
    result = _run(model, SearchOptions())
    assert result.best.choice.method == "mse"
    assert result.best.choice.keep_float == ("a", "d")
    assert result.best.agreement > 0.985


def test_a_layer_too_large_to_be_float_is_passed_over() -> None:
    model = FakeModel(BASE, {"a": 0.01, "d": 0.01})
    result = _run(model, SearchOptions(least_share=0.9))
    assert all("c" not in trial.choice.keep_float for trial in result.trials)
    assert result.best.int8_mac_share >= 0.9


def test_float_layers_that_bring_nothing_are_not_kept() -> None:
    model = FakeModel(BASE, {"a": 0.001, "d": 0.001})
    assert _run(model, SearchOptions()).best.choice.keep_float == ()


def test_the_first_choice_is_tried_even_without_time() -> None:
    times = iter([0.0, 1000.0, 1000.0, 1000.0, 1000.0])
    model = FakeModel(BASE, {})
    result = _run(model, SearchOptions(seconds=1.0), clock=lambda: next(times))
    assert model.asked == [RANGES[0]]
    assert result.out_of_time


def test_a_broken_model_is_given_more_time_than_a_sound_one() -> None:
    for base, mended in ((0.5, True), (0.9, False)):
        model = FakeModel(dict.fromkeys(BASE, base), {"a": 0.05, "d": 0.05})
        # within the limit for the ranges, past it (not past three times it) from then on
        clock = iter([0.0, 0.5, 0.5, *[2.0] * 50])
        result = _run(model, SearchOptions(seconds=1.0), clock=clock.__next__)
        assert bool(result.best.choice.keep_float) is mended
        assert any(choice.keep_float for choice in model.asked) is mended
    late = iter([0.0, 0.5, 0.5, *[4.0] * 50])
    model = FakeModel(dict.fromkeys(BASE, 0.5), {"a": 0.05})
    assert _run(model, SearchOptions(seconds=1.0), clock=late.__next__).out_of_time
    assert not any(choice.keep_float for choice in model.asked)


class FakeTails(FakeModel):
    """Which ranges are best turns round once the worst layer is float."""

    def attempt(self, choice: Choice) -> Trial:
        trial = super().attempt(choice)
        late = choice.method == "percentile" and "a" in choice.keep_float
        return dataclasses.replace(trial, agreement=trial.agreement + (0.3 if late else 0.0))


def test_ranges_of_a_mended_model_are_chosen_again() -> None:
    model = FakeTails({"percentile": 0.2, "mse": 0.4, "minmax": 0.1}, {"a": 0.5})
    result = _run(model, SearchOptions())
    assert result.best.choice == Choice(method="percentile", keep_float=("a", "d"))
    assert Choice(method="minmax", keep_float=("a", "d")) in model.asked
    # a model that was never broken chose well in the first place
    sound = FakeTails(BASE, {"a": 0.03})
    _run(sound, SearchOptions())
    assert {choice.method for choice in sound.asked if choice.keep_float} == {"mse"}


def test_known_trials_are_not_repeated() -> None:
    first = FakeModel(BASE, {"a": 0.03, "d": 0.03})
    kept: list[Trial] = []
    whole = _run(
        first, SearchOptions(), remember=lambda trials: kept.__setitem__(slice(None), trials)
    )
    second = FakeModel(BASE, {"a": 0.03, "d": 0.03})
    again = _run(second, SearchOptions(), known=tuple(kept))
    assert second.asked == []
    assert again.best == whole.best


class FakeCorrection(FakeModel):
    """Correcting the biases adds `brought`."""

    brought = 0.0

    def attempt(self, choice: Choice) -> Trial:
        trial = super().attempt(choice)
        more = self.brought if choice.bias_correction else 0.0
        return dataclasses.replace(trial, agreement=trial.agreement + more)


def test_biases_are_corrected_on_the_best_ranges_and_with_float_layers() -> None:
    model = FakeCorrection(BASE, {"a": 0.03, "d": 0.03})
    model.brought = 0.01
    result = _run(model, SearchOptions(), corrects=True)
    corrected = [choice for choice in model.asked if choice.bias_correction]
    assert corrected[0] == Choice(method="mse", bias_correction=True)
    assert all(choice.method == "mse" for choice in corrected)
    assert result.best.choice.bias_correction
    assert result.best.choice.keep_float == ("a", "d")


def test_the_second_best_is_corrected_only_when_it_is_close() -> None:
    model = FakeCorrection({"percentile": 0.942, "mse": 0.93, "minmax": 0.80}, {})
    _run(model, SearchOptions(), corrects=True)
    methods = [
        choice.method for choice in model.asked if choice.bias_correction and not choice.keep_float
    ]
    assert methods == ["percentile", "mse"]


def test_a_correction_that_brings_nothing_is_not_taken() -> None:
    model = FakeCorrection({"percentile": 0.99, "mse": 0.96, "minmax": 0.9}, {})
    model.brought = -0.001
    result = _run(model, SearchOptions(), corrects=True)
    assert result.best.choice == RANGES[0]
    assert len(result.trials) == 4


def test_a_broken_model_is_mended_beyond_the_share() -> None:
    gain = {"a": 0.05, "b": 0.1, "c": 0.52, "d": 0.05}
    model = FakeModel({"percentile": 0.3, "mse": 0.35, "minmax": 0.2}, gain)
    result = _run(model, SearchOptions(least_share=0.9))
    assert result.best.agreement >= 0.9
    # the two that do most damage, although c alone is 40 % of the work
    assert result.best.choice.keep_float == ("a", "c")
    # one that is not broken stays within it
    healthy = _run(FakeModel(BASE, gain), SearchOptions(least_share=0.9))
    assert healthy.best.int8_mac_share >= 0.9


class FakeRunner:
    """Races on paper: the ms of each layer in INT8 and in float."""

    def __init__(self, int8: dict[str, float], plain: dict[str, float]) -> None:
        self.int8, self.plain = int8, plain
        self.asked: list[Sequence[Choice | None]] = []

    def ms(self, choice: Choice | None) -> float:
        kept = set(self.plain) if choice is None else set(choice.keep_float)
        return sum(self.plain[n] if n in kept else self.int8[n] for n in self.int8)

    def race(self, candidates: Sequence[Choice | None]) -> list[Pace]:
        self.asked.append(candidates)
        times = [self.ms(choice) for choice in candidates]
        # a difference under 1 % cannot be told from noise
        return [
            Pace(ms=ms, ratio=times[0] / ms, low=0.99 * times[0] / ms, high=1.01 * times[0] / ms)
            for ms in times
        ]


STRETCHES = (("a",), ("b", "c"), ("d",))


def test_stretches_that_are_faster_in_float_stay_float() -> None:
    model = FakeModel({"percentile": 0.99, "mse": 0.97, "minmax": 0.9}, {})
    runner = FakeRunner({"a": 4.0, "b": 1, "c": 1, "d": 2}, {"a": 2.0, "b": 3, "c": 3, "d": 2})
    result = _run(model, SearchOptions(), race=runner.race, stretches=STRETCHES)
    assert result.faster_float == ("a",)
    assert result.best.choice.keep_float == ("a",)
    assert None in runner.asked[0]


def test_a_stretch_that_is_faster_alone_must_be_faster_with_the_others() -> None:
    model = FakeModel({"percentile": 0.99, "mse": 0.97, "minmax": 0.9}, {})
    times = {(): 10.0, ("a",): 8.0, ("b", "c"): 12.0, ("d",): 9.0, ("a", "d"): 9.5}

    def race(candidates: Sequence[Choice | None]) -> list[Pace]:
        found = [20.0 if choice is None else times[choice.keep_float] for choice in candidates]
        return [Pace(ms=ms, ratio=found[0] / ms, low=found[0] / ms, high=9.0) for ms in found]

    options = SearchOptions(least_share=0.0)
    assert _run(model, options, race=race, stretches=STRETCHES).faster_float == ("a",)
    times["a", "d"] = 7.0
    assert _run(model, options, race=race, stretches=STRETCHES).faster_float == ("a", "d")
    # not faster together than nothing left float: a result of noise is not taken
    times["a",], times["d",], times["a", "d"] = 9.9, 9.9, 11.0
    again = iter(([9.9, 20.0, 9.0, 12.0, 9.0], [9.9, 9.9, 11.0]))

    def noisy(candidates: Sequence[Choice | None]) -> list[Pace]:
        found = next(again)
        return [Pace(ms=ms, ratio=found[0] / ms, low=found[0] / ms, high=9.0) for ms in found]

    assert _run(model, options, race=noisy, stretches=STRETCHES).faster_float == ()


def test_layers_are_left_float_for_speed_only_as_far_as_the_share_allows() -> None:
    model = FakeModel({"percentile": 0.99, "mse": 0.97, "minmax": 0.9}, {})
    # float is slower as a whole, and b and c are half of the work
    runner = FakeRunner({"a": 3.0, "b": 2, "c": 2, "d": 2}, {"a": 9.0, "b": 1, "c": 1, "d": 9})
    result = _run(model, SearchOptions(), race=runner.race, stretches=STRETCHES)
    assert result.faster_float == ()


def test_where_int8_does_not_pay_any_share_that_does_is_welcome() -> None:
    model = FakeModel({"percentile": 0.99, "mse": 0.97, "minmax": 0.9}, {})
    runner = FakeRunner({"a": 3.0, "b": 4, "c": 4, "d": 2}, {"a": 4.0, "b": 1, "c": 1, "d": 3})
    result = _run(model, SearchOptions(), race=runner.race, stretches=STRETCHES)
    assert result.faster_float == ("b", "c")
    assert result.best.int8_mac_share < 0.2


def test_a_broken_model_is_mended_before_it_is_timed() -> None:
    model = FakeModel({"percentile": 0.3, "mse": 0.35, "minmax": 0.2}, {"a": 0.3, "c": 0.3})
    # a and d are faster in float: only d is a question of speed, a is float anyway
    runner = FakeRunner({"a": 4.0, "b": 1, "c": 1, "d": 4}, {"a": 2.0, "b": 3, "c": 3, "d": 2})
    result = _run(model, SearchOptions(least_share=0.9), race=runner.race, stretches=STRETCHES)
    mended = Choice(method="mse", keep_float=("a", "c"))
    assert runner.asked[0][0] == mended
    # of the stretch b, c only b is left to ask about
    assert [choice.keep_float for choice in runner.asked[0][2:] if choice] == [
        ("a", "c", "b"),
        ("a", "c", "d"),
    ]
    assert result.faster_float == ("d",)
    assert result.best.choice.keep_float == ("a", "c", "d")
    # a sound one is timed as it is, and harmful layers come on top of what is float for speed
    sound = FakeModel(BASE, {"a": 0.03, "c": 0.03})
    runner = FakeRunner({"a": 4.0, "b": 1, "c": 1, "d": 4}, {"a": 4.0, "b": 3, "c": 3, "d": 2})
    result = _run(sound, SearchOptions(), race=runner.race, stretches=STRETCHES)
    assert runner.asked[0][0] == Choice(method="mse")
    assert result.best.choice.keep_float == ("d", "a")


def test_of_what_is_near_enough_the_fastest_is_taken() -> None:
    model = FakeModel({"percentile": 0.97, "mse": 0.969, "minmax": 0.5}, {"a": 0.001})

    def race(candidates: Sequence[Choice | None]) -> list[Pace]:
        times = [
            5.0 if choice is not None and choice.method == "mse" else 6.0 for choice in candidates
        ]
        return [Pace(ms=ms, ratio=times[0] / ms, low=1.0, high=1.0) for ms in times]

    result = _run(model, SearchOptions(), race=race)
    assert result.best.choice.method == "mse"
    assert result.best.latency_ms == 5.0
    assert any(trial.latency_ms == 6.0 for trial in result.trials)


def test_a_budget_is_met_by_the_fastest_that_reaches_it_or_said_to_be_missed() -> None:
    model = FakeModel(BASE, {"a": 0.03, "d": 0.03})
    result = _run(model, SearchOptions(least_agreement=0.95))
    assert result.met and result.best.agreement >= 0.95
    assert result.best.choice.keep_float == ("a",)
    missed = _run(FakeModel(BASE, {}), SearchOptions(least_agreement=0.95))
    assert not missed.met and missed.best.agreement == 0.93
