"""Lanes side by side: each trains as it would alone, whoever stands beside it, ends or fails."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from tiny import tiny_spec

from tltrain.run_folder import RunFolder
from tltrain.spec.schema import Spec
from tltrain.train.checkpoint import Checkpoints
from tltrain.train.distributed import Group
from tltrain.train.lane_group import LaneGroup, bench_key, newest_state
from tltrain.train.session import fine_tune

ALONE = Group(rank=0, world_size=1, local_rank=0, local_world_size=1, device=torch.device("cpu"))
UNTIMED = ("train_loss", "train_top1", "val_loss", "val_top1", "val_top5", "learning_rate", "frozen_stages")

LANES: dict[str, dict[str, Any]] = {
    "head": {"model.freeze_depth": "all", "optim.learning_rate": 0.1},
    "head-smooth": {"model.freeze_depth": "all", "train.label_smoothing": 0.1, "optim.weight_decay": 0.01},
    "upper": {"model.freeze_depth": 3, "optim.name": "adamw", "optim.learning_rate": 1e-3},
    "upper-ema": {"model.freeze_depth": 3, "train.ema_decay": 0.9, "train.clip_grad_norm": 0.5},
    "everything": {"model.freeze_depth": 0, "optim.layer_decay": 0.8},
    "unfreezing": {"model.freeze_depth": "all", "train.unfreeze": {"at_epoch": 1, "freeze_depth": 2}},
}

COMMON: dict[str, dict[str, Any]] = {
    "kept taps": {},
    "random augmentation": {"data.augment": "randaugment", "data.mixup": 0.2},
    "dropout": {"model.name": "mobilenet_v3_small", "data.image_size": 32},
    "nothing kept": {"cache.budget_gb": 0},
}


def lane_spec(folder: Path, lane: str, common: dict[str, Any], name: str) -> Spec:
    return tiny_spec(folder, {"train.epochs": 2, **common, **LANES[lane]}, name=name)


def curve(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: row[key] for key in UNTIMED} for row in rows]


def train_together(group: Group, specs: dict[str, Spec], epochs: int = 2) -> dict[str, list[dict[str, Any]]]:
    first = next(iter(specs.values()))
    together = LaneGroup(first, RunFolder.at(first.storage, "sweep"), group, index=0, passes=epochs)
    for trial, spec in specs.items():
        together.add(trial, spec, None)
    curves: dict[str, list[dict[str, Any]]] = {trial: [] for trial in specs}
    for epoch in range(epochs):
        rows, errors = together.train_epoch(list(specs), epoch)
        assert not errors
        for row in rows:
            curves[row["lane"]].append(row)
    together.close()
    return curves


def train_alone(group: Group, spec: Spec) -> list[dict[str, Any]]:
    run = RunFolder.at(spec.storage, spec.name)
    fine_tune(spec, run, group)
    return run.metrics()


@pytest.mark.parametrize(
    "common",
    [
        "kept taps",
        "random augmentation",
        pytest.param("dropout", marks=pytest.mark.slow),
        pytest.param("nothing kept", marks=pytest.mark.slow),
    ],
)
def test_a_lane_beside_others_equals_the_lane_alone_to_the_bit(tmp_path: Path, common: str) -> None:
    lanes = [lane for lane in LANES if common != "dropout" or lane != "everything"]
    specs = {lane: lane_spec(tmp_path, lane, COMMON[common], lane) for lane in lanes}
    together = ranks.run(1, train_together, specs)[0]
    for lane, spec in specs.items():
        assert curve(together[lane]) == curve(ranks.run(1, train_alone, spec)[0]), lane


@pytest.mark.slow
def test_on_two_workers_too(tmp_path: Path) -> None:
    specs = {lane: lane_spec(tmp_path, lane, {}, lane) for lane in ("head", "upper", "unfreezing")}
    together = ranks.run(2, train_together, specs)[0]
    for lane, spec in specs.items():
        assert curve(together[lane]) == curve(ranks.run(2, train_alone, spec)[0]), lane


def test_lanes_of_other_seeds_share_a_workbench_and_equal_their_own_runs(tmp_path: Path) -> None:
    common = {"model.weights": pretrained(tmp_path), "data.split_seed": 5}
    first = lane_spec(tmp_path, "upper", {**common, "seed": 1}, "seed-1")
    second = lane_spec(tmp_path, "upper", {**common, "seed": 2}, "seed-2")
    assert bench_key(first) == bench_key(second)
    results = ranks.run(1, train_one_after_the_other, {"seed-1": first, "seed-2": second})[0]
    for trial, spec in (("seed-1", first), ("seed-2", second)):
        assert curve(results[trial]) == curve(ranks.run(1, train_alone, spec)[0]), trial
    assert curve(results["seed-1"]) != curve(results["seed-2"])


def pretrained(folder: Path) -> str:
    """Return the path of a state dict of the tests' network for other classes, as if it were pretrained."""
    import torchvision
    from safetensors.torch import save_file

    path = folder / "pretrained.safetensors"
    torch.manual_seed(7)
    save_file(torchvision.models.shufflenet_v2_x0_5(num_classes=7).state_dict(), path)
    return str(path)


