from __future__ import annotations

import numpy as np
import pytest

from edgekit.metrics import classification
from edgekit.metrics.postprocess import Classification


def test_top1_top5_and_confusion():
    ranked = [
        np.array([0, 1, 2, 3, 4]),  # right
        np.array([1, 0, 2, 3, 4]),  # second
        np.array([1, 2, 3, 4, 5]),  # not among five
        np.array([2, 0, 1, 3, 4]),  # right
    ]
    result = classification.evaluate(ranked, [0, 0, 0, 2], [f"c{i}" for i in range(6)])
    assert (result.top1, result.top5) == (0.5, 0.75)
    assert result.per_class == {"c0": pytest.approx(1 / 3), "c2": 1.0}
    assert result.confusion[0].tolist() == [1, 2, 0, 0, 0, 0]
    assert result.confusion.sum() == 4
    assert result.weighted(np.array([1, 0, 0, 0])) == 1.0
    assert result.weighted(np.array([0, 3, 1, 0]), top=5) == 0.75


def test_equal_scores_rank_by_number_and_probabilities_sum_to_one():
    answer = Classification(logits=np.array([1.0, 3.0, 3.0, 0.0], np.float32))
    assert answer.ranked(3).tolist() == [1, 2, 0]
    assert answer.probabilities().sum() == pytest.approx(1.0)
    softmaxed = Classification(logits=np.array([0.2, 0.8], np.float32))
    assert softmaxed.probabilities().tolist() == pytest.approx([0.2, 0.8])


def test_fewer_classes_than_five():
    result = classification.evaluate([np.array([1, 0])], [0], ["no", "yes"])
    assert (result.top1, result.top5) == (0.0, 1.0)
