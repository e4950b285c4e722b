"""The frozen stages: run once per batch for all lanes, or not at all where their taps are kept."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from typing import Protocol

import torch
from torch import Tensor, nn

from tltrain.data.loader import Batch
from tltrain.data.preprocessing import Preprocessing
from tltrain.data.transforms import normalise
from tltrain.models.stages import StagedNetwork
from tltrain.spec.schema import Spec
from tltrain.train.distributed import Group
from tltrain.train.keeping import IMAGES, plan_pass
from tltrain.train.lane import autocast, place
from tltrain.train.tap_arrays import TapArray


class Kept(Protocol):
    """The kept taps of one split."""

    def arrays(self) -> dict[int, TapArray]:
        """Return depth -> array of the cuts that are kept."""
        ...

    def note(self, depth: int, tap: Tensor, ids: Tensor, seconds: float) -> None:
        """A tap [b, ...] was computed for the images `ids`, from the one below, in `seconds`."""
        ...


class NothingKept:
    """For images that differ in every epoch."""

    def arrays(self) -> dict[int, TapArray]:
        """Return nothing."""
        return {}

    def note(self, depth: int, tap: Tensor, ids: Tensor, seconds: float) -> None:
        """Do nothing."""


class Taps:
    """The values at every cut that some lane needs, each computed once per batch from the one below it.

    The frozen stages always see batches of `batch_size` images, padded where there are fewer: kernels may round
    otherwise at another size, and a tap must not depend on which images it was computed with.
    """

    def __init__(
        self, network: StagedNetwork, preprocessing: Preprocessing, spec: Spec, group: Group, batch_size: int
    ) -> None:
        self._network, self._preprocessing, self._spec, self._group = network, preprocessing, spec, group
        self._batch_size = batch_size
        self._segments: dict[tuple[int, int], nn.Module] = {}
        self.seconds = 0.0

    @torch.no_grad()
    def __call__(self, batch: Batch, depths: Iterable[int], kept: Kept) -> dict[int, Tensor]:
        """Return depth -> tap [b, ...] for a batch on the device; the tap at depth 0 is the normalised images."""
        began = time.perf_counter()
        wanted = set(depths)
        arrays = {depth: array for depth, array in kept.arrays().items() if array.has(batch.ids)}
        taps: dict[int, Tensor] = {}
        for step in plan_pass(wanted, arrays.keys()):
            if step.is_read:
                taps[step.depth] = arrays[step.depth].read(batch.ids).to(self._group.device, non_blocking=True)
            else:
                taps[step.depth] = self._computed(batch, taps, step.source, step.depth, kept)
        self.seconds += time.perf_counter() - began
        return {depth: taps[depth] for depth in wanted}

    def _computed(self, batch: Batch, taps: dict[int, Tensor], source: int, depth: int, kept: Kept) -> Tensor:
        began = time.perf_counter()
        below = self._images(batch) if source in (IMAGES, 0) and 0 not in taps else taps[max(source, 0)]
        tap = below if depth == 0 else self._run(below, max(source, 0), depth)
        if self._group.device.type == "cuda":
            torch.cuda.synchronize(self._group.device)
        kept.note(depth, tap, batch.ids, time.perf_counter() - began)
        return tap

    def _images(self, batch: Batch) -> Tensor:
        images = normalise(batch.images, self._preprocessing)
        return images.contiguous(memory_format=torch.channels_last) if self._spec.train.channels_last else images

    def _run(self, value: Tensor, start: int, stop: int) -> Tensor:
        count = len(value)
        missing = self._batch_size - count
        if missing > 0:
            value = torch.cat([value, value[:1].expand(missing, *value.shape[1:])])
            if self._spec.train.channels_last and value.dim() == 4:
                value = value.contiguous(memory_format=torch.channels_last)
        with autocast(self._spec, self._group.device):
            return self._segment(start, stop)(value)[:count]

    def _segment(self, start: int, stop: int) -> nn.Module:
        if (start, stop) not in self._segments:
            segment = self._network.prefix(start, stop)
            self._segments[start, stop] = place(segment, self._spec, self._group.device)
        return self._segments[start, stop]


def can_do_without_images(depths: Collection[int], kept: Kept) -> bool:
    """Whether every tap at `depths` can be read for all images of the split."""
    arrays = kept.arrays()
    return all(depth in arrays and arrays[depth].is_complete() for depth in depths)
