"""Intervals by the bootstrap: the images of an evaluation are drawn again and again, with replacement."""

from __future__ import annotations

from typing import Any

import numpy as np

RESAMPLES = 1000
SEED = 0
_ENDS = (2.5, 97.5)


def bootstrap_intervals(confusion: np.ndarray) -> dict[str, Any]:
    """Return 95 % percentile intervals of accuracy and macro F1 (Efron and Tibshirani 1993, section 13.3).

    confusion: int64 [C, C] of n > 0 images, rows are true classes. Drawing n of these images anew is drawing the counts
    of its cells from a multinomial distribution, so no image is needed. Equal matrices give equal intervals.
    """
    true, predicted = np.nonzero(confusion)
    counts, num_classes = confusion[true, predicted], len(confusion)
    n = int(counts.sum())
    generator = np.random.default_rng(SEED)
    results = [_scores(generator.multinomial(n, counts / n), true, predicted, num_classes) for _ in range(RESAMPLES)]
    accuracy, macro_f1 = np.percentile(np.array(results), _ENDS, axis=0).T.tolist()
    return {
        "method": "percentile",
        "resamples": RESAMPLES,
        "seed": SEED,
        "accuracy_interval_95": accuracy,
        "macro_f1_interval_95": macro_f1,
    }


def _scores(drawn: np.ndarray, true: np.ndarray, predicted: np.ndarray, num_classes: int) -> tuple[float, float]:
    """Return accuracy and macro F1 of one draw: drawn[i] images of class true[i] taken for predicted[i], int64 [k]."""
    hits = np.bincount(true, drawn * (true == predicted), minlength=num_classes)
    both = np.bincount(true, drawn, minlength=num_classes) + np.bincount(predicted, drawn, minlength=num_classes)
    f1 = np.divide(2 * hits, both, out=np.zeros(num_classes), where=both > 0)
    return float(hits.sum() / drawn.sum()), float(f1.mean())
