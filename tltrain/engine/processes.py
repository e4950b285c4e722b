"""The processes that attend to a sweep's trials: a number of the sweep's own, for which nothing is reserved.

Ray Tune reserves a placement group per process. Bounded so, a sweep's processes would wait for those of another sweep
on the same node, or for ever for what a lost process has left reserved.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import ray
from ray import tune
from ray.air.execution import FixedResourceManager
from ray.air.execution.resources.fixed import FixedAcquiredResources
from ray.exceptions import RayActorError
from ray.tune import tune as tune_module
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial as TuneTrial
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

PROCESS = "process"
"""What a trial asks of the sweep's budget; the cluster knows nothing of it."""


class _Here(FixedAcquiredResources):
    """Starts an actor on this process's node, beside the folder that Ray Tune shares with it; it takes no CPU."""

    def _annotate_remote_entity(self, entity: Any, bundle: dict[str, float], bundle_index: int) -> Any:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        return entity.options(num_cpus=0, scheduling_strategy=here)


class _Processes(FixedResourceManager):
    _resource_cls = _Here  # pyright: ignore[reportAssignmentType]


class _Controller(TuneController):
    """Tries a trial again whose process dies while it takes the trial up, and writes no trials down.

    Ray Tune tells of such a death twice, as that of the process and as that of the call in it. The first puts the trial
    back into the queue, and the second would give it up there. The run folder is the record of a sweep: what Ray Tune
    would write at its end, a text of all that it knows of every trial, is never read.
    """

    def _get_trial_checkpoints(self) -> dict[str, str]:
        return {}

    def _trial_task_failure(self, trial: TuneTrial, exception: Exception) -> None:
        if trial in self._resetting_trials and trial.status != TuneTrial.RUNNING:
            self._resetting_trials.remove(trial)
            if isinstance(exception, RayActorError):
                return
        super()._trial_task_failure(trial, exception)


@contextlib.contextmanager
def bounded(processes: int) -> Iterator[None]:
    """Have Ray Tune attend to trials made by `with_process` in so many processes, for a `with` block."""
    make = functools.partial(_Processes, {PROCESS: float(processes)})
    make_controller = functools.partial(_Controller, resource_manager_factory=make)
    tune_module.TuneController = make_controller  # pyright: ignore[reportPrivateImportUsage, reportAttributeAccessIssue]
    try:
        yield
    finally:
        tune_module.TuneController = TuneController  # pyright: ignore[reportPrivateImportUsage]


def with_process(trainable: Any) -> Any:
    """Return the trainable with the request for one process."""
    return tune.with_resources(trainable, tune.PlacementGroupFactory([{PROCESS: 1.0}]))
