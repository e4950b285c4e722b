"""Loader processes that the system kills, and reads that stand still: the run ends so that it can go on."""

from __future__ import annotations

import hashlib
import itertools
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import ranks
from tiny import tiny_spec

from tltrain.data import loader, waiting
from tltrain.engine.retry import Cause, classify
from tltrain.errors import LostError
from tltrain.progress import Wait, read_progress_and_waits
from tltrain.run_folder import RunFolder
from tltrain.spec.schema import Spec
from tltrain.storage import Folder
from tltrain.train.distributed import Group
from tltrain.train.lane import Lane
from tltrain.train.plain import train_plainly
from tltrain.train.session import fine_tune


def train(group: Group, spec: Spec) -> str:
    """Train; returns the sha256 of the model."""
    run = RunFolder.at(spec.storage, spec.name)
    fine_tune(spec, run, group)
    return hashlib.sha256(run.model.read_bytes("model.safetensors")).hexdigest()


def train_and_lose_a_loader(group: Group, spec: Spec, number: int) -> LostError:
    """Train until the fourth step, when the loader processes get a signal; returns the error."""
    waiting.LOOK_S = 0.1
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


def train_where_an_image_is_never_read(group: Group, spec: Spec) -> tuple[str, list[Wait]]:
    """Train until the 30th image that a process reads; returns the error, and what was waited for by then."""
    waiting.LOOK_S, waiting.TELL_LOOKS, read, numbers = 0.1, 2, loader.decode, itertools.count()

    def never_read(content: bytes, name: str) -> Any:
        if next(numbers) == 30:
            threading.Event().wait()
        return read(content, name)

    loader.decode = never_read
    waits: list[Wait] = []
    folder = RunFolder.at(spec.storage, spec.name).folder
    looks = threading.Thread(target=lambda: waits.extend(until_it_waits(folder)), daemon=True)
    looks.start()
    try:
        train_plainly(spec, RunFolder.at(spec.storage, spec.name), group)
    except LostError as error:
        looks.join(5.0)
        return str(error), waits
    raise AssertionError("nobody noticed")


def until_it_waits(folder: Folder) -> list[Wait]:
    """Look into a run folder until something is waited for."""
    while not (waits := read_progress_and_waits(folder)[1]):
        time.sleep(0.02)
    return waits


@pytest.mark.parametrize("num_loader_workers", [0, 1])
def test_an_image_that_is_never_read_is_told_of_and_ends_the_attempt(tmp_path: Path, num_loader_workers: int) -> None:
    changes = {"data.num_loader_workers": num_loader_workers, "data.augment": "basic", "checkpoint.every_steps": 1}
    limited, clean = {**changes, "resources.loader_timeout_s": 3.0}, tiny_spec(tmp_path, changes, name="clean")
    ((error, waits),) = ranks.run(1, train_where_an_image_is_never_read, tiny_spec(tmp_path, limited))
    assert "no batch had come for 3 s" in error
    assert "raise resources.loader_timeout_s" in error
    assert waits[0].what.startswith("images, of which none have come")
    assert ranks.run(1, train, tiny_spec(tmp_path, changes)) == ranks.run(1, train, clean)


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
