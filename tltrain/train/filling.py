"""Before lanes train: the worker groups of a node compute the taps that all of them need, each a part of the images."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterator

import numpy as np

from tltrain.data.loader import position_batches
from tltrain.data.splits import Split
from tltrain.train.kept import KeptTaps
from tltrain.train.node_folder import NodeFolder
from tltrain.train.workbench import Workbench

logger = logging.getLogger(__name__)

PATIENCE_S = 3.0
"""How long one waits for taps that another process has claimed, when nothing arrives any more."""
_POLL_S = 0.02


def fill(bench: Workbench, depths: Collection[int], folder: NodeFolder, name: str) -> None:
    """Compute and keep the taps at `depths` of all images together with the other processes that share `folder`.

    name: the same in all of them, and new in each attempt. Returns when the taps are there, or when the others are no
    longer at it; what is missing then is computed in training, as if this had not been called. Does nothing where
    images differ between epochs.
    """
    wanted = {depth for depth in depths if depth > 0}
    if not wanted:
        return
    for split, kept in bench.constant_splits():
        began = time.perf_counter()
        count = _fill_split(bench, split, kept, wanted, folder, f"{name} {kept.split}")
        with bench.phases("waiting"):
            _wait(kept)
        logger.debug("%d of %d %s taps made here, %.2f s", count, len(split), kept.split, time.perf_counter() - began)


def _fill_split(bench: Workbench, split: Split, kept: KeptTaps, depths: set[int], folder: NodeFolder, name: str) -> int:
    """Compute what this process claims; return the number of images."""
    size, total = bench.taps.batch_size, len(split)

    def positions(number: int) -> np.ndarray:
        return np.arange(number * size, min(total, (number + 1) * size))

    def claimed() -> Iterator[np.ndarray]:
        for number in folder.claims(name, -(-total // size)):
            if not kept.has(depths, positions(number)):
                yield positions(number)

    count = _compute(bench, split, kept, depths, claimed())
    if count == 0:  # who comes too late to claim anything must see what the taps look like, to find them
        count = _compute(bench, split, kept, depths, iter([positions(0)]))
    kept.settle()
    return count


def _compute(bench: Workbench, split: Split, kept: KeptTaps, depths: set[int], positions: Iterator[np.ndarray]) -> int:
    count = 0
    bench.meter.begin("prefix", len(split))
    batches = position_batches(split, bench.preprocessing, positions, **bench.loader_settings(split))
    for batch in bench.phases.images(batches):
        with bench.phases("prefix"):
            bench.taps(batch.to(bench.group.device), depths, kept)
        count += len(batch.ids)
        bench.meter.at(count)
    return count


def _wait(kept: KeptTaps) -> None:
    """Wait until all kept taps are there, as long as more of them come."""
    before, since = -1, time.monotonic()
    while not kept.is_complete() and time.monotonic() - since < PATIENCE_S:
        filled = kept.num_filled()
        if filled != before:
            before, since = filled, time.monotonic()
        time.sleep(_POLL_S)
