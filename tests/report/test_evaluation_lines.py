"""An evaluation as text: within 80 columns, with all that was asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tltrain.report.evaluation_lines import MAX_CLASSES, evaluation_lines
from tltrain.train.evaluation import Predictions, evaluate


def evaluation(num_classes: int, num_images: int = 300) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(num_classes, (num_images,), generator=generator)
    logits = torch.randn(num_images, num_classes, generator=generator)
    results = Predictions.from_logits(logits, labels, torch.arange(num_images))
    classes = [f"a class with a rather long name of its own, {index}" for index in range(num_classes)]
    return {"temperature": 1.0, **evaluate(results, classes)}


@pytest.mark.parametrize("num_classes", [2, 10, 400])
def test_lines_fit_80_columns_and_name_both_intervals(num_classes: int) -> None:
    lines = evaluation_lines(evaluation(num_classes))
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert "Wilson" in text
    assert "bootstrap (1,000 resamples, seed 0)" in text


def test_of_many_classes_the_worst_are_shown_and_the_rest_is_counted() -> None:
    numbers = evaluation(400)
    lines = evaluation_lines(numbers)
    assert lines[-1] == f"The {MAX_CLASSES} classes with the lowest F1; --json has all 400"
    assert len(lines) < MAX_CLASSES + 20


def test_rows_of_classes_have_their_counts() -> None:
    numbers = evaluation(3)
    rows = evaluation_lines(numbers)[-3:]
    counts = [tuple(map(int, row[35:51].split())) for row in rows]
    matrix = numbers["confusion_matrix"]
    assert counts == [(sum(matrix[index]), matrix[index][index]) for index in range(3)]


def test_what_a_temperature_changed_is_shown_before_and_after() -> None:
    numbers = evaluation(3)
    before = {"loss": 2.0, "expected_calibration_error": 0.5, "brier_score": 1.25}
    text = "\n".join(evaluation_lines(numbers | {"temperature": 2.5, "before": before}))
    assert f"NLL 2.0000 -> {numbers['loss']:.4f}" in text
    assert "temperature 2.5000, saved in model.json" in text
