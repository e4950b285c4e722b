"""A run in this process: what it learns, what stays frozen, what it leaves behind."""

from __future__ import annotations

import math
import multiprocessing
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ranks
import torch
from safetensors.torch import load_file
from tiny import tiny_spec, write_digits

from tltrain.data.decode import decode
from tltrain.data.loader import Batch
from tltrain.data.splits import load_splits
from tltrain.errors import DataError, DivergedError
from tltrain.models.zoo import load_trained
from tltrain.run_folder import RunFolder
from tltrain.spec.schema import Spec
from tltrain.train import session
from tltrain.train.distributed import Group
from tltrain.train.finish import finish_lane
from tltrain.train.lane import Lane
from tltrain.train.session import Session, fine_tune
from tltrain.train.workbench import class_weights, fingerprint

ALONE = Group(rank=0, world_size=1, local_rank=0, local_world_size=1, device=torch.device("cpu"))


def train(spec: Spec) -> tuple[RunFolder, dict[str, Any]]:
    run = RunFolder.at(spec.storage, spec.name)
    return run, fine_tune(spec, run, ALONE)


def saved_model(run: RunFolder) -> dict[str, torch.Tensor]:
    assert run.model.local_path is not None
    return load_file(run.model.local_path / "model.safetensors")


def test_a_run_learns_digits_and_leaves_a_complete_folder(tmp_path: Path) -> None:
    write_digits(tmp_path, train=400)
    changes = {"model.freeze_depth": 0, "train.epochs": 8, "optim.name": "adamw", "optim.learning_rate": 3e-3}
    run, summary = train(tiny_spec(tmp_path, changes))
    assert summary["evaluation"]["accuracy"] > 0.5  # chance is 0.1
    assert summary["evaluation"]["num_images"] == 45
    evaluation = run.read_json("evaluation.json")
    assert evaluation["split"] == "test"
    assert sum(map(sum, evaluation["confusion_matrix"])) == 45
    assert run.folder.local_path is not None
    table = pq.read_table(run.folder.local_path / "predictions.parquet").to_pylist()
    assert sum(row["correct"] for row in table) / 45 == pytest.approx(evaluation["accuracy"])
    steps = [(row["lane"], row["step"]) for row in run.metrics()]
    assert len(set(steps)) == len(steps) == 8
    mistakes = [row for row in table if not row["correct"]]
    thumbnails = pq.read_table(run.folder.local_path / "thumbnails.parquet").to_pylist()
    shown = {row["id"] for row in thumbnails if row["kind"] == "mistake"}
    assert shown <= {row["id"] for row in mistakes}
    assert len(shown) == min(24, len(mistakes))
    seconds = run.read_json("timings.json")["seconds"]
    assert set(seconds) == {"decode", "prefix", "lanes", "validation", "checkpoint", "test", "other"}
    assert seconds["lanes"] > 0


def test_the_guides_lines_load_the_model_in_plain_torchvision(tmp_path: Path, project_dir: Path) -> None:
    run, _ = train(tiny_spec(tmp_path))
    block = re.search(
        r"```python\n(import json, torchvision.*?)```", (project_dir / "docs" / "using.md").read_text(), re.S
    )
    assert block is not None
    names: dict[str, Any] = {}
    exec(block[1].replace("runs/flowers-resnet50", run.uri), names)
    assert names["card"]["classes"] == [str(digit) for digit in range(10)]
    images = torch.rand(4, 3, 32, 32)
    expected = load_trained(run.uri).module(images)
    assert torch.equal(names["model"].eval()(images), expected)


