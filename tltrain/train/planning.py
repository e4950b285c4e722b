"""What a sweep would take: its trials, epochs and steps, and hours estimated from a short calibration."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from tltrain.spec.schema import Spec
from tltrain.spec.space import Trial, apply, check_all, propose
from tltrain.train.calibration import Calibration, calibrate
from tltrain.train.estimate import LanePlan, estimate
from tltrain.train.explain import check, explain
from tltrain.train.keeping import Tier, describe
from tltrain.train.lane_group import bench_key
from tltrain.train.tap_rates import measure_tiers

GIGABYTE = 10**9
MAX_CALIBRATED = 3
"""Sets of trials with different images or networks that are measured."""


@dataclass(frozen=True)
class DepthPlan:
    """The trials that freeze the same stages. forward_shared: share of the forward pass below their cut."""

    frozen_up_to: str
    depth: int
    trials: int
    forward_shared: float
    step_ms_per_image: float


@dataclass(frozen=True)
class Plan:
    """A sweep worked out. Hours are estimates from `batches` batches, without the start of processes."""

    trials: int
    search: str
    epochs: int
    steps: int
    groups: int
    workers_per_group: int
    depths: tuple[DepthPlan, ...]
    batches: int
    decode_ms_per_image: float
    frozen_ms_per_image: float
    hours_in_lanes: float
    hours_trial_by_trial: float
    kept: tuple[str, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)


@dataclass(frozen=True)
class _Bench:
    """Trials that may share a workbench, with the depth of each."""

    specs: tuple[Spec, ...]
    depths: tuple[int, ...]

    @property
    def lanes(self) -> list[LanePlan]:
        return [LanePlan(depth, spec.train.epochs) for depth, spec in zip(self.depths, self.specs, strict=True)]


@dataclass(frozen=True)
class _Measured:
    bench: _Bench
    costs: Calibration
    tiers: tuple[Tier, ...]


def plan(spec: Spec, *, groups: int, workers: int, device: torch.device) -> Plan:
    """Work `spec` out, on `groups` worker groups of `workers` workers like this machine's; nothing is trained.

    Reads a few batches of images and runs them through the network with random weights on `device`.
    Raises SpecError or DataError with what is wrong.
    """
    trials = proposed(spec)
    names, benches = _benches(trials, spec)
    groups = min(groups, len(trials))
    measured = [_measure(bench, workers, device) for bench in benches[:MAX_CALIBRATED]]
    first = measured[0].costs
    epochs = sum(lane.epochs for bench in benches for lane in bench.lanes)
    # Those that are not measured are taken to cost per epoch what the measured ones do.
    scale = epochs / sum(lane.epochs for each in measured for lane in each.bench.lanes)
    alone_s = [estimate(each.costs, [lane], each.tiers).total_s for each in measured for lane in each.bench.lanes]
    together = [estimate(each.costs, each.bench.lanes, each.tiers) for each in measured]
    own_s = [seconds for each in together for seconds in each.own_s]
    shared_s = sum(each.shared_s for each in together)
    lanes_s = (shared_s + sum(own_s)) * scale / groups + _after_s(spec, max(own_s), groups)
    one_by_one_s = sum(alone_s) * scale / groups + _after_s(spec, max(alone_s), groups)
    return Plan(
        trials=len(trials),
        search=spec.sweep.search if spec.sweep else "none",
        epochs=epochs,
        steps=round(
            scale * sum(lane.epochs * each.costs.steps_per_epoch for each in measured for lane in each.bench.lanes)
        ),
        groups=groups,
        workers_per_group=workers,
        depths=tuple(_depth_plans(benches[0], first, names)),
        batches=first.batches,
        decode_ms_per_image=1000 * first.decode_s,
        frozen_ms_per_image=1000 * sum(cut.seconds for cut in first.cuts),
        hours_in_lanes=lanes_s / workers / 3600,
        hours_trial_by_trial=one_by_one_s / workers / 3600,
        kept=tuple(describe(together[0].decision)),
        notes=tuple(_notes(spec, len(benches))),
    )


def proposed(spec: Spec) -> list[Trial]:
    """Return the trials of `spec`; those that Optuna would propose are drawn at random instead. One without a sweep."""
    if spec.sweep is None:
        return [Trial(spec.name, {})]
    if spec.sweep.search == "optuna":
        spec = spec.model_copy(update={"sweep": spec.sweep.model_copy(update={"search": "random"})})
    trials = propose(spec)
    check_all(spec, trials)
    return trials


def _benches(trials: Sequence[Trial], spec: Spec) -> tuple[dict[int, tuple[str, float]], list[_Bench]]:
    """Return the first bench's depths, each with name and shared part of the forward pass, and all benches."""
    by_key: defaultdict[str, list[Spec]] = defaultdict(list)
    for trial in trials:
        own = apply(spec, trial)
        by_key[bench_key(own)].append(own)
    benches = []
    for specs in by_key.values():
        staged = check(specs[0])[1].staged
        benches.append(_Bench(tuple(specs), tuple(staged.resolve_depth(own.model.freeze_depth) for own in specs)))
    stages = explain(benches[0].specs[0]).stages
    names = {0: ("nothing", 0.0)}
    for depth, stage in enumerate(stages, start=1):
        names[depth] = (stage.name, names[depth - 1][1] + stage.forward_share)
    return names, benches


def _measure(bench: _Bench, workers: int, device: torch.device) -> _Measured:
    lanes = dict(zip(bench.depths, bench.specs, strict=True))
    cache = bench.specs[0].cache
    costs = calibrate(lanes, num_workers=workers, device=device)
    directory = Path(cache.dir).expanduser() if cache.dir else None
    tiers = measure_tiers(directory, round(cache.budget_gb * GIGABYTE), device) if cache.budget_gb else ()
    return _Measured(bench, costs, tiers)


def _after_s(spec: Spec, trial_s: float, groups: int) -> float:
    """Return what follows the search where a trial takes `trial_s`: the best over more seeds, the winner once more."""
    if spec.sweep is None:
        return 0.0
    confirm = spec.sweep.confirm
    return trial_s * (1 + (confirm.top * (confirm.seeds - 1) / groups if confirm else 0))


def _depth_plans(bench: _Bench, costs: Calibration, names: Mapping[int, tuple[str, float]]) -> list[DepthPlan]:
    return [
        DepthPlan(names[depth][0], depth, bench.depths.count(depth), names[depth][1], 1000 * cost.step_s)
        for depth, cost in sorted(costs.lanes.items())
    ]


def _notes(spec: Spec, num_benches: int) -> list[str]:
    notes = ["without the start of processes, checkpoints and what workers tell each other"]
    if num_benches > 1:
        measured = min(num_benches, MAX_CALIBRATED)
        notes.append(f"{num_benches} sets of trials share no images or network; {measured} were measured")
    if spec.train.unfreeze_phases:
        notes.append("stages that are unfrozen later are counted as frozen throughout")
    if spec.sweep is not None and spec.sweep.search == "optuna":
        notes.append("Optuna proposes other values than those drawn here")
    if spec.sweep is not None and spec.sweep.scheduler not in ("fifo", "pbt", "pb2"):
        notes.append(f"{spec.sweep.scheduler} ends trials early, which is not counted: this is the most it takes")
    if spec.sweep is not None and spec.sweep.time_budget_s is not None:
        notes.append(f"sweep.time_budget_s ends the search after {spec.sweep.time_budget_s:g} s at the latest")
    return notes
