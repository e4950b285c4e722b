"""The learning-rate range test: every rate is a lane of its own, and all lanes train on the same batches."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch

from tltrain.data.loader import Batch
from tltrain.errors import Problem, SpecError
from tltrain.spec.load import replace
from tltrain.spec.schema import ElasticWorkers, FreezeDepth, Spec
from tltrain.train.distributed import Group, choose_device
from tltrain.train.lane import Lane
from tltrain.train.memory import has_room
from tltrain.train.rate_choice import Curve, DepthResult, RangeTest, has_diverged, recent_loss
from tltrain.train.session import configure_torch
from tltrain.train.workbench import Workbench

logger = logging.getLogger(__name__)

ROUNDS = ((1 / 5, 1 / 3), (1 / 2, 1 / 2))
"""After the first share of the steps, the second share of each depth's lanes goes on, those with the lowest losses."""
FEWEST = 4
"""So many lanes of a depth always go on."""


@dataclass
class _Trial:
    """One rate at one depth, with its losses so far."""

    lane: Lane
    depth: FreezeDepth
    losses: list[float] = field(default_factory=list)
    ended: str | None = None


def rates_between(lowest: float, highest: float, count: int) -> list[float]:
    """Return `count` rates from `lowest` to `highest`, each the same factor above the one before, to 3 digits.

    Raises SpecError where these are no two positive bounds in their order, or fewer than 2 rates.
    """
    if not (0 < lowest < highest < math.inf):
        raise SpecError(Problem(f"there are no rates from {lowest:g} to {highest:g}", "Give 0 < --from < --to"))
    if count < 2:
        raise SpecError(Problem(f"{count} rate leaves nothing to compare", "Give --rates 2 or more"))
    factor = (highest / lowest) ** (1 / (count - 1))
    return [float(f"{lowest * factor**index:.3g}") for index in range(count)]


