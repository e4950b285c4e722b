"""The memory that loader processes share with training: for how many it is enough, and what the death of one says."""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from tltrain.errors import LostError

SHARED_MEMORY = Path("/dev/shm")
BATCHES_OF_EACH = 3
"""Batches that each loader process has in shared memory: two that were asked for ahead, and one that is used."""
_CAUGHT = "Caught "
_FULL = "The system does so when memory is full: lower data.num_loader_workers"
_AGAIN = "The same command goes on from the newest checkpoint"
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
        how = f"was killed ({by})" if by else "has died"
        if by == _BUS_ERROR:
            why = f"shared memory ({SHARED_MEMORY}) is full: give it more (docker run --shm-size=2g)"
        else:
            why = _FULL
        action = f"{why}. {_AGAIN}"
        raise LostError(f"the loader process {pids} {how}", action) from error


@contextlib.contextmanager
def cut_connections_named() -> Iterator[None]:
    """Raise LostError, for a `with` block around a loader with processes, where one has died while it sent a batch.

    The connection breaks before the system tells torch of the death. What a loader process itself stumbled over comes
    with torch's own word of that, and is left as it is.
    """
    try:
        yield
    except (ConnectionError, EOFError, FileNotFoundError) as error:
        if str(error).startswith(_CAUGHT):
            raise
        raise LostError("the loader process has died while it sent a batch", f"{_FULL}. {_AGAIN}") from error
