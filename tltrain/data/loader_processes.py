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
from collections.abc import Collection, Iterable, Iterator
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from tltrain.data.waiting import Patience, ended_here, watched
from tltrain.errors import LostError
from tltrain.scratch import LOADER, folder_of_process, scratch_folder

SHARED_MEMORY = Path("/dev/shm")
BATCHES_OF_EACH = 3
"""Batches that each loader process has in shared memory: two that were asked for ahead, and one that is used."""
_SOCKET = "pymp-12345678/listener-12345678"
"""The longest path that `multiprocessing` gives a socket in a folder for temporary files."""
_IMPORTED_ONCE = ["__main__", f"{__package__}.loader"]
"""What a fork server imports before it makes loader processes, which would each import torch anew."""
_CAUGHT = "Caught "
_FULL = "The system does so when memory is full: lower data.num_loader_workers"
_AGAIN = "The same command goes on where it was"
_DEAD = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed by signal: ([\w ]+)|exited)")
_BUS_ERROR = "Bus error"

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
    reader: Dataset[Any],
    requests: Iterable[Any],
    fork_safe: bool,
    *,
    seed: int,
    num_workers: int,
    pin_memory: bool,
    patience: Patience | None = None,
) -> Iterator[Any]:
    """Yield what `reader[request]` gives for each request, in their order, from `num_workers` loader processes or none.

    The processes end with the iterator and with this process, however that ends; those that are stopped are ended.
    Raises LostError where one is cut off, or where nothing has come for longer than `patience` lasts. Without processes
    and without `patience`, it is waited for without end.
    """
    random = torch.Generator().manual_seed(seed)
    settings = {"sampler": requests, "batch_size": None, "pin_memory": pin_memory, "generator": random}
    if not num_workers:
        read_here = iter(DataLoader(reader, **settings))
        yield from read_here if patience is None else watched(read_here, (), patience)
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
            with cut_connections_named(pids):
                yield from watched(batches, pids, patience or Patience())
        finally:
            batches._shutdown_workers()  # now: an error would keep them, by its traceback, longer than their folder
            for process in batches._workers:
                process.kill()  # SIGTERM, which it has had, does not end one that waits for a network drive


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
    ended = [ended_here[int(pid)] for pid in pids.split(", ") if int(pid) in ended_here]
    if ended:
        how, action = ended[0]
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
        ended = ", ".join(str(pid) for pid in pids if pid in ended_here)
        if ended:
            raise LostError(*_end_of(ended, None)) from error
        raise LostError("the loader process has died while it sent a batch", f"{_FULL}. {_AGAIN}") from error
