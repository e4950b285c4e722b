"""Loader processes: for how many shared memory is enough, their start and end, what the death of one says."""

from __future__ import annotations

import contextlib
import functools
import logging
import multiprocessing
import multiprocessing.forkserver
import os
import re
import select
import shutil
import signal
import sys
import tempfile
import threading
import traceback
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from tltrain.errors import LostError
from tltrain.scratch import LOADER, folder_of_process, scratch_folder

SHARED_MEMORY = Path("/dev/shm")
BATCHES_OF_EACH = 3
"""Batches that each loader process has in shared memory: two that were asked for ahead, and one that is used."""
LOOK_S, LOOKS = 5.0, 8
"""How often it is looked whether loader processes are stopped, and so many times in a row until one is ended."""
_SOCKET = "pymp-12345678/listener-12345678"
"""The longest path that `multiprocessing` gives a socket in a folder for temporary files."""
_IMPORTED_ONCE = ["__main__", f"{__package__}.loader"]
"""What a fork server imports before it makes loader processes, which would each import torch anew."""
_CAUGHT = "Caught "
_FULL = "The system does so when memory is full: lower data.num_loader_workers"
_AGAIN = "The same command goes on where it was"
_ENDED = "stood still, stopped by a signal, and was ended", f"Look at what stopped it. {_AGAIN}"
_DEAD = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed by signal: ([\w ]+)|exited)")
_BUS_ERROR = "Bus error"
_ended_here: set[str] = set()
"""Loader processes that were stopped and that this process has ended."""

_log = logging.getLogger(__name__)