@pytest.mark.parametrize("budget_gb", [0, 1])
def test_views_are_taken_in_turn_and_decoded_once_where_their_taps_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget_gb: float
) -> None:
    decoded: list[str] = []
    monkeypatch.setattr("tltrain.data.loader.decode", lambda data, name: decoded.append(name) or decode(data, name))
    tapped: dict[int, list[torch.Tensor]] = {}

    def accumulate(lane: Lane, tap: torch.Tensor, batch: Batch, **options: Any) -> None:
        tapped.setdefault(batch.epoch, []).append(tap[batch.ids.argsort()].clone())
        original(lane, tap, batch, **options)

    original = Lane.accumulate
    monkeypatch.setattr(Lane, "accumulate", accumulate)
    common = {"train.batch_size": 96, "data.val": None, "data.test": None, "data.augment": "basic"}
    train(tiny_spec(tmp_path, {**common, "train.epochs": 4, "cache.views": 2, "cache.budget_gb": budget_gb}))
    views = [torch.cat(tapped[epoch]) for epoch in range(4)]
    assert torch.equal(views[0], views[2])
    assert torch.equal(views[1], views[3])
    assert not torch.equal(views[0], views[1])
    assert len(decoded) == 96 * (2 if budget_gb else 4)


@pytest.mark.parametrize("freeze_depth", [1, 3, "all"])
def test_frozen_tensors_and_buffers_do_not_move_and_trained_ones_do(tmp_path: Path, freeze_depth: int | str) -> None:
    spec = tiny_spec(tmp_path, {"model.freeze_depth": freeze_depth, "data.augment": "basic"})
    run, _ = train(spec)
    from tltrain.models.zoo import build_network

    network = build_network(spec.model, 10, seed=spec.seed)
    depth = network.staged.resolve_depth(freeze_depth)
    before, after = network.module.state_dict(), saved_model(run)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        if network.staged.stage_of(name) < depth:
            assert torch.equal(tensor, after[name]), name
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert any("weight" in name for name in moved)
    assert all(network.staged.stage_of(name) >= depth for name in moved)


def parameters_of_all_ranks(group: Group, spec: Spec) -> str:
    session = Session(spec, RunFolder.at(spec.storage, spec.name), group, None)
    session.train(session.resume())
    assert session.lane.depth == 0
    return fingerprint(dict(session.lane.suffix.named_parameters()))


def test_parameters_unfrozen_later_train_and_stay_equal_on_all_ranks(tmp_path: Path) -> None:
    changes = {"model.freeze_depth": "all", "train.unfreeze": [{"at_epoch": 1, "freeze_depth": 0}]}
    first, second = ranks.run(2, parameters_of_all_ranks, tiny_spec(tmp_path, changes))
    assert first == second
    run = RunFolder.at(str(tmp_path / "runs"), "tiny")
    assert [row["frozen_stages"] > 0 for row in run.metrics()] == [True, False]


def test_validation_counts_every_image_once_whatever_the_number_of_ranks(tmp_path: Path) -> None:
    # 45 test images do not divide by 2; padding would count one twice.
    changes = {"model.freeze_depth": "all"}
    for world_size in (1, 2):
        spec = tiny_spec(tmp_path, changes, name=f"world-{world_size}")
        ranks.run(world_size, run_on, spec)
        run = RunFolder.at(spec.storage, spec.name)
        assert run.read_json("evaluation.json")["num_images"] == 45
        positions = pq.read_table(f"{run.uri}/predictions.parquet")["id"].to_pylist()
        assert len(set(positions)) == 45


def run_on(group: Group, spec: Spec) -> dict[str, Any]:
    return fine_tune(spec, RunFolder.at(spec.storage, spec.name), group)


def test_accumulation_gives_the_same_step_as_the_whole_batch(tmp_path: Path) -> None:
    losses = []
    for parts in (1, 4):
        spec = tiny_spec(
            tmp_path, {"model.freeze_depth": "all", "train.accumulation_steps": parts}, name=f"parts-{parts}"
        )
        run, _ = train(spec)
        losses.append([row["train_loss"] for row in run.metrics()])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_early_stopping_ends_the_run_and_the_best_epoch_is_evaluated(tmp_path: Path) -> None:
    changes = {
        "train.epochs": 30,
        "train.early_stopping": {"patience": 2, "min_delta": 0.5},
        "train.best_metric": "loss",
        "optim.learning_rate": 1e-6,
    }
    run, summary = train(tiny_spec(tmp_path, changes))
    table = run.metrics()
    assert len(table) == 3
    best = min(table, key=lambda row: row["val_loss"])
    assert summary["best"]["epoch"] == best["epoch"]