def train_one_after_the_other(group: Group, specs: dict[str, Spec]) -> dict[str, list[dict[str, Any]]]:
    first = next(iter(specs.values()))
    together = LaneGroup(first, RunFolder.at(first.storage, "sweep"), group, index=0, passes=4)
    curves: dict[str, list[dict[str, Any]]] = {trial: [] for trial in specs}
    for trial, spec in specs.items():
        together.add(trial, spec, None)
    for epoch in range(2):
        for trial in specs:
            curves[trial] += together.train_epoch([trial], epoch)[0]
    return curves


def test_a_lane_that_diverges_ends_alone_with_its_step_and_rate(tmp_path: Path) -> None:
    specs = {"good": lane_spec(tmp_path, "upper", {}, "good"), "bad": lane_spec(tmp_path, "head", {}, "bad")}
    wild = specs["bad"].optim.model_copy(update={"learning_rate": 1e38, "schedule": "constant"})
    specs["bad"] = specs["bad"].model_copy(update={"optim": wild})
    together = LaneGroup(specs["good"], RunFolder.at(specs["good"].storage, "sweep"), ALONE, index=0, passes=2)
    for trial, spec in specs.items():
        together.add(trial, spec, None)
    rows, errors = together.train_epoch(["good", "bad"], 0)
    assert [row["lane"] for row in rows] == ["good"]
    assert list(errors) == ["bad"]
    assert "(learning rate 1e+38), for train.parquet" in errors["bad"]
    rows += together.train_epoch(["good"], 1)[0]
    assert curve(rows) == curve(train_alone(ALONE, specs["good"]))


def test_a_saved_lane_goes_on_elsewhere_with_the_same_bits(tmp_path: Path) -> None:
    spec = lane_spec(tmp_path, "upper-ema", {}, "lane")
    run = RunFolder.at(spec.storage, "sweep")
    first = LaneGroup(spec, run, ALONE, index=0, passes=2)
    first.add("t0", spec, None)
    first.train_epoch(["t0"], 0)
    names = first.save(["t0"], 1)
    expected, _ = first.train_epoch(["t0"], 1)
    assert newest_state(run, "t0", most=1) == (names["t0"], 1)

    second = LaneGroup(spec, run, ALONE, index=1, passes=2)
    second.add("clone", spec, names["t0"])
    rows, _ = second.train_epoch(["clone"], 1)
    assert curve(rows) == curve(expected)


