"""A run that was killed and resumed ends with the same bits as one that was not."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import ranks
from tiny import tiny_spec

from tltrain.data.splits import load_splits
from tltrain.run_folder import RunFolder
from tltrain.spec.schema import Spec
from tltrain.train import optim
from tltrain.train.distributed import Group
from tltrain.train.lane import Lane
from tltrain.train.session import fine_tune

TIMES = ("train_images_per_s", "epoch_s")

CASES: dict[str, dict[str, Any]] = {
    "momentum": {"model.freeze_depth": 2},
    "nothing-frozen": {"model.freeze_depth": 0, "optim.name": "adamw", "optim.learning_rate": 1e-3},
    "head-only": {"model.freeze_depth": "all"},
    "everything-at-once": {
        "optim.name": "adamw",
        "optim.learning_rate": 1e-3,
        "optim.schedule": "one_cycle",
        "optim.layer_decay": 0.7,
        "train.ema_decay": 0.9,
        "train.accumulation_steps": 2,
        "train.clip_grad_norm": 1.0,
        "train.label_smoothing": 0.1,
        "data.augment": "randaugment",
        "data.mixup": 0.4,
        "data.cutmix": 0.5,
        "data.num_loader_workers": 1,
    },
    "unfreezing": {"train.unfreeze": {"at_epoch": 1, "freeze_depth": 1, "learning_rate_factor": 0.5}},
    "fp16": {"train.precision": "fp16"},
    "bf16": {"train.precision": "bf16"},
}


def train(group: Group, spec: Spec) -> dict[str, Any]:
    return fine_tune(spec, RunFolder.at(spec.storage, spec.name), group)


def train_and_die(group: Group, spec: Spec, step: int, rank: int) -> None:
    """Train until `rank` is killed with SIGKILL just before optimiser step `step`."""
    update = Lane.update

    def deadly_update(lane: Lane, at: int) -> None:
        if at == step and group.rank == rank:
            os.kill(os.getpid(), signal.SIGKILL)
        update(lane, at)

    setattr(Lane, "update", deadly_update)  # noqa: B010
    train(group, spec)


def train_without_momentum(group: Group, spec: Spec) -> dict[str, Any]:
    """Resume with one item of state left out."""
    optim.load_state_by_name = lambda optimizer, state: None
    return train(group, spec)


def digest(spec: Spec) -> dict[str, str]:
    """sha256 of what a run leaves: the model and the last checkpoint's lane."""
    run = RunFolder.at(spec.storage, spec.name).folder.local_path
    assert run is not None
    newest = max((run / "checkpoints").glob("*/COMMIT"), key=lambda path: int(path.parent.name)).parent
    files = [run / "model" / "model.safetensors", *sorted(newest.glob("lane-*"))]
    assert len(files) >= 3
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def rows(spec: Spec) -> list[dict[str, Any]]:
    table = RunFolder.at(spec.storage, spec.name).metrics()
    return [{key: value for key, value in row.items() if key not in TIMES} for row in table]


def specs(tmp_path: Path, changes: dict[str, Any]) -> tuple[Spec, Spec]:
    changes = {"checkpoint.every_steps": 2, "train.epochs": 2} | changes
    return tiny_spec(tmp_path, changes, name="clean"), tiny_spec(tmp_path, changes, name="killed")


@pytest.mark.parametrize(
    ("case", "world_size"),
    [
        ("nothing-frozen", 1),
        ("fp16", 1),
        ("everything-at-once", 2),
        *(pytest.param(case, 1, marks=pytest.mark.slow) for case in CASES if case not in ("nothing-frozen", "fp16")),
        pytest.param("momentum", 2, marks=pytest.mark.slow),
        pytest.param("unfreezing", 2, marks=pytest.mark.slow),
        pytest.param("nothing-frozen", 4, marks=pytest.mark.slow),
    ],
)
def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path, case: str, world_size: int) -> None:
    clean, killed = specs(tmp_path, CASES[case])
    ranks.run(world_size, train, clean)
    # Fewer than 80 training images, 16 a step: 5 steps an epoch. Steps 3 and 8 are in the middle of one.
    for step in (3, 8):
        codes = ranks.run_until_death(world_size, train_and_die, killed, step, world_size - 1)
        assert -signal.SIGKILL in codes
    ranks.run(world_size, train, killed)
    assert digest(killed) == digest(clean)
    assert rows(killed) == rows(clean)


def test_leaving_out_the_optimizers_state_is_noticed(tmp_path: Path) -> None:
    clean, killed = specs(tmp_path, CASES["momentum"])
    ranks.run(1, train, clean)
    ranks.run_until_death(1, train_and_die, killed, 3, 0)
    ranks.run(1, train_without_momentum, killed)
    assert digest(killed) != digest(clean)


