"""The record of a sweep, and the numbers a winner is called by; without Ray's processes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from tltrain.engine.broker_actor import Event
from tltrain.engine.sweep import best_row, mean_and_interval
from tltrain.engine.sweep_record import SweepRecord
from tltrain.engine.tickets import distinct_in_frozen_part, lane_cost
from tltrain.engine.tuning import Outcome
from tltrain.run_folder import RunFolder
from tltrain.spec.schema import SweepSpec
from tltrain.spec.space import Trial

SWEEP = SweepSpec.model_validate({"space": {"optim.learning_rate": {"grid": [0.1, 0.2]}}})


def row(trial: str, epoch: int, top1: float, **more: Any) -> Event:
    values = {"val_top1": top1, "val_top5": 1.0, "val_loss": 1 - top1, "epoch_s": 0.5, "step": epoch, **more}
    return Event("row", trial, epoch, {"lane": trial, "epoch": epoch, **values})


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.at(str(tmp_path), "sweep")


def test_the_best_epoch_of_a_trial_is_kept_and_trials_are_ranked_by_it(run: RunFolder) -> None:
    record = SweepRecord(run, SWEEP)
    record.add([Trial("t0000", {}), Trial("t0001", {}), Trial("t0002", {})])
    record.note([row("t0000", 1, 0.5), row("t0000", 2, 0.7), row("t0000", 3, 0.6), row("t0001", 1, 0.8)])
    assert record.trials["t0000"]["best"] == {"epoch": 2, "top1": 0.7, "top5": 1.0, "loss": pytest.approx(0.3)}
    assert [entry["trial"] for entry in record.ranked()] == ["t0001", "t0000"]


def test_a_failed_trial_is_never_best(run: RunFolder) -> None:
    record = SweepRecord(run, SWEEP)
    record.add([Trial("t0000", {"a": 1}), Trial("t0001", {"a": 2})])
    record.note([row("t0000", 1, 0.9), row("t0001", 1, 0.2), Event("failed", "t0000", 1, {"error": "not finite"})])
    record.note([Event("finished", "t0001", 1)])
    assert [entry["trial"] for entry in record.ranked()] == ["t0001"]
    assert record.results() == [({"a": 1}, pytest.approx(math.nan, nan_ok=True)), ({"a": 2}, 0.2)]
    assert record.trials["t0000"]["reason"] == "not finite"


def test_what_has_ended_is_not_run_again_after_a_restart(run: RunFolder) -> None:
    record = SweepRecord(run, SWEEP)
    record.add([Trial("t0000", {"a": 1}), Trial("t0001", {"a": 2})])
    record.note([row("t0000", 1, 0.5), row("t0001", 1, 0.6)])
    record.end([Outcome("t0000", "finished", "", 1, {"a": 1})])
    again = SweepRecord(run, SWEEP)
    assert again.unfinished() == [Trial("t0001", {"a": 2})]
    assert again.results() == [({"a": 1}, 0.5)]
    assert len(again.rows) == 2


def test_rows_of_a_trial_that_starts_again_and_is_stopped_earlier_do_not_stay(run: RunFolder) -> None:
    record = SweepRecord(run, SWEEP)
    record.add([Trial("t0000", {}), Trial("t0001", {})])
    record.note([row("t0000", 1, 0.5), row("t0001", 1, 0.6), row("t0000", 2, 0.7), row("t0000", 3, 0.9)])
    record.write()
    again = SweepRecord(run, SWEEP)
    again.restart("t0000", 1)
    again.note([row("t0000", 2, 0.8), Event("dropped", "t0000", 2)])
    again.write()
    assert [(each["lane"], each["epoch"], each["val_top1"]) for each in run.metrics()] == [
        ("t0000", 1, 0.5),
        ("t0001", 1, 0.6),
        ("t0000", 2, 0.8),
    ]
    assert (again.trials["t0000"]["state"], again.trials["t0000"]["epochs"]) == ("stopped", 2)


def test_rows_of_confirmation_lanes_are_kept_but_are_no_trials(run: RunFolder) -> None:
    record = SweepRecord(run, SWEEP)
    record.add([Trial("t0000", {})])
    record.note([Event("registered", "t0000-s1", 0, {}), row("t0000-s1", 1, 0.9)])
    assert list(record.trials) == ["t0000"]
    assert best_row(record.rows, "t0000-s1", SWEEP) is not None


def test_mean_and_interval_are_students() -> None:
    mean, interval = mean_and_interval([0.8, 0.9, 1.0])
    assert mean == pytest.approx(0.9)
    assert interval == pytest.approx([0.9 - 4.303 * 0.1 / 3**0.5, 1.0])
    assert mean_and_interval([0.5]) == (0.5, None)


def test_a_lane_costs_forward_and_backward_of_what_it_trains() -> None:
    shares = {"stem": 0.2, "layer1": 0.5, "head": 0.3}
    assert lane_cost("all", shares) == pytest.approx(0.91)
    assert lane_cost("stem", shares) == lane_cost(1, shares) == pytest.approx(2.41)
    assert lane_cost(0, shares) == pytest.approx(3.01)


def test_one_trial_stands_for_all_that_differ_in_the_optimiser_alone() -> None:
    values = [
        {"optim.learning_rate": 0.1, "model.freeze_depth": 2},
        {"optim.learning_rate": 0.2, "model.freeze_depth": 2},
        {"optim.learning_rate": 0.1, "model.freeze_depth": "all"},
    ]
    found = distinct_in_frozen_part([Trial(f"t{index}", each) for index, each in enumerate(values)])
    assert [each["model.freeze_depth"] for each in found] == [2, "all"]
    assert all(each in values for each in found)  # whole, so that a spec with them is as valid as the trial's
