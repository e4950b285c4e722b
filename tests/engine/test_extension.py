"""Adding trials to a sweep, and the winner's folder; without Ray's processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tltrain.engine.extension import add_trials, extended
from tltrain.engine.sweep_record import SweepRecord
from tltrain.engine.winner import begin_winner, end_winner
from tltrain.errors import SpecError
from tltrain.run_folder import RunFolder
from tltrain.spec.load import dump_yaml
from tltrain.spec.schema import Spec
from tltrain.spec.space import Trial, propose

RATE, DEPTH = "optim.learning_rate", "model.freeze_depth"
SPACE = {RATE: {"grid": [0.1, 0.2]}, DEPTH: {"grid": [0, 1]}}


def sweep_spec(folder: Path, **sweep: Any) -> Spec:
    values = {
        "name": "sweep",
        "model": {"name": "resnet18"},
        "data": {"train": str(folder / "train")},
        "sweep": {"space": SPACE, **sweep},
        "storage": str(folder),
    }
    return Spec.model_validate(values)


def finished_sweep(spec: Spec) -> RunFolder:
    assert spec.sweep is not None
    run = RunFolder.at(spec.storage, spec.name)
    run.write_spec(dump_yaml(spec))
    SweepRecord(run, spec.sweep).add(propose(spec))
    run.update(state="finished")
    return run


def values_of(run: RunFolder) -> list[tuple[str, float, int]]:
    return [(entry["trial"], entry["values"][RATE], entry["values"][DEPTH]) for entry in run.read_json("trials.json")]


def test_a_grid_goes_on_with_the_first_configurations_that_were_not_run(tmp_path: Path) -> None:
    run = finished_sweep(sweep_spec(tmp_path))
    spec = add_trials(run, 3, [f"sweep.space.{RATE}.grid=[0.05, 0.1, 0.3]"])
    assert values_of(run)[4:] == [("t0004", 0.05, 0), ("t0005", 0.05, 1), ("t0006", 0.3, 0)]
    assert run.spec_text() == dump_yaml(spec)
    assert run.state()["state"] == "running"


def test_a_grid_that_was_run_whole_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    run = finished_sweep(sweep_spec(tmp_path))
    with pytest.raises(SpecError, match="only 0 configurations of the grid were not run"):
        add_trials(run, 1, [])
    assert run.state()["state"] == "finished"
    assert len(values_of(run)) == 4


def test_a_random_search_goes_on_as_the_longer_search_would_and_draws_nothing_twice(tmp_path: Path) -> None:
    space = {RATE: {"loguniform": [0.001, 0.1]}, DEPTH: {"choice": [0, 1]}}
    run = finished_sweep(sweep_spec(tmp_path, space=space, search="random", num_trials=3))
    spec = add_trials(run, 4, [])
    assert spec.sweep is not None
    assert spec.sweep.num_trials == 7
    longer = propose(sweep_spec(tmp_path, space=space, search="random", num_trials=7))
    assert values_of(run) == [(trial.name, trial.values[RATE], trial.values[DEPTH]) for trial in longer]


def test_configurations_that_were_run_are_not_drawn_again(tmp_path: Path) -> None:
    spec = sweep_spec(tmp_path, search="random", num_trials=2)
    known = [Trial("t0000", {RATE: 0.1, DEPTH: 0}), Trial("t0001", {RATE: 0.2, DEPTH: 1})]
    _, trials = extended(spec, known, 2)
    assert [trial.name for trial in trials] == ["t0002", "t0003"]
    assert {(trial.values[RATE], trial.values[DEPTH]) for trial in trials} == {(0.1, 1), (0.2, 0)}
    with pytest.raises(SpecError, match="used up"):
        extended(spec, known, 3)


def test_optuna_is_asked_for_more(tmp_path: Path) -> None:
    spec = sweep_spec(tmp_path, space={RATE: {"uniform": [0.1, 0.2]}}, search="optuna", num_trials=3)
    known = [Trial(f"t000{number}", {RATE: 0.1 + number / 100}) for number in range(3)]
    more, trials = extended(spec, known, 5)
    assert more.sweep is not None
    assert (more.sweep.num_trials, trials) == (8, [])


def test_what_would_make_trials_incomparable_is_refused_key_by_key(tmp_path: Path) -> None:
    run = finished_sweep(sweep_spec(tmp_path))
    with pytest.raises(SpecError) as error:
        add_trials(run, 1, ["train.epochs=9", "seed=1", "resources.num_workers=2", "cache.budget_gb=1"])
    assert {problem.key for problem in error.value.problems} == {"train.epochs", "seed"}
    assert run.state()["state"] == "finished"


@pytest.mark.parametrize("state", ["running", "interrupted", "failed"])
def test_a_sweep_that_has_not_ended_is_to_end_first(tmp_path: Path, state: str) -> None:
    run = finished_sweep(sweep_spec(tmp_path))
    run.update(state=state)
    with pytest.raises(SpecError, match=f"is {state}, not finished"):
        add_trials(run, 1, [])


def test_a_plain_run_is_no_sweep(tmp_path: Path) -> None:
    run = RunFolder.at(str(tmp_path), "plain")
    run.write_spec(dump_yaml(sweep_spec(tmp_path).model_copy(update={"sweep": None})))
    with pytest.raises(SpecError, match="is no sweep"):
        add_trials(run, 1, [])


def test_a_winner_that_stays_is_not_trained_again_and_another_starts_from_nothing(tmp_path: Path) -> None:
    spec = sweep_spec(tmp_path)
    run = finished_sweep(spec)
    first, second = Trial("t0000", {RATE: 0.1, DEPTH: 0}), Trial("t0001", {RATE: 0.2, DEPTH: 0})
    assert begin_winner(spec, run, first) is None
    winner = RunFolder.open(f"{run.uri}/winner")
    winner.folder.child("checkpoints").write_bytes("mark", b"half trained")
    assert begin_winner(spec, run, first) is None
    assert winner.checkpoints.exists("mark"), "the same winner goes on from its checkpoints"
    winner.write_json("evaluation.json", {"accuracy": 0.5})
    summary = {"best": {"epoch": 1}, "evaluation": {"accuracy": 0.5}}
    end_winner(run, summary)
    assert run.read_json("evaluation.json") == {"accuracy": 0.5}
    assert begin_winner(spec, run, first) == summary
    assert begin_winner(spec, run, second) is None
    assert winner.folder.names() == ["run.json", "spec.yaml"]
