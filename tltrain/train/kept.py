"""The kept taps of one split: measured in the first batches, decided once, then filled and read."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from tltrain.train.activations import ActivationStore, TapKey
from tltrain.train.keeping import Cut, Demand, Passes, Tier, decide, describe
from tltrain.train.tap_arrays import TapArray
from tltrain.train.tap_files import Layout

logger = logging.getLogger(__name__)

PROBED_BATCHES = 3
"""Batches whose times decide; the first of them, which warms up, is left out where there are more."""


@dataclass
class _Probe:
    """What the first batches told about one cut."""

    layout: Layout
    seconds: list[float] = field(default_factory=list)
    taps: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Positions and taps of these batches, to be kept too."""


class KeptTaps:
    """Taps of one split that do not change between epochs, kept where that pays.

    passes: how often the split will still be gone through. make_key: depth, layout -> key of the store.
    """

    def __init__(
        self,
        split: str,
        num_images: int,
        passes: int,
        store: ActivationStore,
        tiers: Callable[[], tuple[Tier, ...]],
        make_key: Callable[[str, int, Layout], TapKey],
        stage_names: Sequence[str],
    ) -> None:
        self.split, self._num_images, self._passes = split, num_images, passes
        self._store, self._tiers, self._make_key, self._stage_names = store, tiers, make_key, stage_names
        self._arrays: dict[int, TapArray] = {}
        self._decided: set[int] = set()
        self._probes: dict[int, _Probe] = {}

    def arrays(self) -> dict[int, TapArray]:
        """Return depth -> array of the cuts that are kept."""
        return self._arrays

    def learns(self, depth: int) -> bool:
        """Return whether it is still open if taps at `depth` are kept; for that they are timed."""
        return depth > 0 and depth not in self._arrays and depth not in self._decided

    def note(self, depth: int, tap: Tensor, ids: Tensor, seconds: float | None) -> None:
        """Keep `tap` [b, ...] of `ids`, computed in `seconds`, if its cut is kept; otherwise learn from it."""
        if depth in self._arrays:
            self._write(self._arrays[depth], ids, tap)
        elif self.learns(depth):
            assert seconds is not None, "what is learned from is timed"
            self._learn(depth, tap, ids, seconds)

    def _learn(self, depth: int, tap: Tensor, ids: Tensor, seconds: float) -> None:
        probe = self._probes.setdefault(depth, _Probe(Layout.of(tap)))
        probe.seconds.append(seconds / len(ids))
        probe.taps.append((ids, tap.clone()))
        if len(probe.seconds) >= min(PROBED_BATCHES, -(-self._num_images // len(ids))):
            self._decide()

    def _decide(self) -> None:
        depths = sorted(set(self._probes) - self._decided)
        cuts = tuple(self._cut(depth) for depth in depths)
        demand = Demand(self.split, self._num_images, cuts, (Passes(frozenset(depths), self._passes),))
        decision = decide([demand], self._tiers())
        for line in describe(decision):
            logger.info("%s", line)
        self._decided.update(depths)
        for depth in depths:
            probe = self._probes.pop(depth)
            if depth in decision.kept(self.split):
                self._open(depth, probe)

    def _open(self, depth: int, probe: _Probe) -> None:
        key = self._make_key(self.split, depth, probe.layout)
        array = self._store.open(key, self._num_images, probe.layout)
        if array is not None:
            self._arrays[depth] = array
            for ids, tap in probe.taps:
                self._write(array, ids, tap)

    def _write(self, array: TapArray, ids: Tensor, tap: Tensor) -> None:
        array.write(ids, tap)
        if array.is_complete():
            array.commit()

    def _cut(self, depth: int) -> Cut:
        probe = self._probes[depth]
        measured = probe.seconds[1:] or probe.seconds
        return Cut(self._stage_names[depth - 1], depth, probe.layout.row_bytes, sum(measured) / len(measured))

    def settle(self) -> None:
        """Decide on the cuts that were seen, however few batches have told about them."""
        if self._probes:
            self._decide()

    def has(self, depths: Collection[int], positions: np.ndarray) -> bool:
        """Whether the taps at `depths` of the images at `positions`, int64 [b], can be read."""
        ids = torch.from_numpy(positions)
        return all(depth in self._arrays and self._arrays[depth].has(ids) for depth in depths)

    def is_complete(self) -> bool:
        """Whether all taps at the cuts that are kept can be read."""
        return all(array.is_complete() for array in self._arrays.values())

    def num_filled(self) -> int:
        """Return how many taps are kept by now, whoever computed them."""
        return sum(array.num_filled for array in self._arrays.values())

    def close(self) -> None:
        """End the use of all arrays."""
        for array in self._arrays.values():
            array.wait()
            array.close()
        self._arrays = {}
