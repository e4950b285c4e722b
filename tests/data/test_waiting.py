"""Waiting for images: who reads none is told of and given up, loader processes are ended; slow ones are waited for."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import time
from collections.abc import Generator
from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset

from tltrain import stopping
from tltrain.data import waiting
from tltrain.data.loader_processes import dead_loaders_named, loaded
from tltrain.data.waiting import Patience
from tltrain.errors import LostError

AT_ONCE, SLOWLY, NEVER, NEVER_AND_DEAF, NEVER_AND_SEIZED = range(5)
Told = list[tuple[str, float]]


class Images(Dataset[torch.Tensor]):
    """Reads an image at once, slowly or never, as from a network drive that has gone; notes who reads."""

    def __init__(self, readers: Path) -> None:
        self._readers = readers

    def __getitem__(self, how: int) -> torch.Tensor:
        (self._readers / str(os.getpid())).touch()
        if how == NEVER_AND_DEAF:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if how == NEVER_AND_SEIZED:  # what it has sent before cannot be fetched from it either
            os.kill(os.getpid(), signal.SIGSTOP)
        if how >= NEVER:
            time.sleep(3600)
        if how == SLOWLY:
            time.sleep(0.7)
        return torch.zeros(1)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look ten times a second, call a wait of 0.2 s long, and end nobody for being stopped."""
    monkeypatch.setattr(waiting, "LOOK_S", 0.1)
    monkeypatch.setattr(waiting, "TELL_LOOKS", 2)
    monkeypatch.setattr(waiting, "LOOKS", 10**6)


def read(
    readers: Path, requests: list[int], timeout_s: float, told: Told, *, num_workers: int = 2
) -> Generator[torch.Tensor, None, None]:
    """Yield the images that come."""
    patience = Patience(timeout_s, "a.key", lambda what, until: told.append((what, until)), stopping.give_up)
    images, how = Images(readers), {"seed": 0, "pin_memory": False, "patience": patience}
    with dead_loaders_named():
        yield from loaded(images, requests, True, num_workers=num_workers, **how)


def wait_until_none_is_left(readers: Path) -> None:
    """Wait until all who have read are gone."""
    while multiprocessing.active_children() or any(Path("/proc", path.name).exists() for path in readers.iterdir()):
        time.sleep(0.01)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("how", "state"),
    [(NEVER, "it waits"), (NEVER_AND_DEAF, "it waits"), (NEVER_AND_SEIZED, "it is stopped")],
    ids=["asleep", "deaf to SIGTERM", "seized"],
)
def test_loader_processes_that_send_nothing_are_given_up_named_and_ended(
    how: int, state: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told: Told = []
    with pytest.raises(LostError, match=r"the loader process .* no batch had come for 1 s: process") as raised:
        list(read(tmp_path, [AT_ONCE, how, AT_ONCE], 1.0, told))
    assert "or raise a.key. The same command goes on" in str(raised.value)
    assert f"({state})" in str(raised.value)
    wait_until_none_is_left(tmp_path)
    what, until = told[0]
    assert what.startswith("images, of which none have come for 0 s: process ")
    assert abs(until - time.time()) < 30
    assert "waiting up to 1 s more for images" in caplog.text


@pytest.mark.timeout(60)
def test_a_loader_process_that_the_system_does_not_end_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "LOOKS", 5)
    monkeypatch.setattr(waiting, "_end", lambda *_: None)
    with pytest.raises(LostError, match=r"process .* \(it waits\): no batch had come for 2 s"), stopping.handled():
        list(read(tmp_path, [AT_ONCE, NEVER, AT_ONCE], 1.0, []))
    wait_until_none_is_left(tmp_path)


@pytest.mark.timeout(60)
def test_a_thread_that_reads_images_itself_is_given_up(tmp_path: Path) -> None:
    told: Told = []
    with pytest.raises(LostError) as raised, stopping.handled():
        list(read(tmp_path, [AT_ONCE, NEVER, AT_ONCE], 1.0, told, num_workers=0))
    (problem,) = raised.value.problems
    itself = f"process {os.getpid()} (it waits), which reads images itself"
    assert problem.what == f"{itself}: no batch had come for 1 s"
    assert "or raise a.key. The same command goes on" in problem.action
    assert told[0][0] == f"images, of which none have come for 0 s: {itself}"


@pytest.mark.timeout(60)
def test_a_loader_process_that_waits_and_is_deaf_to_sigterm_ends_with_the_iterator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.2)  # how long torch waits for its end
    images = read(tmp_path, [AT_ONCE, NEVER_AND_DEAF, AT_ONCE], 3600.0, [])
    next(images)
    while len(list(tmp_path.iterdir())) < 2:
        time.sleep(0.01)
    images.close()
    wait_until_none_is_left(tmp_path)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_what_is_slow_is_waited_for_each_time_anew_and_the_end_of_a_wait_is_told(
    tmp_path: Path, num_workers: int
) -> None:
    told: Told = []
    requests = [SLOWLY] * (12 if num_workers else 6)
    images = list(read(tmp_path, requests, 3.0, told, num_workers=num_workers))
    assert len(images) == len(requests), "in all it takes longer than that"
    assert len(told) > 2
    assert all(bool(what) != bool(then) for (what, _), (then, _) in itertools.pairwise(told))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_who_is_not_asked_for_batches_is_not_given_up(tmp_path: Path, num_workers: int) -> None:
    told: Told = []
    images = read(tmp_path, [AT_ONCE] * 8, 1.0, told, num_workers=num_workers)
    next(images)
    time.sleep(2.0)
    assert len(list(images)) == 7
    assert told == []
