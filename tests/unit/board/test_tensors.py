"""Tensors, arrays on disk, and the comparison of outputs, with numpy and without."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from edgekit.block import Block as HostBlock
from edgekit.board.compare import Comparison, floats
from edgekit.board.drivers.arrays import to_array, to_tensor
from edgekit.board.errors import BadInput, VerificationFailed
from edgekit.board.manifest import Block, Limits
from edgekit.board.npy import npy_bytes, read_npy
from edgekit.board.tensor import ITEM_BYTES, Tensor
from edgekit.golden import npy_bytes as host_npy_bytes
from edgekit.stages.parity import ParityLimits, ParityMeter


@pytest.mark.parametrize("dtype", sorted(ITEM_BYTES))
@pytest.mark.parametrize("shape", [(), (3,), (1, 2, 5), (0, 4)])
def test_arrays_on_disk_are_those_of_numpy(
    tmp_path: Path, dtype: str, shape: tuple[int, ...]
) -> None:
    array = np.asarray(np.random.default_rng(1).random(shape) * 90).astype(dtype)
    tensor = to_tensor(array)
    assert npy_bytes(tensor) == host_npy_bytes(array)
    (tmp_path / "x.npy").write_bytes(host_npy_bytes(array))
    read = read_npy(tmp_path / "x.npy")
    assert (read.shape, read.dtype, bytes(read.data)) == (shape, dtype, array.tobytes())
    assert np.array_equal(to_array(read), array)
    assert np.array_equal(np.array(floats(read)), array.astype(np.float32).ravel())


@pytest.mark.parametrize("cut", [0, 5, 11, 60, 127, 128, 140])
def test_a_cut_array_file_is_refused(tmp_path: Path, cut: int) -> None:
    whole = host_npy_bytes(np.zeros((2, 3), np.float32))
    (tmp_path / "x.npy").write_bytes(whole[:cut])
    with pytest.raises(BadInput):
        read_npy(tmp_path / "x.npy")
    (tmp_path / "x.npy").write_bytes(whole + b"\0")
    with pytest.raises(BadInput, match="does not hold"):
        read_npy(tmp_path / "x.npy")


def test_a_tensor_holds_as_many_bytes_as_its_shape() -> None:
    with pytest.raises(ValueError, match="takes 24 bytes, there are 8"):
        Tensor((2, 3), "float32", bytes(8))
    with pytest.raises(ValueError, match="complex64"):
        Tensor((1,), "complex64", bytes(8))


_AXES = [
    (),
    ((), ((0, 4, 1),)),
    ((), ((4, 7, 1),)),
    ((), ((0, 2, 1), (5, 7, 1))),
    ((), (), ((0, 190, 3),)),
    ((), ((1, 6, 2),), ((0, 10, 1), (20, 50, 2))),
]


@pytest.mark.parametrize("axes", _AXES)
@pytest.mark.parametrize("shape", [(1, 7, 192), (1, 192, 192), (2, 7, 192, 3)])
@pytest.mark.parametrize("case", ["noise", "equal", "dead column", "zero reference", "half"])
def test_both_ways_of_comparing_agree_with_the_host(
    axes: tuple[tuple[tuple[int, int, int], ...], ...], shape: tuple[int, ...], case: str
) -> None:
    random_numbers = np.random.default_rng(2)
    reference = random_numbers.normal(0, 3, shape).astype(np.float32)
    candidate = reference + random_numbers.normal(0, 0.01, shape).astype(np.float32)
    if case == "equal":
        candidate = reference.copy()
    elif case == "dead column":
        candidate[:, 5] = 0.25
        candidate[..., 1] = 0.25
    elif case == "zero reference":
        reference[:] = 0
    if case == "half":
        candidate = candidate.astype(np.float16)
    expected = ParityMeter([HostBlock(name="b", output="y", axes=axes)])
    expected.add({"y": reference}, {"y": candidate.astype(np.float32)})
    wanted = [
        (b.name, b.cosine, b.max_abs_error, b.max_rel_error) for b in expected.report().blocks
    ]
    for use_numpy in (True, False):
        comparison = Comparison([Block("b", "y", axes)], use_numpy)
        comparison.add({"y": to_tensor(reference)}, {"y": to_tensor(candidate)})
        results = comparison.results()
        assert [result.name for result in results] == [name for name, *_ in wanted]
        for result, (_, cosine, absolute, relative) in zip(results, wanted, strict=True):
            assert result.cosine == pytest.approx(cosine, abs=1e-12)
            assert result.max_abs_error == absolute
            assert result.max_rel_error == relative
        limits = Limits(max_rel_error=0.01, min_cosine=0.9)
        host_limits = ParityLimits(max_rel_error=0.01, min_cosine=0.9)
        assert [result.problem(limits) for result in results] == [
            host_limits.problem(block) for block in expected.report().blocks
        ]


@pytest.mark.parametrize("use_numpy", [True, False])
def test_what_cannot_be_compared_is_named(use_numpy: bool) -> None:
    good = to_tensor(np.ones((1, 4), np.float32))
    for candidate, words in (
        ({}, "no output 'y'"),
        ({"y": to_tensor(np.ones((1, 5), np.float32))}, r"shape \[1, 5\] instead of \[1, 4\]"),
        ({"y": to_tensor(np.array([[1, np.nan, 1, np.inf]], np.float32))}, "2 of 4 values"),
    ):
        with pytest.raises(VerificationFailed, match=words):
            Comparison([Block("b", "y")], use_numpy).add({"y": good}, candidate)
    for axes in ((((0, 9, 1),),), (((0, 0, 1),),), ((), (), ())):
        with pytest.raises(VerificationFailed, match="block b"):
            Comparison([Block("b", "y", axes)], use_numpy).add({"y": good}, {"y": good})


def test_values_beyond_float32_sums_are_not_taken_for_infinite() -> None:
    big = to_tensor(np.full((1, 64), 3e38, np.float32))
    for use_numpy in (True, False):
        comparison = Comparison([Block("b", "y")], use_numpy)
        comparison.add({"y": big}, {"y": big})
        assert comparison.results()[0].cosine == 1.0


def test_several_samples_count_together() -> None:
    rng = random.Random(4)
    for use_numpy in (True, False):
        comparison = Comparison([Block("b", "y")], use_numpy)
        for error in (0.0, 0.5, 0.25):
            values = np.array([[rng.randrange(8) / 8, 2.0]], np.float32)
            comparison.add({"y": to_tensor(values)}, {"y": to_tensor(values + np.float32(error))})
        (result,) = comparison.results()
        assert result.max_abs_error == 0.5
        assert result.max_rel_error == 0.25
