"""One fine-tuning run on a group of processes: put the parts together, resume, train, evaluate, save the model."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from typing import Any, NoReturn

import torch

from tltrain import stopping
from tltrain.data.loader_processes import dead_loaders_named
from tltrain.errors import DataError, PreemptedError
from tltrain.run_folder import RunFolder
from tltrain.spec.schema import Spec
from tltrain.train.activations import ActivationStore
from tltrain.train.agreement import StopAgreement
from tltrain.train.allocator import keep_freed_memory
from tltrain.train.checkpoint import Checkpoint, Checkpoints
from tltrain.train.distributed import Group
from tltrain.train.finish import finish_lane
from tltrain.train.phases import add_seconds
from tltrain.train.skipped import read_looks
from tltrain.train.workbench import Workbench, fingerprint, meter_of

logger = logging.getLogger(__name__)

LANE = "lane-0"
TIMINGS_FILE = "timings.json"
Report = Callable[[dict[str, Any]], None]


def fine_tune(
    spec: Spec,
    run: RunFolder,
    group: Group,
    *,
    report: Report | None = None,
    store: ActivationStore | None = None,
    wished: Callable[[], int] = stopping.wished,
) -> dict[str, Any]:
    """Train what `spec` asks for in `run`, from its newest checkpoint if there is one, and evaluate the best.

    Every rank of `group` calls it. `report` is called by every rank after every epoch with that epoch's row. `store`:
    kept taps to share. `wished`: returns the signal that asks this rank to end, 0 where none does. Returns a summary
    (best epoch, evaluation headline). Raises DataError, DivergedError, CheckpointError, StorageError, or StoppedError
    (PreemptedError) where some rank was asked to end: after a step, with a checkpoint of it.
    """
    configure_torch(spec)
    session = Session(spec, run, group, report, store, wished)
    with dead_loaders_named(), contextlib.closing(session.meter):  # torch may tell of a death at any time
        resumed = session.resume()
        before = session.pretrained_fingerprint()
        session.train(resumed)
        assert session.pretrained_fingerprint() == before, "a frozen tensor has moved"
        return session.finish()


def configure_torch(spec: Spec) -> None:
    """Set torch's switches for reproducible arithmetic, and the C library's for speed."""
    keep_freed_memory()
    if spec.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch asks for it before it sums in a fixed order
    torch.backends.cudnn.benchmark = not spec.train.deterministic
    torch.use_deterministic_algorithms(spec.train.deterministic)


class Session:
    """One lane on a workbench of its own, with its checkpoints."""

    def __init__(
        self,
        spec: Spec,
        run: RunFolder,
        group: Group,
        report: Report | None = None,
        store: ActivationStore | None = None,
        wished: Callable[[], int] = stopping.wished,
    ) -> None:
        self.spec, self.run, self.group, self._report = spec, run, group, report
        self.meter = meter_of(spec, run, group)
        known = read_looks(run) if group.is_first else []
        self.bench = Workbench(spec, run, group, passes=spec.train.epochs, store=store, meter=self.meter, known=known)
        self.lane = self.bench.make_lane(LANE, spec)
        self.clock = self.lane.clock
        self.checkpoints = Checkpoints(run.checkpoints, keep=spec.checkpoint.keep)
        self._stop = StopAgreement(group, wished)
        self._earlier_s: dict[str, float] = {}
        self._info = {"batch_size": spec.train.images_per_step, "data_fingerprint": self.bench.splits.learned_from}

    def pretrained_fingerprint(self) -> str:
        """Return the sha256 of the pretrained network, which must never move (rank 0; empty elsewhere)."""
        return fingerprint(self.bench.network.module.state_dict()) if self.group.is_first else ""

    def resume(self) -> int:
        """Load the newest good checkpoint; return how many optimiser steps are behind it (0 without one)."""
        checkpoint = self._newest()
        if checkpoint is None:
            self._drop_rows_after(0)
            return 0
        if checkpoint.info["data_fingerprint"] != self._info["data_fingerprint"]:
            raise DataError(
                f"the data has changed since run {self.run.name} began",
                "Put the data back, or start a run with another name",
            )
        self.lane.load_state(checkpoint.parts[LANE])
        self._drop_rows_after(checkpoint.step)
        if self.group.is_first:
            self._protect(checkpoint.info["best_step"])
            self.checkpoints.prune()
            if self.run.folder.exists(TIMINGS_FILE):
                self._earlier_s = self.run.read_json(TIMINGS_FILE).get("seconds", {})
            logger.info("resuming from step %d of %d", checkpoint.step, self.clock.total_steps)
        return checkpoint.step

    def _newest(self) -> Checkpoint | None:
        # Rank 0 looks first, alone: it may have to set broken checkpoints aside.
        mine = self.checkpoints.newest() if self.group.is_first else None
        step = self.group.broadcast(None if mine is None else mine.step)
        if step is None or mine is not None:
            return mine
        return self.checkpoints.load(step)

    def _drop_rows_after(self, step: int) -> None:
        if self.group.is_first:
            self.run.drop_metrics_after(step)

    def train(self, start_step: int) -> None:
        """Train from `start_step` to the end, or until early stopping."""
        epoch, step = divmod(start_step, self.clock.steps_per_epoch)
        with stopping.deferred():
            while epoch < self.clock.epochs and not self.lane.is_stopped:
                self._train_epoch(epoch, step)
                epoch, step = epoch + 1, 0
            self.bench.end_stream()
            if self.group.is_first:
                with self.bench.phases("checkpoint"):
                    self.checkpoints.wait()
                self._write_timings()
        self.group.barrier()

    def _train_epoch(self, epoch: int, step: int) -> None:
        bench, lanes = self.bench, [self.lane]
        batches = bench.epoch_batches(epoch, step, {self.lane.depth_at(epoch)}, num_epochs=self.clock.epochs)
        bench.cohort.train_epoch(lanes, epoch, batches, bench.kept_in(epoch), self._after)
        self.lane.check_finite()
        rows = bench.cohort.end_epoch(lanes, epoch, bench.validation)
        if self.group.is_first:
            self.run.record_metrics(rows)
            self._write_timings()
        step = (epoch + 1) * self.clock.steps_per_epoch
        signal = self._stop.signal_at(step, ask=True)
        if signal or self._is_checkpoint_due(epoch):
            self._save(step)
        if self._report is not None:
            self._report(rows[0])
        if signal:
            self._leave(signal)

    def _after(self, step: int) -> None:
        """Save where that is due after `step`, which ends no epoch, and end where a signal asks for it."""
        every, signal = self.spec.checkpoint.every_steps, self._stop.signal_at(step)
        if signal or (every is not None and step % every == 0):
            self._save(step)
        if signal:
            self._leave(signal)

    def _leave(self, signal: int) -> NoReturn:
        """End after the checkpoint that was begun is whole. Every rank calls it."""
        if self.group.is_first:
            self.checkpoints.wait()
            self._write_timings()
        self.bench.close()
        if signal == stopping.PREEMPTED:
            raise PreemptedError("a node of this group is taken back", "Nothing: training goes on elsewhere")
        raise stopping.StoppedError(signal)

    def _is_checkpoint_due(self, epoch: int) -> bool:
        settings, best, step = self.spec.checkpoint, self.lane.best, (epoch + 1) * self.clock.steps_per_epoch
        return (
            epoch + 1 == self.clock.epochs
            or self.lane.is_stopped
            or (best is not None and best["step"] == step)
            or (settings.every_epochs is not None and (epoch + 1) % settings.every_epochs == 0)
            or (settings.every_steps is not None and step % settings.every_steps == 0)
        )

    def _save(self, step: int) -> None:
        """Write a checkpoint in the background. Every rank calls it."""
        self.lane.check_finite()
        with self.bench.phases("checkpoint"):
            state, best = self.lane.state(), self.lane.best
            if self.group.is_first:
                best_step = None if best is None else best["step"]
                self._protect(best_step)
                self.checkpoints.save(step, {LANE: state}, self._info | {"best_step": best_step})

    def _protect(self, best_step: int | None) -> None:
        self.checkpoints.protect(*([] if best_step is None else [best_step]))

    def _write_timings(self) -> None:
        """Write the seconds of rank 0 by phase, those of earlier attempts included."""
        seconds = add_seconds(self._earlier_s, self.bench.phases.seconds())
        started = self.bench.cohort.timer.first_step_at
        self.run.write_json(TIMINGS_FILE, {"first_step_at": started, "seconds": seconds})

    def finish(self) -> dict[str, Any]:
        """Evaluate the best checkpoint and save its model; return the summary."""
        if self.lane.best is not None:
            self.lane.load_state(self.checkpoints.load(self.lane.best["step"]).parts[LANE])
        with self.bench.phases("test"):
            summary = finish_lane(self.bench, self.lane, self.run)
        if self.group.is_first:
            self._write_timings()
        self.bench.close()
        return summary
