"""Loader processes that the system kills for want of memory, or that stand still: the run ends so that it can go on."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import ranks
from tiny import tiny_spec

from tltrain.data import loader_processes
from tltrain.engine.retry import Cause, classify
from tltrain.errors import LostError
from tltrain.run_folder import RunFolder
from tltrain.spec.schema import Spec
from tltrain.train.distributed import Group
from tltrain.train.lane import Lane
from tltrain.train.session import fine_tune


def train(group: Group, spec: Spec) -> str:
    """Train; returns the sha256 of the model."""
    run = RunFolder.at(spec.storage, spec.name)
    fine_tune(spec, run, group)
    return hashlib.sha256(run.model.read_bytes("model.safetensors")).hexdigest()


def train_and_lose_a_loader(group: Group, spec: Spec, number: int) -> LostError:
    """Train until the fourth step, when the loader processes get a signal; returns the error."""
    loader_processes.LOOK_S = 0.1
    update = Lane.update

    def deadly_update(lane: Lane, step: int) -> None:
        if step == 3:
            for process in multiprocessing.active_children():
                os.kill(process.pid or 0, number)
        update(lane, step)

    setattr(Lane, "update", deadly_update)  # noqa: B010
    try:
        train(group, spec)
    except LostError as error:
        return error
    raise AssertionError("nobody noticed")


@pytest.mark.parametrize(
    ("number", "told"),
    [(signal.SIGKILL, "data.num_loader_workers"), (signal.SIGSTOP, "stood still")],
    ids=["SIGKILL", "SIGSTOP"],
)
def test_a_lost_loader_process_is_named_and_the_run_goes_on_exactly(tmp_path: Path, number: int, told: str) -> None:
    changes = {"data.num_loader_workers": 1, "data.augment": "basic", "checkpoint.every_steps": 2}
    killed, clean = (tiny_spec(tmp_path, changes, name=name) for name in ("killed", "clean"))
    (error,) = ranks.run(1, train_and_lose_a_loader, killed, number)
    assert "the loader process" in str(error)
    assert told in str(error)
    assert classify([error]) is Cause.LOST
    assert ranks.run(1, train, killed) == ranks.run(1, train, clean)
