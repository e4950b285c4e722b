"""A cohort: lanes that train in lockstep. For each batch, decode once, run the frozen stages once, step every lane."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tltrain.data.loader import Batch
from tltrain.data.preprocessing import Preprocessing
from tltrain.data.transforms import normalise
from tltrain.models.stages import StagedNetwork
from tltrain.spec.schema import Spec
from tltrain.train.distributed import Group
from tltrain.train.lane import Clock, Lane, autocast, place
from tltrain.train.tally import Tally


class Taps:
    """The frozen stages, run once per batch, with the value at every cut that some lane needs."""

    def __init__(self, network: StagedNetwork, preprocessing: Preprocessing, spec: Spec, group: Group) -> None:
        self._network, self._preprocessing, self._spec, self._group = network, preprocessing, spec, group
        self._segments: dict[tuple[int, int], nn.Module] = {}

    def _segment(self, start: int, stop: int) -> nn.Module:
        if (start, stop) not in self._segments:
            segment = self._network.prefix(start, stop)
            self._segments[start, stop] = place(segment, self._spec, self._group.device)
        return self._segments[start, stop]

    @torch.no_grad()
    def __call__(self, images: Tensor, depths: Iterable[int]) -> dict[int, Tensor]:
        """Return depth -> tap for `images` uint8 [b, 3, H, W]; the tap at depth 0 is the normalised images."""
        value = normalise(images, self._preprocessing)
        if self._spec.train.channels_last:
            value = value.contiguous(memory_format=torch.channels_last)
        taps, reached = {0: value}, 0
        with autocast(self._spec, self._group.device):
            for depth in sorted(set(depths) - {0}):
                value = self._segment(reached, depth)(value)
                taps[depth], reached = value, depth
        return taps


class Keeper(Protocol):
    """Where a cohort leaves what it learns: metrics rows and checkpoints."""

    def record(self, rows: list[dict[str, Any]]) -> None:
        """Keep one row per lane for an epoch that ended."""
        ...

    def save(self, step: int, states: Mapping[str, Any], *, best: int | None) -> None:
        """Keep a checkpoint of all lanes after `step` optimiser steps; never drop that of step `best`."""
        ...


class Cohort:
    """Lanes with the same data and batches, trained in lockstep on one group of processes."""

    def __init__(self, spec: Spec, lanes: list[Lane], taps: Taps, group: Group, clock: Clock) -> None:
        self.spec, self.lanes, self.group, self.clock = spec, lanes, group, clock
        self._taps = taps
        self._timer = EpochTimer()

    @property
    def active(self) -> list[Lane]:
        """The lanes that still train."""
        return [lane for lane in self.lanes if not lane.is_stopped]

    def timings(self) -> dict[str, float | None]:
        """Return when the first optimiser step had ended, in seconds since 1970."""
        return {"first_step_at": self._timer.first_step_at}

    def train(self, batches: Iterable[Batch], validation: Validation | None, keeper: Keeper) -> None:
        """Train on `batches` (from wherever they start) until they end or every lane has stopped.

        Raises DivergedError where a lane's loss is not finite.
        """
        self._timer.start()
        is_first_batch = True
        for batch in batches:
            if batch.step == 0 or is_first_batch:
                self._begin_epoch(batch.epoch)
            is_first_batch = False
            self._train_batch(batch.to(self.group.device))
            step = batch.epoch * self.clock.steps_per_epoch + batch.step + 1
            if batch.step + 1 == self.clock.steps_per_epoch:
                self._end_epoch(batch.epoch, step, validation, keeper)
                if not self.active:
                    return
            elif self._is_due(step):
                self._save(step, keeper)

    def _begin_epoch(self, epoch: int) -> None:
        for lane in self.active:
            lane.begin_epoch(epoch)

    def _train_batch(self, batch: Batch) -> None:
        parts = list(split_batch(batch, self.spec.train.accumulation_steps))
        for index, part in enumerate(parts):
            taps = self._taps(part.images, (lane.depth for lane in self.active))
            for lane in self.active:
                lane.accumulate(taps[lane.depth], part, part=index, is_last=index + 1 == len(parts))
        for lane in self.active:
            lane.update(batch.epoch * self.clock.steps_per_epoch + batch.step)
        self._timer.add_batch(batch.count)

    def _is_due(self, step: int) -> bool:
        every = self.spec.checkpoint.every_steps
        return every is not None and step % every == 0

    def _end_epoch(self, epoch: int, step: int, validation: Validation | None, keeper: Keeper) -> None:
        active = self.active
        timing = self._timer.end_training(self.group.device)
        for lane in active:
            lane.check_finite()
        metrics = validation.run(active) if validation else {}
        rows = [self._row(lane, epoch, step, metrics.get(lane.name)) | timing for lane in active]
        for row in rows:
            row["epoch_s"] = round(self._timer.elapsed_s(), 3)
        gained = [lane.note_validation(metrics[lane.name], epoch=epoch, step=step) for lane in active if metrics]
        keeper.record(rows)
        for lane in active:
            lane.tally.reset()
        every = self.spec.checkpoint.every_epochs
        is_last = epoch + 1 == self.clock.epochs or not self.active
        if is_last or any(gained) or (every is not None and (epoch + 1) % every == 0) or self._is_due(step):
            self._save(step, keeper)
        self._timer.start()

    def _row(self, lane: Lane, epoch: int, step: int, metrics: Mapping[str, float] | None) -> dict[str, Any]:
        means = lane.tally.means(self.group)
        row = {
            "lane": lane.name,
            "step": step,
            "epoch": epoch + 1,
            "train_loss": means["loss"],
            "train_top1": means["top1"],
        }
        row |= {f"val_{name}": value for name, value in (metrics or {}).items()}
        return row | {"learning_rate": lane.learning_rate(step - 1), "frozen_stages": lane.depth}

    def _save(self, step: int, keeper: Keeper) -> None:
        for lane in self.active:
            lane.check_finite()
        states = {lane.name: lane.state() for lane in self.lanes}
        best = self.lanes[0].best
        keeper.save(step, states, best=None if best is None else best["step"])


class Validation:
    """Evaluates lanes on a fixed set of images; every image counts once, whatever the number of ranks."""

    def __init__(self, batches: Callable[[], Iterable[Batch]], taps: Taps, spec: Spec, group: Group) -> None:
        self._batches, self._taps, self._spec, self._group = batches, taps, spec, group

    @torch.no_grad()
    def run(self, lanes: list[Lane]) -> dict[str, dict[str, float]]:
        """Return lane name -> loss, top1, top5 over all ranks."""
        modules = [lane.evaluated() for lane in lanes]
        tallies = [Tally(self._group.device) for _ in lanes]
        for batch, outputs in self._outputs(lanes, modules):
            for tally, logits in zip(tallies, outputs, strict=True):
                losses = nn.functional.cross_entropy(logits, batch.labels, reduction="none")
                tally.add(losses, logits, batch.labels)
        return {lane.name: tally.means(self._group) for lane, tally in zip(lanes, tallies, strict=True)}

    @torch.no_grad()
    def logits(self, lane: Lane) -> Iterator[tuple[Batch, Tensor]]:
        """Yield this rank's batches with the lane's logits float32 [b, C]."""
        for batch, (output,) in self._outputs([lane], [lane.evaluated()]):
            yield batch, output

    def _outputs(self, lanes: list[Lane], modules: list[nn.Module]) -> Iterator[tuple[Batch, list[Tensor]]]:
        for batch in self._batches():
            moved = batch.to(self._group.device)
            taps = self._taps(moved.images, (lane.depth for lane in lanes))
            with autocast(self._spec, self._group.device):
                outputs = [module(taps[lane.depth]) for lane, module in zip(lanes, modules, strict=True)]
            yield moved, [output.float() for output in outputs]


def split_batch(batch: Batch, parts: int) -> Iterator[Batch]:
    """Yield `batch` in at most `parts` pieces of nearly equal size; `count` stays that of the whole global batch."""
    if parts == 1:
        yield batch
        return
    fields = ("images", "labels", "partner_labels", "mix", "weights", "ids")
    chunks = [getattr(batch, field).tensor_split(min(parts, len(batch.ids))) for field in fields]
    for pieces in zip(*chunks, strict=True):
        yield dataclasses.replace(batch, **dict(zip(fields, pieces, strict=True)))


class EpochTimer:
    """Times an epoch's training part, and counts its images over all ranks."""

    def __init__(self) -> None:
        self.first_step_at: float | None = None
        self.start()

    def start(self) -> None:
        """Begin an epoch."""
        self._started, self._images = time.perf_counter(), 0

    def add_batch(self, count: int) -> None:
        """Count the images of a global batch."""
        self._images += count
        if self.first_step_at is None:
            self.first_step_at = time.time()

    def end_training(self, device: torch.device) -> dict[str, float]:
        """Return images per second since the start, after the device has finished."""
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return {"train_images_per_s": round(self._images / self.elapsed_s(), 2)}

    def elapsed_s(self) -> float:
        """Return the seconds since the epoch began."""
        return time.perf_counter() - self._started
