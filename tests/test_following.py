"""The bar of a sweep: of its trials, of their confirmation over seeds, of the winner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tltrain.following import bar_of_sweep
from tltrain.progress import Pace
from tltrain.run_folder import WINNER, RunFolder
from tltrain.spec.schema import Spec


def spec_in(folder: Path, **sweep: Any) -> Spec:
    values = {"name": "s", "model": {"name": "resnet18"}, "data": {"train": "a"}, "train": {"epochs": 4}}
    space = {"optim.learning_rate": {"choice": [0.01, 0.1]}}
    return Spec.model_validate({**values, "storage": str(folder), "sweep": {"space": space, **sweep}})


def trial(name: str, state: str, epochs: int) -> dict[str, Any]:
    return {"trial": name, "state": state, "epochs": epochs}


def test_trials_that_a_searcher_will_propose_count_and_stopped_ones_count_as_far_as_they_came(tmp_path: Path) -> None:
    spec = spec_in(tmp_path, num_trials=4)
    run = RunFolder.at(spec.storage, spec.name)
    trials = [trial("t0", "stopped", 1), trial("t1", "running", 2)]
    bar = bar_of_sweep(spec, run, trials, [], Pace())
    assert (bar.label, bar.share) == ("1 of 4 trials ended", 3 / 13)


def test_after_the_trials_come_their_confirmation_and_the_winner(tmp_path: Path) -> None:
    spec = spec_in(tmp_path, confirm={"top": 3, "seeds": 2})
    run = RunFolder.at(spec.storage, spec.name)
    trials = [trial("t0", "finished", 4), trial("t1", "running", 4)]
    rows = [{"lane": lane, "epoch": epoch} for lane in ("t0", "t1", "t1-s1") for epoch in (1, 2)]
    bar = bar_of_sweep(spec, run, trials, rows, Pace())
    assert (bar.label, bar.share) == ("Confirming over seeds", 2 / 8), "two trials are all there are to confirm"
    progress = {"phase": "training", "epoch": 2, "epochs": 4, "images": 1, "num_images": 4}
    RunFolder(run.folder.child(WINNER, "progress")).write_json("0.json", progress)
    bar = bar_of_sweep(spec, run, trials, rows, Pace())
    assert (bar.label, bar.share) == ("Winner: Epoch 2/4 training", 0.25)


def test_a_sweep_that_has_not_begun_has_a_bar(tmp_path: Path) -> None:
    spec = spec_in(tmp_path)
    assert str(bar_of_sweep(spec, RunFolder.at(spec.storage, "s"), [], [], Pace())) == "0 of 0 trials ended  0 %"