def test_after_a_change_of_world_size_each_epoch_still_has_every_sample_once(tmp_path: Path) -> None:
    _, killed = specs(tmp_path, {})
    ranks.run_until_death(2, train_and_die, killed, 3, 1)
    ids = ranks.run(1, train_logging_samples, killed)[0]
    # 2 steps are behind the newest checkpoint: the rest of epoch 0, then all of epoch 1.
    count = num_train_images(killed)
    assert len(ids[0]) == len(set(ids[0])) == count - 2 * 16
    assert sorted(ids[1]) == list(range(count))


def num_train_images(spec: Spec) -> int:
    return len(load_splits(spec.data, spec.seed).train)


def train_logging_samples(group: Group, spec: Spec) -> dict[int, list[int]]:
    """Train and return epoch -> positions of the real samples this rank trained on, in order."""
    seen: dict[int, list[int]] = {}
    accumulate = Lane.accumulate

    def logging_accumulate(lane: Lane, tap: Any, batch: Any, **options: Any) -> None:
        seen.setdefault(batch.epoch, []).extend(batch.ids[batch.weights > 0].tolist())
        accumulate(lane, tap, batch, **options)

    setattr(Lane, "accumulate", logging_accumulate)  # noqa: B010
    train(group, spec)
    return seen


@pytest.mark.slow
def test_one_two_and_four_workers_take_each_sample_once_and_agree(tmp_path: Path) -> None:
    losses: dict[int, list[float]] = {}
    for world_size in (1, 2, 4):
        # Frozen BatchNorm, so that a step is the same function of its batch however it is divided.
        changes = {"model.freeze_depth": "all", "data.val": 0.25}
        spec = tiny_spec(tmp_path, changes, name=f"workers-{world_size}")
        logs = ranks.run(world_size, train_logging_samples, spec)
        for epoch in (0, 1):
            seen = sorted(position for log in logs for position in log[epoch])
            assert seen == list(range(num_train_images(spec))), (world_size, epoch)
        losses[world_size] = [row[key] for row in rows(spec) for key in ("train_loss", "val_loss")]
    assert losses[2] == pytest.approx(losses[1], rel=1e-4)
    assert losses[4] == pytest.approx(losses[1], rel=1e-4)


def test_the_same_spec_and_seed_give_the_same_bits_twice(tmp_path: Path) -> None:
    first, second = specs(tmp_path, CASES["everything-at-once"])
    ranks.run(1, train, first)
    ranks.run(1, train, second)
    assert digest(first) == digest(second)
    third = tiny_spec(tmp_path, {**CASES["everything-at-once"], "checkpoint.every_steps": 2, "seed": 1}, name="third")
    ranks.run(1, train, third)
    assert digest(third) != digest(first)


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    spec = tiny_spec(tmp_path, {})
    ranks.run(1, train, spec)
    before = digest(spec)
    assert ranks.run(1, train_logging_samples, spec) == [{}]
    assert digest(spec) == before


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs pidfds")
@pytest.mark.parametrize("start_method", ["fork", "forkserver"])
def test_loader_processes_end_with_the_training_process_that_was_killed(tmp_path: Path, start_method: str) -> None:
    spec = tiny_spec(tmp_path, {"data.num_loader_workers": 2})
    log = tmp_path / "pids"
    ranks.run_until_death(1, train_and_die_with_loaders, spec, start_method, log)
    pids = [int(pid) for pid in log.read_text().split()]
    assert len(pids) >= 2
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}/cmdline").exists() and is_running(pid) for pid in pids):
        assert time.monotonic() < deadline, "a loader process was left behind"
        time.sleep(0.1)


def is_running(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def train_and_die_with_loaders(group: Group, spec: Spec, start_method: str, log: Path) -> None:
    multiprocessing.set_start_method(start_method, force=True)
    update = Lane.update

    def deadly_update(lane: Lane, at: int) -> None:
        if at == 3:
            children = Path("/proc/self/task").glob("*/children")
            mine = " ".join(path.read_text() for path in children)
            log.write_text(" ".join(_with_descendants(mine.split())))
            os.kill(os.getpid(), signal.SIGKILL)
        update(lane, at)

    setattr(Lane, "update", deadly_update)  # noqa: B010
    train(group, spec)


def _with_descendants(pids: list[str]) -> list[str]:
    found = list(pids)
    for pid in found:
        for path in Path(f"/proc/{pid}/task").glob("*/children"):
            found += path.read_text().split()
    return found
