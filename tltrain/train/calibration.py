"""A short measurement on real images: what decoding, the frozen stages and each lane's step cost on this machine."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor

from tltrain.data.decoded import is_deterministic, plan_decoded_images
from tltrain.data.loader import Batch, steps_per_epoch, train_batches
from tltrain.data.preprocessing import Preprocessing
from tltrain.data.splits import Splits
from tltrain.data.transforms import resolve_preprocessing
from tltrain.models.placement import autocast
from tltrain.models.zoo import Network
from tltrain.spec.schema import Spec
from tltrain.train.distributed import Group
from tltrain.train.explain import check
from tltrain.train.lane import Clock, Lane
from tltrain.train.skipped import by_source, look_at_images
from tltrain.train.tap_arrays import TapArray
from tltrain.train.tap_files import Layout
from tltrain.train.taps import Taps

BATCHES = 4
"""Batches that are measured; the first of them warms up and is not counted where there are more."""


@dataclass(frozen=True)
class CutCost:
    """A cut that some lane needs: seconds per image from the cut before it, and bytes of one image's tap."""

    name: str
    depth: int
    seconds: float
    bytes_per_image: int


@dataclass(frozen=True)
class LaneCost:
    """Seconds per image of a lane's training step and of its validation, above its cut."""

    step_s: float
    validation_s: float


@dataclass(frozen=True)
class Calibration:
    """What one set of batches and one network cost, all in seconds per image on one worker.

    decode_s: in one process. cuts: in ascending depth; the one at depth 0 is the normalised images. lanes: by depth.
    keeps_decoded, keeps_taps: whether images, and taps, are the same in every epoch and may be kept.
    """

    num_train: int
    num_val: int
    steps_per_epoch: int
    batches: int
    decode_s: float
    cuts: tuple[CutCost, ...]
    lanes: dict[int, LaneCost]
    keeps_decoded: bool
    keeps_taps: bool


def calibrate(lanes: Mapping[int, Spec], *, num_workers: int, device: torch.device) -> Calibration:
    """Measure a few batches of the specs' common data and network, with random weights.

    lanes: depth -> the spec of a lane with so many frozen stages; all may share batches. num_workers: ranks that
    share a batch, of which one is measured. Raises DataError where images cannot be read.
    """
    spec = next(iter(lanes.values()))
    looks = look_at_images(spec, [], Group(0, 1, 0, 1, device))
    splits, network = check(spec, by_source(looks))
    preprocessing = resolve_preprocessing(spec.data, network.preprocessing)
    with _threads(spec.resources.cpus_per_worker):
        bench = _Bench(lanes, splits, network, preprocessing, num_workers, device)
        measured = sum(bench.measure(batch) for batch in bench.batches())
    return Calibration(
        num_train=len(splits.train),
        num_val=len(splits.val) if splits.val else 0,
        steps_per_epoch=steps_per_epoch(len(splits.train), spec.train.images_per_step),
        batches=measured,
        decode_s=_typical(bench.decode_s),
        cuts=bench.recorder.cuts([stage.name for stage in network.staged.stages]),
        lanes={
            depth: LaneCost(_typical(bench.step_s[depth]), _typical(bench.validation_s[depth])) for depth in bench.lanes
        },
        keeps_decoded=is_deterministic(spec.data) and plan_decoded_images(splits.train, preprocessing) is not None,
        keeps_taps=is_deterministic(spec.data),
    )


class _Bench:
    def __init__(
        self,
        lanes: Mapping[int, Spec],
        splits: Splits,
        network: Network,
        preprocessing: Preprocessing,
        num_workers: int,
        device: torch.device,
    ) -> None:
        self._spec = next(iter(lanes.values()))
        self._splits, self._preprocessing = splits, preprocessing
        self._group = Group(0, 1, 0, 1, device)
        self._batch_size = -(-self._spec.train.images_per_step // num_workers)
        self._part = -(-self._batch_size // self._spec.train.accumulation_steps)
        self._taps = Taps(network.staged, preprocessing, self._spec, self._group, self._part)
        clock = Clock(steps_per_epoch(len(splits.train), self._spec.train.images_per_step), self._spec.train.epochs)
        self.lanes = {
            depth: Lane(f"depth-{depth}", spec, network.staged, self._group, clock)
            for depth, spec in sorted(lanes.items())
        }
        self.recorder = _Recorder()
        self.decode_s: list[float] = []
        self.step_s: dict[int, list[float]] = {depth: [] for depth in self.lanes}
        self.validation_s: dict[int, list[float]] = {depth: [] for depth in self.lanes}

    def batches(self) -> Iterator[Batch]:
        """Yield the first batches of training, in the pieces that a worker computes; notes the time of decoding."""
        stream = train_batches(
            self._splits.train,
            self._preprocessing,
            self._spec.data,
            seed=self._spec.seed,
            batch_size=self._part,
            rank=0,
            world_size=1,
            start_epoch=0,
            start_step=0,
            num_epochs=1,
            num_workers=0,
            pin_memory=False,
        )
        for _ in range(BATCHES):
            began = time.perf_counter()
            batch = next(stream, None)
            if batch is None:
                return
            self.decode_s.append((time.perf_counter() - began) / len(batch.ids))
            yield batch.to(self._group.device)

    def measure(self, batch: Batch) -> int:
        """Time the frozen stages once, and a step and a validation of each lane; return 1, for one batch."""
        taps = self._taps(batch, self.lanes, self.recorder)
        for depth, lane in self.lanes.items():
            with self._timed(self.step_s[depth], batch):
                lane.accumulate(taps[depth], batch, part=0, is_last=True)
                lane.update(0)
            with (
                self._timed(self.validation_s[depth], batch),
                torch.no_grad(),
                autocast(self._spec.train, self._group.device),
            ):
                lane.evaluated()(taps[depth])
        return 1

    @contextlib.contextmanager
    def _timed(self, seconds: list[float], batch: Batch) -> Iterator[None]:
        began = time.perf_counter()
        yield
        if self._group.device.type == "cuda":
            torch.cuda.synchronize(self._group.device)
        seconds.append((time.perf_counter() - began) / len(batch.ids))


@dataclass
class _Recorder:
    """Takes note of what each cut costs; keeps nothing."""

    seconds: dict[int, list[float]] = field(default_factory=dict)
    num_bytes: dict[int, int] = field(default_factory=dict)

    def arrays(self) -> dict[int, TapArray]:
        return {}

    def learns(self, depth: int) -> bool:
        return True

    def note(self, depth: int, tap: Tensor, ids: Tensor, seconds: float | None) -> None:
        assert seconds is not None, "what is learned from is timed"
        self.seconds.setdefault(depth, []).append(seconds / len(ids))
        self.num_bytes[depth] = Layout.of(tap).row_bytes

    def cuts(self, names: list[str]) -> tuple[CutCost, ...]:
        """Return the cuts by depth; the images' own is called so."""
        return tuple(
            CutCost(names[depth - 1] if depth else "images", depth, _typical(seconds), self.num_bytes[depth])
            for depth, seconds in sorted(self.seconds.items())
        )


def _typical(seconds: list[float]) -> float:
    """Return the median of all but the first, which warms up."""
    return statistics.median(list(islice(seconds, 1, None)) or seconds)


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Compute with as many threads as a worker has, for a `with` block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
