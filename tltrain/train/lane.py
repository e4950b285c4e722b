"""A lane: one trial's trained layers, with its optimiser, schedule, averages and metrics."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tltrain.data.loader import Batch
from tltrain.models.depthwise import use_fast_depthwise
from tltrain.models.placement import autocast, place
from tltrain.models.stages import StagedNetwork
from tltrain.models.zoo import initialise_head
from tltrain.spec.schema import Spec
from tltrain.train import optim
from tltrain.train.distributed import Group, mix_seed, seed_everything
from tltrain.train.finite import LossLog, diverged
from tltrain.train.tally import Tally

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Clock:
    """How long training is, in optimiser steps."""

    steps_per_epoch: int
    epochs: int

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.steps_per_epoch * self.epochs


def freeze_depth_at(spec: Spec, epoch: int) -> int | str:
    """Return the spec's freeze depth in `epoch` (0-based)."""
    depth = spec.model.freeze_depth
    for phase in spec.train.unfreeze_phases:
        if phase.at_epoch <= epoch:
            depth = phase.freeze_depth
    return depth


class Lane:
    """The stages above the cut at `depth`, trained on the taps of that cut.

    Nothing here depends on other lanes: random numbers are seeded anew for each step from the lane's own seed, so a
    lane trained beside others equals the lane trained alone, and no random state needs to be saved.
    """

    def __init__(
        self,
        name: str,
        spec: Spec,
        network: StagedNetwork,
        group: Group,
        clock: Clock,
        class_weights: Tensor | None = None,
        *,
        draws_head: bool = False,
        identity: Callable[[int], str] = str,
    ) -> None:
        """`draws_head`: draw the head from this lane's seed, where the network has another lane's.

        `identity`: returns the name of a training image at a position, for messages.
        """
        self.name, self.spec, self.group, self.clock = name, spec, group, clock
        self._network, self._draws_head, self._identity = network, draws_head, identity
        self._class_weights = None if class_weights is None else class_weights.to(group.device)
        self._mixes = spec.data.mixup > 0 or spec.data.cutmix > 0
        self.tally = Tally(group.device)
        self._losses_log = LossLog()
        self.best: dict[str, Any] | None = None
        self.epochs_without_gain = 0
        self.scaler = torch.amp.GradScaler(group.device.type, enabled=spec.train.precision == "fp16")
        self._build(self.depth_at(0))

    def _build(self, depth: int) -> None:
        """Take the stages from `depth` up out of the pretrained network, with a fresh optimiser."""
        train, device = self.spec.train, self.group.device
        self.depth = depth
        suffix = self._network.suffix(depth)
        if self._draws_head:
            initialise_head(suffix, self._network.head_name, self.spec.seed)
        use_fast_depthwise(suffix)
        self.suffix = place(suffix, self.spec.train, device)
        groups = optim.parameter_groups(
            self.suffix,
            self.spec.optim,
            stage_of=self._network.stage_of,
            num_stages=len(self._network.stages),
        )
        self.optimizer = optim.build_optimizer(groups, self.spec.optim, is_scaled=train.precision == "fp16")
        self.ema: AveragedModel | None = None
        if train.ema_decay is not None:
            self.ema = AveragedModel(self.suffix, multi_avg_fn=get_ema_multi_avg_fn(train.ema_decay))
        self._forward: nn.Module | None = None

    def depth_at(self, epoch: int) -> int:
        """Return how many stages are frozen in `epoch` (0-based)."""
        return self._network.resolve_depth(freeze_depth_at(self.spec, epoch))

    def begin_epoch(self, epoch: int) -> None:
        """Unfreeze what the spec unfreezes at `epoch`; trained weights and optimiser state go on."""
        depth = self.depth_at(epoch)
        if depth != self.depth:
            logger.info("epoch %d: %s trains from stage %s on", epoch + 1, self.name, self._network.stages[depth].name)
            state = self.state()
            self._build(depth)
            self._load_trained(state)

    def learning_rate(self, step: int) -> float:
        """Return the head's learning rate at optimiser step `step` (0-based)."""
        clock, phases = self.clock, self.spec.train.unfreeze_phases
        factor = optim.schedule_factor(
            step, self.spec.optim, total_steps=clock.total_steps, steps_per_epoch=clock.steps_per_epoch
        )
        return self.spec.optim.learning_rate * factor * optim.phase_factor(step // clock.steps_per_epoch, phases)

    def _wrap(self, tap: Tensor) -> nn.Module:
        """Wrap the suffix for DistributedDataParallel (and torch.compile).

        DDP lays its gradient buckets out anew after its first backward pass, and with more than two ranks the layout
        decides the order of the sums. One pass on zeros, whose effects are undone, makes every real step use the same
        layout, so that a resumed run equals an uninterrupted one to the bit.
        """
        forward: nn.Module = self.suffix
        if self.spec.train.compile:
            self.suffix.compile()
        if self.group.world_size == 1:
            return forward
        device_ids = [self.group.device.index] if self.group.device.type == "cuda" else None
        forward = DistributedDataParallel(self.suffix, device_ids=device_ids)
        buffers = [(buffer, buffer.clone()) for buffer in self.suffix.buffers()]
        with autocast(self.spec.train, self.group.device):
            logits = forward(torch.zeros_like(tap))
        logits.float().sum().backward()
        self.optimizer.zero_grad(set_to_none=True)
        for buffer, before in buffers:
            buffer.copy_(before)
        return forward

    def accumulate(self, tap: Tensor, batch: Batch, *, part: int, is_last: bool) -> None:
        """Add the gradient of one part of a batch: `tap` is the network's value at the lane's cut, [b, ...].

        The loss is the mean over the global batch: each rank's sum times world_size / count, which DDP averages.
        """
        self.suffix.train()
        if self._forward is None:
            self._forward = self._wrap(tap)
        seed = mix_seed(self.spec.seed, "lane", batch.epoch, batch.step, part, self.group.rank)
        seed_everything(self.group.device, seed)
        forward = self._forward
        is_shared = isinstance(forward, DistributedDataParallel)
        if is_shared:
            self.group.arrive()
        with forward.no_sync() if is_shared and not is_last else contextlib.nullcontext():
            with autocast(self.spec.train, self.group.device):
                logits = forward(tap)
            losses = self._losses(logits.float(), batch)
            loss = torch.where(batch.weights > 0, losses, 0.0).sum() * (self.group.world_size / batch.count)
            self.scaler.scale(loss).backward()
        self.tally.add(losses, logits, batch.labels, batch.weights)
        step = batch.epoch * self.clock.steps_per_epoch + batch.step
        self._losses_log.add(step, losses, batch)

    def _losses(self, logits: Tensor, batch: Batch) -> Tensor:
        losses = self._cross_entropy(logits, batch.labels)
        if not self._mixes:
            return losses
        partner_losses = self._cross_entropy(logits, batch.partner_labels)
        return batch.mix * losses + (1 - batch.mix) * partner_losses

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(
            logits,
            labels,
            weight=self._class_weights,
            label_smoothing=self.spec.train.label_smoothing,
            reduction="none",
        )

    def update(self, step: int) -> None:
        """Take optimiser step `step` (0-based) with the gradients accumulated since the last."""
        optim.set_learning_rate(self.optimizer, self.learning_rate(step))
        if self.spec.train.clip_grad_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.suffix.parameters(), self.spec.train.clip_grad_norm)
        optim.match_layouts(self.optimizer)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update_parameters(self.suffix)

    def check_finite(self) -> None:
        """Raise DivergedError where the loss of some step since the last call was not a finite number on some rank.

        The error names the first such step, its rate, and the images whose losses they were. Every rank calls it.
        """
        bad = self._losses_log.take_bad(self.group)
        if bad is not None:
            step, positions = bad
            raise diverged(self.name, step, self.learning_rate(step), [self._identity(at) for at in positions])

    def evaluated(self) -> nn.Module:
        """Return the kept module in evaluation mode, with rank 0's BatchNorm statistics. Every rank calls it."""
        self.group.broadcast_tensors(list(self.kept.buffers()))
        return self.kept.eval()

    @property
    def kept(self) -> nn.Module:
        """The module that is evaluated and saved: the moving average where there is one."""
        return self.suffix if self.ema is None else self.ema.module

    def note_validation(self, metrics: Mapping[str, float], *, epoch: int, step: int) -> bool:
        """Record the validation `metrics` after `epoch` (0-based); return whether they are the best so far."""
        name = self.spec.train.best_metric
        value = metrics[name] if name == "top1" else -metrics[name]
        stopping = self.spec.train.early_stopping
        before = -math.inf if self.best is None else self.best["score"]
        gained = value > before + (stopping.min_delta if stopping else 0.0)
        self.epochs_without_gain = 0 if gained else self.epochs_without_gain + 1
        if not value > before:
            return False
        self.best = {"score": value, "epoch": epoch + 1, "step": step, **metrics}
        return True

    @property
    def is_stopped(self) -> bool:
        """Whether early stopping has ended the lane."""
        stopping = self.spec.train.early_stopping
        return stopping is not None and self.epochs_without_gain >= stopping.patience

    def state(self) -> dict[str, Any]:
        """Return all that training goes on from. Every rank calls it; rank 0's result is the one to save."""
        ema = None if self.ema is None else {"module": self.ema.module.state_dict(), "count": self.ema.n_averaged}
        return {
            "depth": self.depth,
            "suffix": self.suffix.state_dict(),
            "optimizer": optim.state_by_name(self.optimizer),
            "ema": ema,
            "scaler": self.scaler.state_dict(),
            "tally": self.group.gather(self.tally.sums.cpu()),
            "best": self.best,
            "epochs_without_gain": self.epochs_without_gain,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave, also with another number of ranks."""
        if state["depth"] != self.depth:
            self._build(state["depth"])
        self._load_trained(state)
        if state["scaler"]:
            self.scaler.load_state_dict(dict(state["scaler"]))
        self.best, self.epochs_without_gain = state["best"], state["epochs_without_gain"]
        tallies: list[Tensor] = state["tally"]
        if len(tallies) == self.group.world_size:
            self.tally.sums.copy_(tallies[self.group.rank])
        elif self.group.is_first:
            self.tally.sums.copy_(torch.stack(list(tallies)).sum(0))

    def _load_trained(self, state: Mapping[str, Any]) -> None:
        """Load weights, averages and optimiser state; stages that the state lacks keep their pretrained weights."""
        self.suffix.load_state_dict({**self.suffix.state_dict(), **state["suffix"]})
        optim.load_state_by_name(self.optimizer, state["optimizer"])
        if self.ema is not None:
            self.ema.module.load_state_dict({**self.ema.module.state_dict(), **state["ema"]["module"]})
            self.ema.n_averaged.copy_(state["ema"]["count"])
