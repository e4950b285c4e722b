"""What Optuna proposes: every configuration once, whatever it repeats and whatever an extension changes."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from tltrain.engine.extension import extended
from tltrain.engine.proposals import make_searcher
from tltrain.errors import SpecError
from tltrain.spec.schema import Spec
from tltrain.spec.space import Trial

RATE, DEPTH = "optim.learning_rate", "model.freeze_depth"
LISTED = {RATE: {"choice": [0.1, 0.2, 0.4]}, DEPTH: {"choice": [0, 1, "all"]}}


def optuna_spec(**sweep: Any) -> Spec:
    values = {
        "name": "sweep",
        "model": {"name": "resnet18"},
        "data": {"train": "nowhere"},
        "sweep": {"space": LISTED, "search": "optuna", "num_trials": 9, **sweep},
        "storage": "nowhere",
    }
    return Spec.model_validate(values)


def proposals(spec: Spec, trials: list[Trial], earlier: list[tuple[dict[str, Any], float]]) -> list[dict[str, Any]]:
    """All that is proposed until the search ends; a rate of 0.1 scores best, so that Optuna prefers to repeat it."""
    searcher = make_searcher(spec, trials, earlier)
    found: list[dict[str, Any]] = []
    while len(found) < 20:
        suggestion = searcher.suggest(f"trial-{len(found)}")
        if not isinstance(suggestion, dict):
            return found
        values = suggestion["lane"]["values"]
        result = {"val_top1": 1 - values[RATE], "training_iteration": 1}
        searcher.on_trial_result(f"trial-{len(found)}", result)
        searcher.on_trial_complete(f"trial-{len(found)}", result)
        found.append(values)
    raise AssertionError("the search does not end")


def pairs(found: list[dict[str, Any]]) -> list[tuple[Any, Any]]:
    return [(values[RATE], values[DEPTH]) for values in found]


ALL = {(rate, depth) for rate in (0.1, 0.2, 0.4) for depth in (0, 1, "all")}


@pytest.mark.parametrize("seed", range(3))
def test_a_space_of_choices_is_gone_through_without_a_repeat(seed: int) -> None:
    found = pairs(proposals(optuna_spec().model_copy(update={"seed": seed}), [], []))
    assert len(found) == 9
    assert set(found) == ALL


def test_neither_what_has_ended_nor_what_has_failed_is_proposed_and_unfinished_trials_come_first() -> None:
    unfinished = [Trial("t0002", {RATE: 0.4, DEPTH: 1})]
    earlier = [({RATE: 0.1, DEPTH: 0}, 0.9), ({DEPTH: 1, RATE: 0.1}, float("nan"))]
    found = pairs(proposals(optuna_spec(), unfinished, earlier))
    assert found[0] == (0.4, 1)
    assert len(found) == 7
    assert set(found) == ALL - {(0.1, 0), (0.1, 1)}


def test_trials_outside_the_space_of_now_are_left_out_of_what_it_learns_and_that_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    earlier = [({RATE: 0.8, DEPTH: 0}, 0.9), ({RATE: 0.1}, 0.8), ({RATE: 0.1, DEPTH: 0}, 0.7)]
    with caplog.at_level(logging.WARNING, logger="tltrain"):
        found = pairs(proposals(optuna_spec(), [], earlier))
    assert set(found) == ALL - {(0.1, 0)}
    assert "does not learn from 2 of 3 earlier trials" in caplog.text


def test_more_trials_than_configurations_are_refused_before_anything_runs() -> None:
    known = [Trial("t0000", {RATE: 0.1, DEPTH: 0})]
    more, _ = extended(optuna_spec(num_trials=1), known, 8)
    assert more.sweep is not None
    assert more.sweep.num_trials == 9
    with pytest.raises(SpecError, match="10 trials are more than the 9 configurations of the space"):
        extended(optuna_spec(num_trials=1), known, 9)