def test_a_state_that_is_needed_stays_whatever_is_saved(tmp_path: Path) -> None:
    spec = lane_spec(tmp_path, "upper", {}, "lane")
    run = RunFolder.at(spec.storage, "sweep")
    group = LaneGroup(spec, run, ALONE, index=0, passes=2)
    group.add("t0", spec, None)
    group.add("t1", spec, None, home="t1.2")
    group.needed = frozenset({"t0/1", "t9/2"})
    for epoch in range(1, 6):
        assert group.save(["t0", "t1"], epoch) == {"t0": f"t0/{epoch}", "t1": f"t1.2/{epoch}"}
    states = run.folder.child("lanes")
    assert states.child("t0").names() == ["1", "3", "4", "5"]
    assert states.child("t1.2").names() == ["3", "4", "5"]
    group.delete_states("t0")
    group.delete_states("t1.2")
    assert states.names() == ["t0"]
    group.needed = frozenset()
    group.save(["t0"], 6)
    assert states.child("t0").names() == ["4", "5", "6"]


def test_a_lane_goes_back_to_the_newest_state_whose_epochs_are_known(tmp_path: Path) -> None:
    run = RunFolder.at(str(tmp_path), "sweep")
    states = Checkpoints(run.folder.child("lanes", "t0"), keep=3)
    for epoch in (1, 2, 3):
        states.save(epoch, {}, {"trial": "t0"}, background=False)
    assert newest_state(run, "t0", most=2) == ("t0/2", 2)
    states.save(1, {}, {"trial": "t0"}, background=False)
    assert states.steps() == [1, 2], "what is newer by number alone would push out what is saved from now on"
    assert newest_state(run, "t0", most=0) is None
    assert states.steps() == []


def test_dropping_a_lane_in_the_middle_does_not_touch_the_others(tmp_path: Path) -> None:
    specs = {lane: lane_spec(tmp_path, lane, {}, lane) for lane in ("head", "upper")}
    together = LaneGroup(specs["upper"], RunFolder.at(specs["upper"].storage, "sweep"), ALONE, index=0, passes=2)
    for trial, spec in specs.items():
        together.add(trial, spec, None)
    rows = [row for row in together.train_epoch(["head", "upper"], 0)[0] if row["lane"] == "upper"]
    together.drop("head")
    rows += together.train_epoch(["upper"], 1)[0]
    assert curve(rows) == curve(train_alone(ALONE, specs["upper"]))


def test_a_group_tells_what_its_lanes_shared(tmp_path: Path) -> None:
    specs = {lane: lane_spec(tmp_path, lane, {}, lane) for lane in ("head", "head-smooth", "upper")}
    together = LaneGroup(specs["head"], RunFolder.at(specs["head"].storage, "sweep"), ALONE, index=0, passes=2)
    for trial, spec in specs.items():
        together.add(trial, spec, None)
    for epoch in range(2):
        together.train_epoch(list(specs), epoch)
    with together.waiting():
        measured = together.measured()
    together.close()

    (bench,) = measured["benches"].values()
    train, val = bench["images"]["train"], bench["images"]["val"]
    deepest = len(bench["stages"]) - 1
    assert train + val == 96
    assert bench["lanes"] == {"head": {str(deepest): 2}, "head-smooth": {str(deepest): 2}, "upper": {"3": 2}}
    assert bench["decoded"] >= train + val
    assert {(start, stop) for start, stop, _, images in bench["computed"] if images} >= {(-1, 3), (3, deepest)}
    assert measured["seconds"].keys() >= {"decode", "prefix", "lanes", "validation", "waiting", "other"}
    assert all(seconds >= 0 for seconds in measured["seconds"].values())


def loader_processes_after_each_epoch(group: Group, spec: Spec) -> list[int]:
    lanes = LaneGroup(spec, RunFolder.at(spec.storage, "sweep"), group, index=0, passes=spec.train.epochs)
    lanes.add("lane", spec, None)
    counts = []
    for epoch in range(spec.train.epochs):
        lanes.train_epoch(["lane"], epoch)
        counts.append(len(multiprocessing.active_children()))
    lanes.close()
    return counts


def test_loader_processes_end_with_the_last_epoch_of_the_lanes(tmp_path: Path) -> None:
    changes = {"data.num_loader_workers": 1, "data.augment": "basic", "train.epochs": 2}
    assert loader_processes_after_each_epoch(ALONE, tiny_spec(tmp_path, changes)) == [1, 0]
