"""Ray Tune's schedulers over lanes: the same decisions, with all trials taking turns in a few processes."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    HyperBandScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)

from tltrain.engine.turns import TakesTurns
from tltrain.errors import Problem, SpecError
from tltrain.spec.schema import Spec
from tltrain.spec.space import mutations, settled

if TYPE_CHECKING:
    from tltrain.engine.pb2 import Pb2

logger = logging.getLogger(__name__)

GROWING = ("pbt", "pb2")
Described = tuple[str, list[Any]]


def run_ahead(spec: Spec) -> int:
    """Return how many epochs lanes may train before their trials have asked for them.

    All of them where nothing stops a trial; else as many as pass before the scheduler's first decision, which may be
    to save the lane exactly there.
    """
    assert spec.sweep is not None
    epochs = spec.train.epochs
    if spec.sweep.isolation == "process" and spec.sweep.scheduler != "fifo":
        return 0  # workers that have begun a trial must not wait for one that Ray Tune has not come to
    return {"fifo": epochs, "hyperband": 1}.get(spec.sweep.scheduler, min(spec.sweep.grace_epochs, epochs))


def make_scheduler(spec: Spec, broker: Any) -> TrialScheduler:
    """Return the scheduler that `spec.sweep` names. `broker` is the broker's actor.

    pbt and pb2 may clone a trial into a worse one every `grace_epochs` epochs.
    Raises SpecError where it cannot work with this space, or a package is missing.
    """
    assert spec.sweep is not None
    sweep = spec.sweep
    epochs, grace = spec.train.epochs, min(sweep.grace_epochs, spec.train.epochs)
    compared_by: dict[str, Any] = {"time_attr": "epoch", "metric": sweep.metric, "mode": sweep.better}
    if sweep.scheduler == "fifo":
        return FIFOScheduler()
    if sweep.scheduler in GROWING:
        scheduler = _make_growing(spec, {**compared_by, "perturbation_interval": grace})
    elif sweep.scheduler == "asha":
        scheduler = _Asha(**compared_by, max_t=epochs, grace_period=grace)
    elif sweep.scheduler == "median":
        scheduler = _Median(**compared_by, grace_period=grace)
    else:
        scheduler = _HyperBand(**compared_by, max_t=epochs)
    scheduler.broker, scheduler.takes_turns = broker, sweep.isolation == "lanes"
    return scheduler


def _make_growing(spec: Spec, options: dict[str, Any]) -> _Pbt | Pb2:
    assert spec.sweep is not None
    name, mutable = spec.sweep.scheduler, mutations(spec)
    if not mutable:
        raise SpecError(
            Problem(
                f"{name} changes numbers in mid-training and sweep.space has none that it could change",
                "Search optim.learning_rate or another number of optim, between bounds"
                + (" for pb2" * (name == "pb2")),
                key="sweep.space",
            )
        )
    common = {**options, "custom_explore_fn": _settler(spec), "log_config": False}
    if name == "pbt":
        return _Pbt(**common, hyperparam_mutations=_nested({key: to_tune(*each) for key, each in mutable.items()}))
    if importlib.util.find_spec("sklearn") is None:
        raise SpecError(
            Problem("pb2 needs scikit-learn", "Install it: pip install scikit-learn", key="sweep.scheduler")
        )
    from tltrain.engine.pb2 import Pb2

    return Pb2(**common, hyperparam_bounds=_nested({key: bounds[:2] for key, (_, bounds) in mutable.items()}))


def _nested(values: dict[str, Any]) -> dict[str, Any]:
    """Return `values` where a trial's configuration has its own."""
    return {"lane": {"values": values}}


def _settler(spec: Spec) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def settle(config: dict[str, Any]) -> dict[str, Any]:
        lane = config["lane"]
        return {**config, "lane": {**lane, "values": settled(spec, lane["values"])}}

    return settle


def to_tune(kind: str, arguments: list[Any]) -> Any:
    """Return a domain as Ray Tune writes it; listed values stay a list."""
    domains = {
        "uniform": tune.uniform,
        "loguniform": tune.loguniform,
        "quniform": tune.quniform,
        "randint": tune.randint,
    }
    return domains[kind](*arguments) if kind in domains else list(arguments)


class _Asha(TakesTurns, ASHAScheduler):
    pass


class _Median(TakesTurns, MedianStoppingRule):
    pass


class _Pbt(TakesTurns, PopulationBasedTraining):
    pass


class _HyperBand(TakesTurns, HyperBandScheduler):
    """A trial at a milestone is held until its whole bracket is there."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._held: set[Trial] = set()

    def _goes_on(self, trial: Trial, decision: str) -> bool:
        goes_on = decision == TrialScheduler.CONTINUE
        (self._held.discard if goes_on else self._held.add)(trial)
        return goes_on

    def _may_run(self, trial: Trial) -> bool:
        if trial.status != Trial.PAUSED:
            return trial.status == Trial.PENDING
        bracket, _ = self._trial_info[trial]
        return trial not in self._held or trial in bracket.trials_to_unpause
