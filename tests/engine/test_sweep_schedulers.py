"""Schedulers on real lanes: clones with their source's weights, many lanes stopped early, nothing left behind."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest
from left_behind import placement_groups_left
from tiny import tiny_spec, write_digits

import tltrain.run as far_side
from tltrain.engine.cluster import connected
from tltrain.report.sweep import TRIALS_FILE
from tltrain.run_folder import RunFolder
from tltrain.spec.load import dump_yaml, load_spec
from tltrain.spec.schema import Spec

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One private cluster for all tests here."""
    with connected():
        yield


def run_sweep(folder: Path, spec: Spec) -> RunFolder:
    path = folder / "sweep.yaml"
    path.write_text(dump_yaml(spec))
    assert far_side.execute(load_spec(path), local=False) == 0
    return RunFolder.at(spec.storage, spec.name)


def test_population_based_training_improves_and_its_clones_have_their_sources_weights(
    cluster: None, tmp_path: Path
) -> None:
    write_digits(tmp_path, train=400)
    sweep = {
        "space": {"optim.learning_rate": {"loguniform": [1e-5, 0.2]}},
        "search": "random",
        "num_trials": 6,
        "scheduler": "pbt",
        "grace_epochs": 1,
    }
    changes = {"model.freeze_depth": 0, "train.epochs": 8, "optim.schedule": "constant", "sweep": sweep}
    run = run_sweep(tmp_path, tiny_spec(tmp_path, changes, name="pbt"))
    trials = run.read_json(TRIALS_FILE)
    clones = [(entry["trial"], clone) for entry in trials for clone in entry.get("clones", [])]
    assert clones
    for trial, clone in clones:
        assert clone["source"] != trial
        assert clone["sha256"] == clone["source_sha256"]
    by_epoch: dict[int, list[float]] = {}
    for row in run.metrics():
        by_epoch.setdefault(row["epoch"], []).append(row["val_loss"])
    assert statistics.mean(by_epoch[8]) < statistics.mean(by_epoch[1])


def test_sixty_four_trials_under_asha_leave_no_placement_group(cluster: None, tmp_path: Path) -> None:
    space = {"optim.learning_rate": {"loguniform": [1e-5, 0.2]}, "model.freeze_depth": {"choice": [3, "all"]}}
    sweep = {"space": space, "search": "random", "num_trials": 64, "scheduler": "asha", "grace_epochs": 1}
    run = run_sweep(tmp_path, tiny_spec(tmp_path, {"train.epochs": 4, "sweep": sweep}, name="asha"))
    states = [entry["state"] for entry in run.read_json(TRIALS_FILE)]
    assert len(states) == 64
    assert set(states) == {"finished", "stopped"}
    assert placement_groups_left() == []


def test_optuna_searches_and_an_extension_asks_it_for_more(cluster: None, tmp_path: Path) -> None:
    space = {"optim.learning_rate": {"loguniform": [1e-4, 0.2]}, "model.freeze_depth": {"choice": [3, "all"]}}
    sweep = {"space": space, "search": "optuna", "num_trials": 8, "max_concurrent": 2}
    run = run_sweep(tmp_path, tiny_spec(tmp_path, {"sweep": sweep}, name="optuna"))
    trials = {entry["trial"]: entry for entry in run.read_json(TRIALS_FILE)}
    assert {trial: entry["state"] for trial, entry in trials.items()} == {f"t{n:04}": "finished" for n in range(8)}
    assert all(1e-4 <= entry["values"]["optim.learning_rate"] <= 0.2 for entry in trials.values())
    assert {entry["values"]["model.freeze_depth"] for entry in trials.values()} == {3, "all"}

    assert far_side.extend(run.uri, 3, []) == 0
    extended = {entry["trial"]: entry for entry in run.read_json(TRIALS_FILE)}
    assert {trial: extended[trial] for trial in trials} == trials, "what was run is not run again"
    assert [extended[f"t{n:04}"]["state"] for n in range(8, 11)] == ["finished"] * 3
    assert len({tuple(entry["values"].values()) for entry in extended.values()}) == 11
    assert len(run.metrics()) == 11 * 2
