"""`train.batch_size: auto`: the largest batch that fits a worker's memory, found by trying.

On a GPU ever larger parts are trained until one does not fit. A computer's own memory must not run out, which would end
other programs too: there a few small parts are trained, and what larger ones would take is worked out from their peaks.
"""

from __future__ import annotations

import itertools
import math
import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from tltrain.data.loader import Batch
from tltrain.data.transforms import resolve_preprocessing
from tltrain.errors import OutOfMemoryError, Problem
from tltrain.models.zoo import Network
from tltrain.spec.load import replace
from tltrain.spec.schema import ElasticWorkers, FreezeDepth, Spec
from tltrain.train.distributed import Group, choose_device
from tltrain.train.explain import check
from tltrain.train.lane import Clock, Lane
from tltrain.train.memory import SPARED, spare_bytes
from tltrain.train.taps import NothingKept, Taps

STEPS_OF_EPOCH = 10
"""An epoch keeps at least so many steps, however much memory there is."""
LARGEST = 8192
"""The linear rule for rates has been shown to hold up to here (https://arxiv.org/abs/1706.02677)."""
FEWEST = 2
"""A part of fewer images has no batch statistics."""
MEASURED = (4, 8, 16, 32)
"""Parts that are trained where larger ones are worked out, in images."""
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")

Limit = Literal["memory", "images", "rule"]
Peak = Callable[[int], int | None]
"""Images -> bytes that training such a part takes at its peak, None where they do not fit."""


@dataclass(frozen=True)
class Tried:
    """A part of a batch that was trained: its images, and the bytes it took; None where it did not fit."""

    images: int
    peak_bytes: int | None


@dataclass(frozen=True)
class FoundBatchSize:
    """A batch size and why it is no larger."""

    batch_size: int
    """Images per optimiser step: images_per_pass x num_workers x accumulation_steps."""
    images_per_pass: int
    num_workers: int
    accumulation_steps: int
    limited_by: Limit
    """`memory`; `images`: an epoch keeps STEPS_OF_EPOCH steps; `rule`: no batch above LARGEST."""
    room_bytes: int
    tried: tuple[Tried, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)


