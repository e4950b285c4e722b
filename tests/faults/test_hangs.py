"""Ranks that stand still or never arrive: noticed within a minute, and named."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from datetime import timedelta
from pathlib import Path
from unittest import mock

import pytest
import ranks
import torch.distributed as dist
from programs import Program, ended

from tltrain.errors import LostError
from tltrain.train import presence
from tltrain.train.distributed import Group
from tltrain.train.presence import present

NOTICED_WITHIN_S = 60.0


def wait_for_one_that_never_comes(group: Group, late: int, timeout_s: float) -> str:
    """Pass two barriers, then all ranks but `late` wait in a third; returns what they learn."""
    presence.BEAT_S = 0.2
    dist.distributed_c10d._set_pg_timeout(timedelta(seconds=timeout_s), dist.group.WORLD)
    try:
        with present(group):
            group.barrier()
            group.barrier()
            if group.rank == late:
                time.sleep(timeout_s + 1.5)
                return ""
            group.barrier()
    except LostError as error:
        return str(error)
    return "all arrived"


@pytest.mark.parametrize(("world_size", "late"), [(2, 1), pytest.param(3, 0, marks=pytest.mark.slow)])
def test_a_collective_that_never_completes_ends_with_the_rank_that_did_not_arrive(world_size: int, late: int) -> None:
    told = ranks.run(world_size, wait_for_one_that_never_comes, late, 2.0)
    for rank, text in enumerate(told):
        if rank != late:
            assert re.search(rf"ran out of time: rank {late} \(process \d+ on \S+, last heard of \d s ago\)", text), (
                told
            )
            assert "did not arrive" in text


def tell_each_other(group: Group) -> bool:
    """Live for a while with signs, all ranks busy with something else at times; returns whether all went well."""
    presence.BEAT_S = 0.05
    silent: list[LostError] = []
    with present(group, on_silence=silent.append):
        for _ in range(5):
            time.sleep(0.1)
            group.barrier()
    return not silent


def test_ranks_that_live_are_left_alone() -> None:
    assert ranks.run(2, tell_each_other) == [True, True]


def ask_a_store_that_is_cut_off(group: Group) -> str:
    """Live beside a store that takes questions and never answers; returns what is said of it."""
    presence.BEAT_S = 0.05
    said: list[LostError] = []
    never = threading.Event()
    cut_off = mock.patch.object(presence._Presence, "_look", side_effect=never.wait)
    with cut_off, present(group, on_silence=said.append):
        deadline = time.monotonic() + 30
        while not said and time.monotonic() < deadline:
            time.sleep(0.05)
    return str(said[0]) if said else ""


def test_a_store_that_never_answers_is_noticed() -> None:
    for text in ranks.run(2, ask_a_store_that_is_cut_off):
        assert "the ranks' store has not answered for" in text


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_rank_of_torchrun_that_stands_still_is_noticed_and_named(tmp_path: Path) -> None:
    program = Program(tmp_path / "struck", {"resources.num_workers": 2, "checkpoint.every_steps": 2})
    process = program.start(launcher=("--standalone", "--nproc-per-node", "2"))
    program.wait_for_step(7)
    began, pid = time.monotonic(), program.pid(1)
    os.kill(pid, signal.SIGSTOP)
    while program.run.state()["state"] == "running" and time.monotonic() < began + 2 * NOTICED_WITHIN_S:
        time.sleep(0.2)
    assert time.monotonic() - began < NOTICED_WITHIN_S
    state = program.run.state()
    assert (state["state"], state["cause"]) == ("failed", "node lost")
    assert f"rank 1 (process {pid} on " in state["error"][0]
    returned, shown = ended(process)
    assert returned != 0
    assert state["error"][0] in shown
    assert ended(program.start(launcher=("--standalone", "--nproc-per-node", "2")))[0] == 0


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.filterwarnings("default")
def test_a_ray_worker_that_stands_still_is_noticed_named_and_replaced(tmp_path: Path) -> None:
    program = Program(tmp_path / "struck", {"resources.num_workers": 2, "checkpoint.every_steps": 2})
    process = program.start()
    program.wait_for_step(7)
    began = time.monotonic()
    os.kill(program.pid(1), signal.SIGSTOP)
    while program.run.state().get("attempts") == 1 and time.monotonic() < began + 2 * NOTICED_WITHIN_S:
        time.sleep(0.2)
    assert time.monotonic() - began < NOTICED_WITHIN_S
    returned, shown = ended(process)
    assert returned == 0, shown
    assert re.search(r"a worker or a node was lost; restart 1 of 3 .*\(rank 1: ", shown), shown
    alone = Program(tmp_path / "alone", {"resources.num_workers": 2}, pause_s=0.0)
    assert ended(alone.start())[0] == 0
    assert program.digest() == alone.digest()
