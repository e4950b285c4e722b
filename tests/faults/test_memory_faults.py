"""Memory that runs out beside training: a loader process that the system kills ends the run so that it can go on."""

from __future__ import annotations

import hashlib
import multiprocessing
from pathlib import Path

import ranks
from tiny import tiny_spec

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


def train_and_lose_a_loader(group: Group, spec: Spec) -> LostError:
    """Train until the fourth step, when the loader processes are killed as the system does it; returns the error."""
    update = Lane.update

    def deadly_update(lane: Lane, step: int) -> None:
        if step == 3:
            for process in multiprocessing.active_children():
                process.kill()
        update(lane, step)

    setattr(Lane, "update", deadly_update)  # noqa: B010
    try:
        train(group, spec)
    except LostError as error:
        return error
    raise AssertionError("nobody noticed")


def test_a_killed_loader_process_is_named_and_the_run_goes_on_exactly(tmp_path: Path) -> None:
    changes = {"data.num_loader_workers": 1, "data.augment": "basic", "checkpoint.every_steps": 2}
    killed, clean = (tiny_spec(tmp_path, changes, name=name) for name in ("killed", "clean"))
    (error,) = ranks.run(1, train_and_lose_a_loader, killed)
    assert "the loader process" in str(error)
    assert "data.num_loader_workers" in str(error)
    assert classify([error]) is Cause.LOST
    assert ranks.run(1, train, killed) == ranks.run(1, train, clean)
