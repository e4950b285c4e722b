"""One fine-tuning run on a group of processes: put the parts together, resume, train, evaluate, save the model."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tltrain.data.decoded import DecodedImages, is_deterministic, plan_decoded_images
from tltrain.data.loader import Batch, eval_batches, resolve_loader_workers, steps_per_epoch, train_batches
from tltrain.data.preprocessing import Preprocessing
from tltrain.data.splits import Split, Splits, load_splits
from tltrain.data.transforms import resolve_preprocessing
from tltrain.errors import DataError
from tltrain.models.zoo import Network, build_network
from tltrain.run_folder import RunFolder
from tltrain.spec.schema import Spec
from tltrain.train.checkpoint import Checkpoint, Checkpoints
from tltrain.train.cohort import Cohort, Taps, Validation
from tltrain.train.distributed import Group
from tltrain.train.finish import evaluate_split, headline, model_card, save_model
from tltrain.train.lane import Clock, Lane

logger = logging.getLogger(__name__)

LANE = "lane-0"
Report = Callable[[dict[str, Any]], None]


def fine_tune(spec: Spec, run: RunFolder, group: Group, *, report: Report | None = None) -> dict[str, Any]:
    """Train what `spec` asks for in `run`, from its newest checkpoint if there is one, and evaluate the best.

    Every rank of `group` calls it. `report` is called by every rank after every epoch with that epoch's row. Returns
    a summary (best epoch, evaluation headline). Raises DataError, DivergedError, CheckpointError or StorageError.
    """
    configure_torch(spec)
    session = Session(spec, run, group, report)
    resumed = session.resume()
    before = fingerprint(session.network.module) if group.is_first else ""
    session.train(resumed)
    assert not group.is_first or fingerprint(session.network.module) == before, "a frozen tensor has moved"
    return session.finish()


def configure_torch(spec: Spec) -> None:
    """Set torch's switches for reproducible arithmetic."""
    torch.backends.cudnn.benchmark = not spec.train.deterministic
    torch.use_deterministic_algorithms(spec.train.deterministic)


def fingerprint(module: nn.Module) -> str:
    """Return the sha256 over names and bytes of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


@dataclass
class Keeper:
    """Writes an epoch's rows and the checkpoints into the run folder (rank 0), and tells `report` (all ranks)."""

    run: RunFolder
    checkpoints: Checkpoints
    group: Group
    info: dict[str, Any]
    report: Report | None

    def record(self, rows: list[dict[str, Any]]) -> None:
        """Add `rows` to metrics.jsonl."""
        if self.group.is_first:
            self.run.record_metrics(rows)
        if self.report is not None:
            self.report(rows[0])

    def save(self, step: int, states: Mapping[str, Any], *, best: int | None) -> None:
        """Write a checkpoint in the background."""
        if self.group.is_first:
            self.checkpoints.protect(best)
            self.checkpoints.save(step, states, self.info | {"best_step": best})