def find_learning_rate(
    spec: Spec,
    rates: Sequence[float],
    depths: Sequence[FreezeDepth],
    group: Group,
    *,
    steps: int,
    tell: Callable[[str], None] = logger.info,
) -> RangeTest:
    """Train a lane for each of `rates`, ascending, at each of `depths` for `steps` steps, and say which rate to take.

    Every lane starts from the pretrained network and keeps its rate. All see the same batches, which are decoded once
    and go through the frozen stages once. A lane whose loss shoots up ends alone; those that have fallen behind end
    after a fifth and after half of the steps. Where memory does not hold all lanes they train in several groups, with
    other lanes to fall behind. The test images are never opened, and nothing is written.

    group: one process. tell: called with a line about how it goes. Raises SpecError or DataError with what is wrong.
    """
    began = time.perf_counter()
    spec = range_spec(spec, group.device)
    configure_torch(spec)
    bench = Workbench(spec, None, group, passes=1)
    bench.passes = -(-steps // bench.steps_per_epoch)
    named = {bench.network.staged.resolve_depth(depth): depth for depth in reversed(depths)}
    wanted = [(depth, rate) for _, depth in sorted(named.items(), reverse=True) for rate in rates]
    curves: list[tuple[FreezeDepth, Curve]] = []
    while len(curves) < len(wanted):
        curves += _train_some(bench, spec, wanted[len(curves) :], steps, tell)
    bench.close()
    return RangeTest(
        model=spec.model.name or spec.model.factory or "",
        optimizer=spec.optim.name,
        steps=steps,
        batch_size=spec.train.images_per_step,
        num_images=len(bench.splits.train),
        seconds=time.perf_counter() - began,
        depths=tuple(_results(bench, curves)),
    )


def find_here(
    spec: Spec, rates: Sequence[float], depths: Sequence[FreezeDepth], *, steps: int, tell: Callable[[str], None]
) -> RangeTest:
    """Run `find_learning_rate` in this process, on the GPU where there is one that the spec wants."""
    wants_gpu = spec.resources.gpus_per_worker != 0 and torch.cuda.is_available()
    group = Group(rank=0, world_size=1, local_rank=0, local_world_size=1, device=choose_device(0, wants_gpu))
    return find_learning_rate(spec, rates, depths, group, steps=steps, tell=tell)


def range_spec(spec: Spec, device: torch.device) -> Spec:
    """Return `spec` as the range test trains it: constant rates, nothing that changes a lane, no test images.

    On a GPU each worker's share of a batch is computed in turn, for a whole one may not fit. Fractions of the training
    images stay out of the training.
    """
    workers = spec.resources.num_workers
    parts = 1 if device.type == "cpu" else workers.max if isinstance(workers, ElasticWorkers) else workers
    sources = {"data.val": spec.data.val, "data.test": spec.data.test}
    return replace(
        spec,
        {
            **{key: None for key, value in sources.items() if not isinstance(value, float)},
            "optim.schedule": "constant",
            "optim.warmup_epochs": 0.0,
            "train.accumulation_steps": spec.train.accumulation_steps * parts,
            "train.unfreeze": None,
            "train.early_stopping": None,
            "train.ema_decay": None,
            "resources.num_workers": 1,
            "sweep": None,
        },
    )


def searched_depths(spec: Spec) -> list[FreezeDepth]:
    """Return the freeze depths that the spec's sweep lists; without one, the spec's own."""
    domain = spec.sweep.space.get("model.freeze_depth") if spec.sweep else None
    listed = domain is not None and domain.kind in ("grid", "choice")
    return list(domain.values) if domain is not None and listed else [spec.model.freeze_depth]


def _train_some(
    bench: Workbench,
    spec: Spec,
    wanted: Sequence[tuple[FreezeDepth, float]],
    steps: int,
    tell: Callable[[str], None],
) -> list[tuple[FreezeDepth, Curve]]:
    """Train lanes for the first of `wanted`; return their depths and curves. The lanes themselves are forgotten."""
    trials = _build(bench, spec, wanted)
    waiting = len(wanted) - len(trials)
    tell(f"{len(trials)} lanes train side by side" + (f", {waiting} more wait for memory" if waiting else ""))
    _train(bench, trials, steps)
    return [
        (trial.depth, Curve(trial.lane.spec.optim.learning_rate, tuple(trial.losses), trial.ended)) for trial in trials
    ]


def _build(bench: Workbench, spec: Spec, wanted: Sequence[tuple[FreezeDepth, float]]) -> list[_Trial]:
    """Build lanes for the first of `wanted`, as many as memory holds."""
    built: list[_Trial] = []
    for depth, rate in wanted:
        if built and not has_room(built[-1].lane, 1):
            break
        own = replace(spec, {"model.freeze_depth": depth, "optim.learning_rate": rate})
        built.append(_Trial(bench.make_lane(f"{depth} {rate:g}", own), depth))
    return built


def _train(bench: Workbench, trials: Sequence[_Trial], steps: int) -> None:
    """Train all of them for `steps` steps, but those that end before."""
    rounds = {max(1, round(after * steps)): share for after, share in ROUNDS}
    for step, epoch, batches in _steps(bench, {trial.lane.depth for trial in trials}, steps):
        going = [trial for trial in trials if trial.ended is None]
        if not going:
            return
        lanes = [trial.lane for trial in going]
        bench.cohort.train_epoch(lanes, epoch, batches, bench.kept_in(epoch), lambda _: None)
        _note_losses(going)
        if step + 1 in rounds:
            _end_those_behind(going, rounds[step + 1])


def _steps(bench: Workbench, depths: set[int], steps: int) -> Iterator[tuple[int, int, Iterator[Batch]]]:
    """Yield each step with its epoch and an iterator of its one batch."""
    epochs = -(-steps // bench.steps_per_epoch)
    for epoch in range(epochs):
        batches = bench.epoch_batches(epoch, 0, depths, num_epochs=epochs)
        for step in range(epoch * bench.steps_per_epoch, min(steps, (epoch + 1) * bench.steps_per_epoch)):
            yield step, epoch, islice(batches, 1)


def _note_losses(trials: Sequence[_Trial]) -> None:
    """Take the loss of the last step off each lane's tally, and end the lanes that have diverged."""
    sums = torch.stack([trial.lane.tally.sums for trial in trials]).tolist()
    for trial, (loss, _, _, count) in zip(trials, sums, strict=True):
        trial.lane.tally.reset()
        trial.losses.append(loss / count)
        trial.ended = "diverged" if has_diverged(trial.losses) else None


def _end_those_behind(trials: Sequence[_Trial], share: float) -> None:
    """Let `share` of the lanes of each depth go on, those with the lowest recent losses."""
    for depth in {trial.lane.depth for trial in trials}:
        own = [trial for trial in trials if trial.lane.depth == depth and trial.ended is None]
        own.sort(key=lambda trial: recent_loss(trial.losses))
        for trial in own[max(FEWEST, math.ceil(share * len(own))) :]:
            trial.ended = "behind"


def _results(bench: Workbench, curves: Sequence[tuple[FreezeDepth, Curve]]) -> Iterator[DepthResult]:
    staged = bench.network.staged
    for depth in dict.fromkeys(depth for depth, _ in curves):
        frozen = staged.resolve_depth(depth)
        trained = sum(stage.num_parameters for stage in staged.stages[frozen:])
        yield DepthResult(depth, frozen, trained, tuple(curve for own, curve in curves if own == depth))
