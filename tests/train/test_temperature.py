"""The temperature: where it is lowest, that it changes no answer, and how it is kept."""

from __future__ import annotations

import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from tltrain.errors import DataError
from tltrain.train.evaluation import Predictions, evaluate
from tltrain.train.temperature import HIGHEST, LOWEST, fit_temperature

CLASSES = [str(number) for number in range(5)]


def drawn(temperature: float, n: int = 4000) -> tuple[Tensor, Tensor]:
    """Logits [n, 5] whose labels are drawn with the probabilities that they have at `temperature`."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(n, 5, generator=generator) * 3
    labels = torch.multinomial((logits / temperature).softmax(1), 1, generator=generator)[:, 0]
    return logits, labels


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_of_labels_drawn_at_one_is_found(temperature: float) -> None:
    assert fit_temperature(*drawn(temperature)) == pytest.approx(temperature, rel=0.05)


def test_no_other_temperature_has_a_lower_loss() -> None:
    logits, labels = drawn(2.0)
    found = fit_temperature(logits, labels)

    def loss(temperature: float) -> float:
        return functional.cross_entropy(logits.double() / temperature, labels).item()

    assert all(loss(found) <= loss(found * factor) for factor in (0.9, 0.99, 1.01, 1.1))


@given(temperature=st.floats(LOWEST, HIGHEST), seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=30)
def test_a_temperature_changes_no_answer(temperature: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Scores that differ in the last bit alone: divided, some of them are the same number.
    logits = 1 + torch.randint(0, 3, (50, 5), generator=generator) * 2.0**-23
    labels = torch.randint(0, 5, (50,), generator=generator)
    positions = torch.arange(50)
    before, after = (
        evaluate(Predictions.from_logits(logits, labels, positions, temperature=t), CLASSES) for t in (1.0, temperature)
    )
    for name in ("accuracy", "confusion_matrix", "per_class", "macro", "bootstrap"):
        assert before[name] == after[name]


def test_answers_that_are_all_right_have_no_best_temperature() -> None:
    with pytest.raises(DataError, match="all 5 images are named correctly"):
        fit_temperature(torch.eye(5) * 4, torch.arange(5))


def test_scores_that_are_worse_than_none_get_the_highest_temperature(caplog: pytest.LogCaptureFixture) -> None:
    logits, labels = torch.eye(5) * 4, torch.arange(5).roll(1)
    with caplog.at_level(logging.WARNING, logger="tltrain"):
        assert fit_temperature(logits, labels) == HIGHEST
    assert "the best temperature is beyond 20" in caplog.text
