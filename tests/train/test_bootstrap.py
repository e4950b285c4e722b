"""Intervals from resampling: they are those of drawing the images themselves, and the same each time."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from tltrain.train.bootstrap import RESAMPLES, bootstrap_intervals

CONFUSION = np.array([[40, 8, 2], [5, 30, 0], [9, 1, 0]])


def test_the_accuracys_ends_are_those_of_its_distribution() -> None:
    """Resampled hits follow a binomial distribution, whose quantiles are known."""
    n, hits = CONFUSION.sum(), np.trace(CONFUSION)
    expected = stats.binom.ppf([0.025, 0.975], n, hits / n) / n
    assert bootstrap_intervals(CONFUSION)["accuracy_interval_95"] == pytest.approx(expected, abs=1.5 / n)


def test_macro_f1s_ends_are_those_of_drawn_images() -> None:
    true, predicted = (np.repeat(index.ravel(), CONFUSION.ravel()) for index in np.indices(CONFUSION.shape))
    generator = np.random.default_rng(1)
    scores = []
    for _ in range(300):
        drawn = generator.integers(0, len(true), len(true))
        scores.append(
            metrics.f1_score(
                true[drawn],
                predicted[drawn],
                labels=range(3),
                average="macro",
                zero_division=0,  # type: ignore[arg-type]
            )
        )
    found = bootstrap_intervals(CONFUSION)["macro_f1_interval_95"]
    assert found == pytest.approx(np.percentile(scores, [2.5, 97.5]), abs=0.02)


def test_they_are_the_same_each_time_and_say_how_they_were_made() -> None:
    first, second = bootstrap_intervals(CONFUSION), bootstrap_intervals(CONFUSION)
    assert first == second
    assert (first["method"], first["resamples"], first["seed"]) == ("percentile", RESAMPLES, 0)


@pytest.mark.parametrize("confusion", [[[3, 0], [0, 4]], [[0, 3], [4, 0]], [[1, 0], [0, 0]]])
def test_ends_are_shares_even_where_all_is_right_or_wrong(confusion: list[list[int]]) -> None:
    found = bootstrap_intervals(np.array(confusion))
    for name in ("accuracy_interval_95", "macro_f1_interval_95"):
        low, high = found[name]
        assert 0 <= low <= high <= 1
