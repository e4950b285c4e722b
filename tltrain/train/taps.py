"""The frozen stages: run once per batch for all lanes, or not at all where their taps are kept."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from tltrain.data.loader import Batch
from tltrain.data.preprocessing import Preprocessing
from tltrain.data.transforms import normalise
from tltrain.models.placement import autocast, place
from tltrain.models.stages import StagedNetwork
from tltrain.spec.schema import Spec
from tltrain.train.distributed import Group
from tltrain.train.keeping import IMAGES, plan_pass
from tltrain.train.tap_arrays import TapArray

SAMPLED_EVERY = 32
"""One batch in so many is timed on a GPU, which stands still for it: nothing may be in its queue before or after."""


class Kept(Protocol):
    """The kept taps of one split."""

    def arrays(self) -> dict[int, TapArray]:
        """Return depth -> array of the cuts that are kept."""
        ...

    def learns(self, depth: int) -> bool:
        """Return whether the next tap at `depth` has to be timed."""
        ...

    def note(self, depth: int, tap: Tensor, ids: Tensor, seconds: float | None) -> None:
        """A tap [b, ...] was computed for the images `ids`, from the one below, in `seconds` if that was timed."""
        ...


@dataclass
class Cost:
    """What a number of images has cost, of which some batches were timed."""

    images: int = 0
    batches: int = 0
    first_s: float = 0.0
    """Of the first batch, which warms up; 0 if it was not timed."""
    first_images: int = 0
    timed_s: float = 0.0
    """Of later batches that were timed."""
    timed_images: int = 0

    @property
    def seconds(self) -> float:
        """What all images took, those of later batches at the rate of the ones that were timed."""
        rate = self.timed_s / self.timed_images if self.timed_images else 0.0
        return self.first_s + rate * (self.images - self.first_images)

    def is_sample(self) -> bool:
        """Return whether the next batch is one of the few that are timed in any case."""
        return self.batches % SAMPLED_EVERY == 1

    def add(self, images: int, seconds: float | None) -> None:
        """Add a batch; `seconds` is None where it was not timed."""
        if seconds is not None and self.batches == 0:
            self.first_s, self.first_images = seconds, images
        elif seconds is not None:
            self.timed_s += seconds
            self.timed_images += images
        self.images += images
        self.batches += 1


class NothingKept:
    """For images that differ in every epoch."""

    def arrays(self) -> dict[int, TapArray]:
        """Return nothing."""
        return {}

    def learns(self, depth: int) -> bool:
        """Return False."""
        return False

    def note(self, depth: int, tap: Tensor, ids: Tensor, seconds: float | None) -> None:
        """Do nothing."""


class Taps:
    """The values at every cut that some lane needs, each computed once per batch from the one below it.

    The frozen stages always see batches of `batch_size` images: smaller ones are padded, before the first stage and
    after nothing else. Kernels may round otherwise at another size or memory layout, and a tap must depend neither on
    the images it was computed with nor on the cuts that others need.
    """

    def __init__(
        self, network: StagedNetwork, preprocessing: Preprocessing, spec: Spec, group: Group, batch_size: int
    ) -> None:
        self._network, self._preprocessing, self._spec, self._group = network, preprocessing, spec, group
        self.batch_size = batch_size
        self._has_queue = group.device.type == "cuda"
        self._segments: dict[tuple[int, int], nn.Module] = {}
        self.computed: dict[tuple[int, int], Cost] = {}
        """(cut from which, cut up to which) -> what computing has cost so far."""

    @torch.no_grad()
    def __call__(self, batch: Batch, depths: Iterable[int], kept: Kept) -> dict[int, Tensor]:
        """Return depth -> tap [b, ...] for a batch on the device; the tap at depth 0 is the normalised images."""
        wanted, count = set(depths), len(batch.ids)
        arrays = {depth: array for depth, array in kept.arrays().items() if array.has(batch.ids)}
        ids = self._padded(batch.ids)
        taps: dict[int, Tensor] = {}
        for step in plan_pass(wanted, arrays.keys()):
            if step.is_read:
                taps[step.depth] = arrays[step.depth].read(ids).to(self._group.device, non_blocking=True)
            else:
                taps[step.depth] = self._computed(batch, taps, step.source, step.depth, kept)
        return {depth: taps[depth][:count] for depth in wanted}

    def _padded(self, values: Tensor) -> Tensor:
        """Return `values` [b, ...] with the first repeated up to the batch size."""
        missing = self.batch_size - len(values)
        return values if missing <= 0 else torch.cat([values, values[:1].expand(missing, *values.shape[1:])])

    def _computed(self, batch: Batch, taps: dict[int, Tensor], source: int, depth: int, kept: Kept) -> Tensor:
        cost = self.computed.setdefault((source, depth), Cost())
        is_timed = not self._has_queue or kept.learns(depth) or cost.is_sample()
        began = self._now() if is_timed else 0.0
        below = self._images(batch) if source == IMAGES else taps[source]
        tap = below if depth == 0 else self._run(below, max(source, 0), depth)
        seconds = self._now() - began if is_timed else None
        cost.add(len(batch.ids), seconds)
        kept.note(depth, tap[: len(batch.ids)], batch.ids, seconds)
        return tap

    def _now(self) -> float:
        if self._has_queue:
            torch.cuda.synchronize(self._group.device)
        return time.perf_counter()

    def _images(self, batch: Batch) -> Tensor:
        images = normalise(self._padded(batch.images), self._preprocessing)
        return images.contiguous(memory_format=torch.channels_last) if self._spec.train.channels_last else images

    def _run(self, value: Tensor, start: int, stop: int) -> Tensor:
        with autocast(self._spec.train, self._group.device):
            return self._segment(start, stop)(value)

    def _segment(self, start: int, stop: int) -> nn.Module:
        if (start, stop) not in self._segments:
            segment = self._network.prefix(start, stop)
            self._segments[start, stop] = place(segment, self._spec.train, self._group.device)
        return self._segments[start, stop]


def can_do_without_images(depths: Collection[int], kept: Kept) -> bool:
    """Whether every tap at `depths` can be read for all images of the split."""
    arrays = kept.arrays()
    return all(depth in arrays and arrays[depth].is_complete() for depth in depths)