class Session:
    """The parts of one run on one rank."""

    def __init__(self, spec: Spec, run: RunFolder, group: Group, report: Report | None) -> None:
        self.spec, self.run, self.group = spec, run, group
        self.splits = load_splits(spec.data, spec.seed, check_leakage=False)  # the driver has looked
        self.network = load_network(spec, run, group, num_classes=len(self.splits.classes))
        self.preprocessing = resolve_preprocessing(spec.data, self.network.preprocessing)
        self.clock = Clock(steps_per_epoch(len(self.splits.train), spec.train.batch_size), spec.train.epochs)
        self.lane = Lane(
            LANE,
            spec,
            self.network.staged,
            group,
            self.clock,
            class_weights(spec, self.splits),
        )
        self.taps = Taps(self.network.staged, self.preprocessing, spec, group)
        self.cohort = Cohort(spec, [self.lane], self.taps, group, self.clock)
        self.checkpoints = Checkpoints(run.checkpoints, keep=spec.checkpoint.keep)
        self._num_loader_workers = resolve_loader_workers(
            spec.data.num_loader_workers,
            cpus_per_worker=spec.resources.cpus_per_worker,
            local_world_size=group.local_world_size,
        )
        info = {"batch_size": spec.train.batch_size, "data_fingerprint": self.splits.fingerprint}
        self._keeper = Keeper(run, self.checkpoints, group, info, report)

    def resume(self) -> int:
        """Load the newest good checkpoint; return how many optimiser steps are behind it (0 without one)."""
        checkpoint = self._newest()
        if checkpoint is None:
            self._drop_rows_after(0)
            return 0
        saved = checkpoint.info["data_fingerprint"]
        if saved != self.splits.fingerprint:
            raise DataError(
                f"the data has changed since run {self.run.name} began",
                "Put the data back, or start a run with another name",
            )
        self.lane.load_state(checkpoint.parts[LANE])
        self._drop_rows_after(checkpoint.step)
        if self.group.is_first:
            self.checkpoints.protect(checkpoint.info["best_step"])
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
        if start_step >= self.clock.total_steps or self.lane.is_stopped:
            return
        epoch, step = divmod(start_step, self.clock.steps_per_epoch)
        self.cohort.train(self._train_batches(epoch, step), self._validation(), self._keeper)
        if self.group.is_first:
            self.checkpoints.wait()
            self.run.write_json("timings.json", self.cohort.timings())
        self.group.barrier()

    def _train_batches(self, epoch: int, step: int) -> Iterator[Batch]:
        return train_batches(
            self.splits.train,
            self.preprocessing,
            self.spec.data,
            seed=self.spec.seed,
            batch_size=self.spec.train.batch_size,
            rank=self.group.rank,
            world_size=self.group.world_size,
            start_epoch=epoch,
            start_step=step,
            num_epochs=self.spec.train.epochs,
            num_workers=self._num_loader_workers,
            pin_memory=self.group.device.type == "cuda",
            decoded=self._decoded(self.splits.train) if is_deterministic(self.spec.data) else None,
        )

    def _decoded(self, split: Split) -> DecodedImages | None:
        return plan_decoded_images(split, self.preprocessing)

    def _validation(self) -> Validation | None:
        return None if self.splits.val is None else self._evaluation(self.splits.val)

    def _evaluation(self, split: Split) -> Validation:
        decoded = self._decoded(split)

        def batches() -> Iterator[Batch]:
            return eval_batches(
                split,
                self.preprocessing,
                batch_size=self.spec.train.batch_size,
                rank=self.group.rank,
                world_size=self.group.world_size,
                num_workers=self._num_loader_workers,
                pin_memory=self.group.device.type == "cuda",
                decoded=decoded,
            )

        return Validation(batches, self.taps, self.spec, self.group)

    def finish(self) -> dict[str, Any]:
        """Evaluate the best checkpoint on the test images (without any: on the validation images), save the model."""
        best = self.lane.best
        if best is not None:
            self.lane.load_state(self.checkpoints.load(best["step"]).parts[LANE])
        name, split = ("test", self.splits.test) if self.splits.test else ("validation", self.splits.val)
        evaluation = None
        if split is not None:
            validation = self._evaluation(split)
            evaluation = evaluate_split(
                validation.logits(self.lane), split, self.splits.classes, self.group, self.run.folder
            )
        summary = {
            "best": best,
            "evaluation": None if evaluation is None else {"split": name, **headline(evaluation)},
        }
        if self.group.is_first:
            if evaluation is not None:
                self.run.write_json("evaluation.json", {"split": name, **evaluation})
            card = model_card(self.spec, self.network, self.preprocessing, self.splits.classes, summary)
            save_model(self.run.model, card, {**self.network.module.state_dict(), **self.lane.kept.state_dict()})
        self.group.barrier()
        return summary


def load_network(spec: Spec, run: RunFolder, group: Group, *, num_classes: int) -> Network:
    """Return the pretrained network: from its weights at first, from the run's own copy when resuming.

    The copy is written once, by rank 0, so a run no longer depends on where its weights came from.
    """
    frozen = Checkpoints(run.folder.child("pretrained"), keep=1)
    has_copy = group.broadcast(bool(frozen.steps()) if group.is_first else None)
    weights = "random" if has_copy else spec.model.weights
    model = spec.model.model_copy(update={"weights": weights})
    network = build_network(model, num_classes, seed=spec.seed, allow_code=spec.allow_code)
    if has_copy:
        copy = frozen.load(0)
        network.module.load_state_dict(copy.parts["network"])
        network.preprocessing = Preprocessing.from_dict(copy.info["preprocessing"])
        network.weights_origin = copy.info["weights_origin"]
    elif group.is_first:
        info = {"preprocessing": network.preprocessing.to_dict(), "weights_origin": network.weights_origin}
        frozen.save(0, {"network": network.module.state_dict()}, info)
        frozen.wait()
    group.barrier()
    return network


def class_weights(spec: Spec, splits: Splits) -> Tensor | None:
    """Return the weights of the classes in the loss, float32 [num_classes] with mean 1 where positive, or None.

    Raises DataError where `train.class_weights` names a class that does not exist or leaves one out.
    """
    setting = spec.train.class_weights
    if setting == "none":
        return None
    if setting == "balanced":
        counts = torch.bincount(torch.from_numpy(splits.train.labels), minlength=len(splits.classes))
        weights = torch.where(counts > 0, 1 / counts, 0.0)  # a declared class may have no images
    else:
        wrong = set(setting) ^ set(splits.classes)
        if wrong:
            raise DataError(
                f"train.class_weights and the data disagree on {', '.join(sorted(wrong))}",
                f"Give one number for each of {', '.join(splits.classes)}",
            )
        weights = torch.tensor([setting[name] for name in splits.classes], dtype=torch.float32)
    return weights / weights[weights > 0].mean()