def find_batch_size(spec: Spec, device: torch.device, *, num_workers: int, processes: int) -> FoundBatchSize:
    """Return the largest power of two of images that each of `num_workers` workers can train at a time on `device`.

    Trains random images in a lane with the fewest frozen stages that the spec or its sweep names, from random weights;
    nothing of it is kept. processes: workers that draw on the same memory. Raises SpecError or DataError with what is
    wrong with the spec, OutOfMemoryError where no two images fit.
    """
    splits, network = check(spec)
    parts = num_workers * spec.train.accumulation_steps
    room = int((1 - SPARED) * spare_bytes(device)) // (1 if device.type == "cuda" else processes)
    by_images = len(splits.train) // STEPS_OF_EPOCH
    most = max(FEWEST, min(by_images, LARGEST) // parts)
    peak = _Trainer(spec, network, device).peak
    tried = list(_try_all(peak, room, most) if device.type == "cuda" else _try_small(peak, room, most))
    images = largest(tried, room, most)
    if images == 0:
        what = f"no two images can be trained at a time in {room / 1e9:.1f} GB"
        raise OutOfMemoryError(Problem(what, "Freeze more stages, or take smaller images", key="train.batch_size"))
    by_memory = 2 * images <= most
    limit: Limit = "memory" if by_memory else "rule" if by_images > LARGEST else "images"
    return FoundBatchSize(
        batch_size=images * parts,
        images_per_pass=images,
        num_workers=num_workers,
        accumulation_steps=spec.train.accumulation_steps,
        limited_by=limit,
        room_bytes=room,
        tried=tuple(tried),
    )


def find_here(spec: Spec, num_workers: int | None = None) -> FoundBatchSize:
    """Run `find_batch_size` in this process, on the GPU where there is one that the spec wants.

    num_workers: as many as share a batch; by default those that the spec asks for, at the least.
    """
    wants_gpu = spec.resources.gpus_per_worker != 0 and torch.cuda.is_available()
    workers = num_workers or fewest_workers(spec)
    return find_batch_size(spec, choose_device(0, wants_gpu), num_workers=workers, processes=workers)


def fewest_workers(spec: Spec) -> int:
    """Return how many workers share a batch at the least."""
    workers = spec.resources.num_workers
    return workers.min if isinstance(workers, ElasticWorkers) else workers


def largest(tried: Sequence[Tried], room: int, most: int) -> int:
    """Return the largest power of two up to `most` that fits into `room` bytes, 0 where none does.

    What was not tried is taken to grow by the steepest slope between two that were.
    """
    fitting = [each for each in tried if each.peak_bytes is not None and each.peak_bytes <= room]
    if not fitting:
        return 0
    best = fitting[-1]
    if len(fitting) < len(tried) or len(fitting) < 2:
        return best.images
    pairs = itertools.pairwise(fitting)
    slope = max(((b.peak_bytes or 0) - (a.peak_bytes or 0)) / (b.images - a.images) for a, b in pairs)
    images = best.images
    while 2 * images <= most and (best.peak_bytes or 0) + slope * (2 * images - best.images) <= room:
        images *= 2
    return images


def _try_all(peak: Peak, room: int, most: int) -> Iterator[Tried]:
    """Try ever larger parts until one does not fit or the largest allowed did."""
    images = FEWEST
    while images <= most:
        tried = Tried(images, peak(images))
        yield tried
        if tried.peak_bytes is None or tried.peak_bytes > room:
            return
        images *= 2


def _try_small(peak: Peak, room: int, most: int) -> Iterator[Tried]:
    """Try a few small parts."""
    sizes = [size for size in MEASURED if size <= most] or [FEWEST]
    for images in sizes:
        tried = Tried(images, peak(images))
        yield tried
        if tried.peak_bytes is None or 2 * tried.peak_bytes > room:
            return


class _Trainer:
    """Trains parts of batches on random images, and sees how much memory that takes."""

    def __init__(self, spec: Spec, network: Network, device: torch.device) -> None:
        self._network, self._device = network, device
        self._depth = _fewest_frozen(spec, network)
        self._spec = replace(
            spec,
            {
                "sweep": None,
                "train.batch_size": FEWEST,
                "train.compile": False,
                "train.unfreeze": None,
                "model.freeze_depth": self._depth,
            },
        )
        self._group = Group(0, 1, 0, 1, device)
        self._preprocessing = resolve_preprocessing(spec.data, network.preprocessing)
        self._lane = Lane("batch-size", self._spec, network.staged, self._group, Clock(1, 1))
        self._train(FEWEST)  # what is allocated once, the optimiser's state too, belongs to no size

    def peak(self, images: int) -> int | None:
        """Train a part of so many images; return the bytes of its peak, None where memory ran out."""
        if self._device.type != "cuda":
            return _peak_of_process(lambda: self._train(images))
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)
        before = torch.cuda.memory_allocated(self._device)
        try:
            self._train(images)
            torch.cuda.synchronize(self._device)
        except torch.OutOfMemoryError:
            self._lane.optimizer.zero_grad(set_to_none=True)
            return None
        return torch.cuda.max_memory_reserved(self._device) - before

    def _train(self, images: int) -> None:
        taps = Taps(self._network.staged, self._preprocessing, self._spec, self._group, images)
        batch = _random_batch(images, self._preprocessing.crop_size).to(self._device)
        tap = taps(batch, {self._depth}, NothingKept())[self._depth]
        self._lane.accumulate(tap, batch, part=0, is_last=True)
        self._lane.update(0)


def _fewest_frozen(spec: Spec, network: Network) -> int:
    """Return the smallest depth that the spec, its phases or its sweep name."""
    depths: list[FreezeDepth] = [spec.model.freeze_depth, *(phase.freeze_depth for phase in spec.train.unfreeze_phases)]
    domain = spec.sweep.space.get("model.freeze_depth") if spec.sweep else None
    if domain is not None:
        depths = list(domain.values) if domain.kind in ("grid", "choice") else [math.ceil(domain.values[0])]
    return min(network.staged.resolve_depth(depth) for depth in depths)


def _random_batch(images: int, size: int) -> Batch:
    pixels = torch.randint(0, 256, (images, 3, size, size), dtype=torch.uint8)
    labels, ones = torch.zeros(images, dtype=torch.int64), torch.ones(images)
    return Batch(pixels, labels, labels, ones, ones, torch.arange(images), epoch=0, step=0, count=images)


def _peak_of_process(train: Callable[[], None]) -> int:
    """Return how many bytes this process grows by at the most while it trains; 0 where it takes what was free."""
    before = _resident("VmRSS")
    if _CLEAR.exists():
        _CLEAR.write_text("5")  # forgets the peak so far
    train()
    return max(0, _resident("VmHWM") - before)


def _resident(field: str) -> int:
    """Return a field of this process's memory in bytes; where there are no fields, its peak so far."""
    if _STATUS.exists():
        lines = [line.split() for line in _STATUS.read_text().splitlines() if line.startswith(f"{field}:")]
        return int(lines[0][1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
