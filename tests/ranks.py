"""Runs a function in several processes that train together, as torchrun or Ray Train would start them."""

from __future__ import annotations

import atexit
import functools
import itertools
import multiprocessing
import multiprocessing.context
import multiprocessing.forkserver
import os
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tltrain.train.distributed import Group

LIMIT_S = 120
MARKER = "TLTRAIN_TEST_RANKS"
_NUMBERS = itertools.count()


@functools.cache
def _context() -> multiprocessing.context.ForkServerContext:
    """A server that has imported once what tests of training import, and forks clean processes from there."""
    os.environ[MARKER] = str(os.getpid())  # the server hands it on
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tltrain.train.session", "ranks", "tiny", "pytest"])
    with pytest.MonkeyPatch.context() as patch:
        # Python hands its own path to the processes that the server forks, and not to the server.
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        multiprocessing.forkserver.ensure_running()
    return context


def _enter(rank: int, world_size: int, store: str, queue: Any, function: Callable[..., Any], arguments: Any) -> None:
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # for loader processes, as usual on Linux
    try:
        if world_size > 1:
            timeout = timedelta(seconds=LIMIT_S)
            dist.init_process_group(
                "gloo", init_method=f"file://{store}", rank=rank, world_size=world_size, timeout=timeout
            )
        group = Group(rank, world_size, rank, world_size, torch.device("cpu"))
        queue.put((rank, None, function(group, *arguments)))
    except BaseException as error:  # handed to the test, which raises it
        queue.put((rank, f"{type(error).__name__}: {error}\n{traceback.format_exc()}", None))
        raise SystemExit(1) from error


@functools.cache
def _stores() -> str:
    """The folder in which the ranks of this process meet; it goes with the process."""
    folder = tempfile.mkdtemp(prefix="tltrain-test-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def start(world_size: int, function: Callable[..., Any], *arguments: Any) -> tuple[list[Any], Any]:
    """Start `function(group, *arguments)` on `world_size` CPU ranks; return the processes and their queue."""
    context = _context()
    queue = context.Queue()
    store = os.path.join(_stores(), f"store-{next(_NUMBERS)}")
    processes = [
        context.Process(target=_enter, args=(rank, world_size, store, queue, function, arguments), daemon=False)
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    return processes, queue


def run(world_size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Run `function(group, *arguments)` on `world_size` CPU ranks and return their results in order of rank."""
    processes, queue = start(world_size, function, *arguments)
    try:
        results: dict[int, Any] = {}
        for _ in processes:
            rank, error, value = queue.get(timeout=LIMIT_S)
            assert error is None, f"rank {rank}: {error}"
            results[rank] = value
        return [results[rank] for rank in range(world_size)]
    finally:
        stop(processes)


def run_until_death(world_size: int, function: Callable[..., Any], *arguments: Any) -> list[int | None]:
    """Run until some rank dies, kill the others as a launcher would, and return the exit codes."""
    processes, _ = start(world_size, function, *arguments)
    deadline = time.monotonic() + LIMIT_S
    while all(process.exitcode is None for process in processes) and time.monotonic() < deadline:
        time.sleep(0.02)
    codes = [process.exitcode for process in processes]
    stop(processes)
    return codes


def stop(processes: list[Any]) -> None:
    """End what still runs."""
    for process in processes:
        process.join(timeout=2)
        if process.is_alive():
            process.kill()
            process.join()


def alive() -> list[int]:
    """The processes that were started here and theirs, such as a loader's, but for the server that forks them."""
    return [int(entry.name) for entry in Path("/proc").glob("[0-9]*") if _is_ours(entry)]


def _is_ours(process: Path) -> bool:
    marker = f"{MARKER}={os.getpid()}".encode()
    try:
        is_marked = marker in (process / "environ").read_bytes().split(b"\0")
        is_forked = b"multiprocessing.forkserver" in (process / "cmdline").read_bytes()
        state, parent = (process / "stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:  # it has ended meanwhile, or belongs to somebody else
        return False
    return is_marked and is_forked and state != "Z" and int(parent) != os.getpid()