@pytest.mark.parametrize("patience", [None, 1])
def test_loader_processes_of_training_have_ended_before_the_model_is_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: int | None
) -> None:
    stopping = {"train.early_stopping": {"patience": patience, "min_delta": 0.9}} if patience else {}
    running: list[int] = []

    def counted(*arguments: Any) -> dict[str, Any]:
        running.append(len(multiprocessing.active_children()))
        return finish_lane(*arguments)

    monkeypatch.setattr(session, "finish_lane", counted)
    changes = {"data.num_loader_workers": 1, "data.augment": "basic", "train.epochs": 3, **stopping}
    run, _ = train(tiny_spec(tmp_path, changes))
    assert len(run.metrics()) == (2 if patience else 3)
    assert running == [0]


def test_a_loss_that_is_not_finite_ends_the_run_with_step_and_rate(tmp_path: Path) -> None:
    spec = tiny_spec(tmp_path, {"optim.learning_rate": 1e30, "optim.schedule": "constant", "model.freeze_depth": 0})
    run = RunFolder.at(spec.storage, spec.name)
    named = r"lane-0 is not finite at step \d+ \(learning rate 1e\+30\), for train\.parquet#\d+, "
    with pytest.raises(DivergedError, match=named):
        fine_tune(spec, run, ALONE)
    assert run.checkpoints.names() == []


def test_balanced_class_weights_are_inverse_frequency_with_mean_one(tmp_path: Path) -> None:
    spec = tiny_spec(tmp_path, {"train.class_weights": "balanced"})
    splits = load_splits(spec.data, spec.seed)
    weights = class_weights(spec, splits)
    assert weights is not None
    counts = torch.bincount(torch.from_numpy(splits.train.labels))
    products = weights * counts
    assert math.isclose(float(weights.mean()), 1.0, rel_tol=1e-6)
    assert torch.allclose(products, products[0].expand(10))


def test_class_weights_must_name_every_class(tmp_path: Path) -> None:
    spec = tiny_spec(tmp_path, {"train.class_weights": {"0": 1.0, "banana": 2.0}})
    with pytest.raises(DataError, match="banana"):
        class_weights(spec, load_splits(spec.data, spec.seed))


def test_changed_data_is_noticed_on_resume(tmp_path: Path) -> None:
    train(tiny_spec(tmp_path))
    write_digits(tmp_path, train=90)
    with pytest.raises(DataError, match="data has changed"):
        train(tiny_spec(tmp_path))


def test_without_validation_the_last_epoch_is_evaluated(tmp_path: Path) -> None:
    run, summary = train(tiny_spec(tmp_path, {"data.val": None}))
    assert summary["best"] is None
    assert summary["evaluation"]["split"] == "test"
    assert all("val_loss" not in row for row in run.metrics())


def test_without_any_test_images_validation_is_what_is_evaluated_and_named(tmp_path: Path) -> None:
    _, summary = train(tiny_spec(tmp_path, {"data.test": None}))
    assert summary["evaluation"]["split"] == "validation"


@pytest.mark.slow
def test_a_compiled_run_trains_like_the_plain_one(tmp_path: Path) -> None:
    losses = []
    for compiled in (False, True):
        changes = {"train.compile": compiled, "train.epochs": 1, "model.freeze_depth": 3}
        run, _ = train(tiny_spec(tmp_path, changes, name=f"compiled-{compiled}".lower()))
        losses.append(run.metrics()[0]["train_loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