def within_shared_memory(num_workers: int, *, batch_bytes: int, processes: int = 1) -> int:
    """Return how many of `num_workers` loader processes the free shared memory is enough for.

    batch_bytes: of the images of one batch. processes: how many training processes of this machine have as many.
    """
    if not num_workers or not SHARED_MEMORY.is_dir():
        return num_workers
    free = shutil.disk_usage(SHARED_MEMORY).free // processes
    fitting = min(num_workers, free // (BATCHES_OF_EACH * batch_bytes))
    if fitting < num_workers:
        _log.warning(
            "%d loader processes instead of %d: shared memory (%s) has %.0f MiB left for each training process, and "
            "each loader process needs %.0f MiB. In a container, give it more (docker run --shm-size=2g)",
            fitting, num_workers, SHARED_MEMORY, free / 2**20, BATCHES_OF_EACH * batch_bytes / 2**20,
        )  # fmt: skip
    return fitting


def loaded(
    reader: Dataset[Any], requests: Iterable[Any], fork_safe: bool, *, seed: int, num_workers: int, pin_memory: bool
) -> Iterator[Any]:
    """Yield what `reader[request]` gives for each request, in their order, from `num_workers` loader processes or none.

    The processes end with the iterator and with this process, however that ends; those that are stopped are ended.
    Raises LostError where one is cut off.
    """
    random = torch.Generator().manual_seed(seed)
    settings = {"sampler": requests, "batch_size": None, "pin_memory": pin_memory, "generator": random}
    if not num_workers:
        yield from DataLoader(reader, **settings)
        return
    method = multiprocessing.get_start_method() if fork_safe else "forkserver"
    if method == "forkserver":
        _start_fork_server(os.getpid())
    with scratch_folder(LOADER, sockets=_SOCKET) as folder:
        begin = functools.partial(_begin, os.getpid(), folder)
        own = {"num_workers": num_workers, "multiprocessing_context": method, "worker_init_fn": begin}
        batches: Any = iter(DataLoader(reader, **settings, **own))
        pids = [process.pid for process in batches._workers]
        try:
            with cut_connections_named(pids), stopped_loaders_ended(pids):
                yield from batches
        finally:
            batches._shutdown_workers()  # now: an error would keep them, by its traceback, longer than their folder


@functools.cache
def _start_fork_server(_pid: int) -> None:
    """Start the process that makes loader processes, once for each process, which has one folder for its sockets."""
    multiprocessing.set_forkserver_preload(_IMPORTED_ONCE)  # has no effect on a server that runs already
    before = tempfile.tempdir
    tempfile.tempdir = folder_of_process(LOADER, sockets=_SOCKET)
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        tempfile.tempdir = before


def _begin(owner_pid: int, folder: str, _worker: int) -> None:
    """Have this loader process make its sockets in `folder`, and end it as soon as the training process is gone.

    torch watches the parent alone, and the parent of a process made by a fork server is the server, which in turn
    stays as long as it has children: a training process that is killed would leave its loaders behind for ever.
    Ctrl-C, which a terminal sends to all processes, is for that one to follow, which still needs its loaders. A loader
    process that cannot send a batch would be waited for without end: it ends instead.
    """
    tempfile.tempdir = folder
    Queue._on_queue_feeder_error = staticmethod(_end_unsent)  # pyright: ignore[reportAttributeAccessIssue]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not hasattr(os, "pidfd_open"):
        return
    try:
        owner = os.pidfd_open(owner_pid)
    except ProcessLookupError:
        os._exit(1)

    def watch() -> None:
        select.select([owner], [], [])
        os._exit(1)

    threading.Thread(target=watch, name="end-with-owner", daemon=True).start()


def _end_unsent(error: Exception, _batch: Any) -> None:
    traceback.print_exception(error)
    sys.stderr.flush()
    os._exit(1)


@contextlib.contextmanager
def dead_loaders_named() -> Iterator[None]:
    """Raise LostError, for a `with` block, where torch says that a loader process has died: it may be tried again."""
    try:
        yield
    except RuntimeError as error:
        found = _DEAD.search(str(error))
        if found is None:
            raise
        pids, by = found.groups()
        raise LostError(*_end_of(pids, by)) from error


def _end_of(pids: str, by: str | None) -> tuple[str, str]:
    """Say how loader processes ended that a signal of this name killed, and what to do."""
    if pids in _ended_here:
        how, action = _ENDED
    elif by == _BUS_ERROR:
        how = f"was killed ({by})"
        action = f"shared memory ({SHARED_MEMORY}) is full: give it more (docker run --shm-size=2g). {_AGAIN}"
    else:
        how, action = f"was killed ({by})" if by else "has died", f"{_FULL}. {_AGAIN}"
    return f"the loader process {pids} {how}", action


@contextlib.contextmanager
def cut_connections_named(pids: Collection[int]) -> Iterator[None]:
    """Raise LostError, for a `with` block around a loader, where one of its processes has died while it sent a batch.

    The connection breaks before the system tells torch of the death. What a loader process itself stumbled over comes
    with torch's own word of that, and is left as it is.
    """
    try:
        yield
    except (ConnectionError, EOFError, FileNotFoundError) as error:
        if str(error).startswith(_CAUGHT):
            raise
        ended = [str(pid) for pid in pids if str(pid) in _ended_here]
        if ended:
            raise LostError(*_end_of(ended[0], None)) from error
        raise LostError("the loader process has died while it sent a batch", f"{_FULL}. {_AGAIN}") from error


@contextlib.contextmanager
def stopped_loaders_ended(pids: Collection[int]) -> Iterator[None]:
    """During a `with` block, end those of the loader processes `pids` that are stopped for 40 s: they are waited for.

    Where this process is stopped as well, as by Ctrl-Z, nobody looks, and nothing is ended.
    """
    is_over = threading.Event()
    if pids and Path("/proc/self").exists():
        threading.Thread(target=_watch, args=(pids, is_over), name="stopped-loaders", daemon=True).start()
    try:
        yield
    finally:
        is_over.set()


def _watch(pids: Collection[int], is_over: threading.Event) -> None:
    looks = Counter[int]()
    while not is_over.wait(LOOK_S):
        for pid in pids:
            looks[pid] = looks[pid] + 1 if _is_stopped(pid) else 0
            if looks[pid] == LOOKS:
                _ended_here.add(str(pid))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def _is_stopped(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:  # it has ended
        return False
