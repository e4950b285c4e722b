"""A cohort: lanes that train in lockstep. For each batch, decode once, run the frozen stages once, step every lane."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tltrain.data.loader import Batch
from tltrain.models.placement import autocast
from tltrain.progress import Meter
from tltrain.spec.schema import Spec
from tltrain.train.distributed import Group
from tltrain.train.lane import Lane
from tltrain.train.phases import Phases
from tltrain.train.tally import Tally
from tltrain.train.taps import Kept, Taps


class Cohort:
    """Lanes that see the same batches, trained in lockstep on one group of processes."""

    def __init__(
        self, spec: Spec, taps: Taps, group: Group, steps_per_epoch: int, phases: Phases, meter: Meter
    ) -> None:
        self.spec, self.group, self._taps, self._steps_per_epoch = spec, group, taps, steps_per_epoch
        self._phases, self._meter = phases, meter
        self.timer = EpochTimer()

    def train_epoch(
        self, lanes: list[Lane], epoch: int, batches: Iterator[Batch], kept: Kept, after: Callable[[int], None]
    ) -> None:
        """Train `lanes` through the rest of `epoch`, from where `batches` stands; `after(step)` between two steps.

        `batches` may go on beyond the epoch; it is left at the first batch of the next one.
        """
        self.timer.start()
        for lane in lanes:
            lane.begin_epoch(epoch)
        self._meter.begin_epoch(epoch + 1, max(lane.clock.epochs for lane in lanes), lanes=len(lanes))
        self._meter.begin("training", self._steps_per_epoch * self.spec.train.images_per_step)
        for batch in self._phases.images(batches):
            self._train_batch(lanes, batch.to(self.group.device), kept)
            if batch.step + 1 == self._steps_per_epoch:
                break
            after(epoch * self._steps_per_epoch + batch.step + 1)
        self.timer.end_training(self.group.device)

    def _train_batch(self, lanes: list[Lane], batch: Batch, kept: Kept) -> None:
        parts = list(split_batch(batch, self.spec.train.accumulation_steps))
        for index, part in enumerate(parts):
            with self._phases("prefix"):
                taps = self._taps(part, (lane.depth for lane in lanes), kept)
            with self._phases("lanes"):
                for lane in lanes:
                    lane.accumulate(taps[lane.depth], part, part=index, is_last=index + 1 == len(parts))
        with self._phases("lanes"):
            for lane in lanes:
                lane.update(batch.epoch * self._steps_per_epoch + batch.step)
        self.timer.add_batch(batch.count)
        self._meter.at((batch.step + 1) * self.spec.train.images_per_step)

    def end_epoch(self, lanes: list[Lane], epoch: int, validation: Validation | None) -> list[dict[str, Any]]:
        """Validate `lanes` after `epoch` and return a row of metrics for each; every rank calls it."""
        with self._phases("validation"):
            metrics = validation.run(lanes) if validation else {}
        step = (epoch + 1) * self._steps_per_epoch
        rows = [self._row(lane, epoch, step, metrics.get(lane.name)) for lane in lanes]
        for lane in lanes:
            if metrics:
                lane.note_validation(metrics[lane.name], epoch=epoch, step=step)
            lane.tally.reset()
        return rows

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
        row |= {"learning_rate": lane.learning_rate(step - 1), "frozen_stages": lane.depth}
        return row | {"train_images_per_s": self.timer.images_per_s, "epoch_s": round(self.timer.elapsed_s(), 3)}


class Validation:
    """Evaluates lanes on a fixed set of images; every image counts once, whatever the number of ranks."""

    def __init__(
        self,
        batches: Callable[[Collection[int]], Iterable[Batch]],
        taps: Taps,
        kept: Kept,
        spec: Spec,
        group: Group,
        phases: Phases,
        meter: Meter,
        num_images: int,
    ) -> None:
        """`batches` is called with the depths at which taps will be wanted, each time from the start."""
        self._batches, self._taps, self._kept, self._spec, self._group = batches, taps, kept, spec, group
        self._phases, self._meter, self._num_images = phases, meter, num_images

    @torch.no_grad()
    def run(self, lanes: list[Lane]) -> dict[str, dict[str, float]]:
        """Return lane name -> loss, top1, top5 over all ranks."""
        tallies = [Tally(self._group.device) for _ in lanes]
        self._meter.begin("validation", self._num_images)
        for batch, outputs in self._outputs(lanes):
            for tally, logits in zip(tallies, outputs, strict=True):
                losses = nn.functional.cross_entropy(logits, batch.labels, reduction="none")
                tally.add(losses, logits, batch.labels)
        return {lane.name: tally.means(self._group) for lane, tally in zip(lanes, tallies, strict=True)}

    def logits(self, lane: Lane) -> Iterator[tuple[Batch, Tensor]]:
        """Yield this rank's batches with the lane's logits float32 [b, C]."""
        self._meter.begin("evaluation", self._num_images)
        for batch, (output,) in self._outputs([lane]):
            yield batch, output

    @torch.no_grad()
    def _outputs(self, lanes: list[Lane]) -> Iterator[tuple[Batch, list[Tensor]]]:
        modules = [lane.evaluated() for lane in lanes]
        depths = {lane.depth for lane in lanes}
        for batch in self._phases.images(self._batches(depths)):
            moved = batch.to(self._group.device)
            with self._phases("prefix"):
                taps = self._taps(moved, depths, self._kept)
            with autocast(self._spec.train, self._group.device):
                outputs = [module(taps[lane.depth]) for lane, module in zip(lanes, modules, strict=True)]
            self._meter.add(batch.count)
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
        self.images_per_s = 0.0
        self.start()

    def start(self) -> None:
        """Begin an epoch."""
        self._started, self._images = time.perf_counter(), 0

    def add_batch(self, count: int) -> None:
        """Count the images of a global batch."""
        self._images += count
        if self.first_step_at is None:
            self.first_step_at = time.time()

    def end_training(self, device: torch.device) -> None:
        """Note the images per second since the start, after the device has finished."""
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        self.images_per_s = round(self._images / self.elapsed_s(), 2)

    def elapsed_s(self) -> float:
        """Return the seconds since the epoch began."""
        return time.perf_counter() - self._started
