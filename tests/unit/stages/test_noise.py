"""Which layers are to be left float first: by the harm that they do, for what it costs."""

from __future__ import annotations

import math

from edgekit.stages.noise import worth_float


def test_a_lost_block_and_noise_both_count_whatever_their_units() -> None:
    sqnr_db = {"quiet": 40.0, "lost": -3.0, "loud": 20.0, "exact": math.inf}
    # by meaning: boxes, scores
    energies = {"quiet": [1.0, 0.0], "lost": [10.0, 0.1], "loud": [800.0, 0.9], "exact": [0, 0]}
    assert worth_float(sqnr_db, energies, {}) == ["lost", "loud", "quiet", "exact"]
    other_units = {name: [values[0], 1e6 * values[1]] for name, values in energies.items()}
    assert worth_float(sqnr_db, other_units, {}) == ["lost", "loud", "quiet", "exact"]


def test_a_layer_that_costs_much_comes_later() -> None:
    sqnr_db = {"large": 10.0, "small": 11.0}
    energies = {"large": [5.0], "small": [4.0]}
    assert worth_float(sqnr_db, energies, {}) == ["large", "small"]
    assert worth_float(sqnr_db, energies, {"large": 0.3, "small": 0.01}) == ["small", "large"]


def test_noise_that_nobody_makes() -> None:
    assert worth_float({"a": 5.0, "b": 2.0}, {"a": [0.0], "b": [0.0]}, {}) == ["b", "a"]
    assert worth_float({}, {}, {}) == []
