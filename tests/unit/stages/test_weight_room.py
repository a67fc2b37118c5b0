"""What may stay float without the file becoming large."""

from __future__ import annotations

import numpy as np
import onnx

from edgekit.stages.weight_room import WeightRoom, initializer_bytes
from tests.graphs import GraphMaker


def _model() -> onnx.ModelProto:
    maker = GraphMaker(0)
    for name, taken_from, taken, made in (("a", "x", 4, 8), ("b", "ya", 8, 8), ("c", "yb", 8, 4)):
        weight = maker.rng.normal(size=(made, taken, 1, 1)).astype(np.float32)
        maker.node("Conv", [taken_from, maker.weight(f"w{name}", weight)], f"y{name}")
    return maker.model({"x": [1, 4, 5, 5]}, {"yc": [1, 4, 5, 5]})


def test_weights_fit_up_to_the_share() -> None:
    plain = _model()
    assert initializer_bytes(plain) == 4 * (32 + 64 + 32)
    # everything in INT8 is 128 of 512 bytes: 0.35 leaves 51, and a float layer of n values takes 3 n more
    room = WeightRoom(plain, ("n_ya", "n_yb", "n_yc"), 128)
    assert room.fits(()) and not room.fits(("n_ya",))
    roomier = WeightRoom(plain, ("n_ya", "n_yb", "n_yc"), 80)
    assert (
        roomier.fits(("n_ya",))
        and not roomier.fits(("n_ya", "n_yc"))
        and not roomier.fits(("n_yb",))
    )
    assert room.shares() == {"n_ya": 0.25, "n_yb": 0.5, "n_yc": 0.25}


def test_a_graph_that_is_larger_already_has_a_little_room() -> None:
    plain = _model()
    room = WeightRoom(plain, ("n_ya", "n_yb", "n_yc"), 400)
    assert room.fits(("none of these",)) and not room.fits(("n_ya",))
