"""The kept taps of one split: measured in the first batches, decided once, then filled and read."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
    bytes_per_image: int
    seconds: list[float]
    images: int = 0


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
        self._split, self._num_images, self._passes = split, num_images, passes
        self._store, self._tiers, self._make_key, self._stage_names = store, tiers, make_key, stage_names
        self._arrays: dict[int, TapArray] = {}
        self._decided: set[int] = set()
        self._probes: dict[int, _Probe] = {}

    def arrays(self) -> dict[int, TapArray]:
        """Return depth -> array of the cuts that are kept."""
        return self._arrays

    def note(self, depth: int, tap: Tensor, ids: Tensor, seconds: float) -> None:
        """Keep `tap` [b, ...] of `ids`, computed in `seconds`, if its cut is kept; otherwise learn from it."""
        if depth == 0:
            return
        if depth in self._arrays:
            self._arrays[depth].write(ids, tap)
            if self._arrays[depth].is_complete():
                self._arrays[depth].commit()
        elif depth not in self._decided:
            self._learn(depth, tap, len(ids), seconds)

    def _learn(self, depth: int, tap: Tensor, count: int, seconds: float) -> None:
        probe = self._probes.get(depth)
        if probe is None:
            layout = Layout.of(tap)
            probe = self._probes[depth] = _Probe(layout, layout.row_bytes, [])
        probe.seconds.append(seconds / count)
        if len(probe.seconds) >= min(PROBED_BATCHES, -(-self._num_images // count)):
            self._decide()

    def _decide(self) -> None:
        depths = sorted(set(self._probes) - self._decided)
        cuts = tuple(self._cut(depth) for depth in depths)
        demand = Demand(self._split, self._num_images, cuts, (Passes(frozenset(depths), self._passes),))
        decision = decide([demand], self._tiers())
        for line in describe(decision):
            logger.info("%s", line)
        self._decided.update(depths)
        for depth in decision.kept(self._split):
            layout = self._probes[depth].layout
            array = self._store.open(self._make_key(self._split, depth, layout), self._num_images, layout)
            if array is not None:
                self._arrays[depth] = array

    def _cut(self, depth: int) -> Cut:
        probe = self._probes[depth]
        measured = probe.seconds[1:] or probe.seconds
        return Cut(self._stage_names[depth - 1], depth, probe.bytes_per_image, sum(measured) / len(measured))

    def close(self) -> None:
        """End the use of all arrays."""
        for array in self._arrays.values():
            array.wait()
            array.close()
        self._arrays = {}
