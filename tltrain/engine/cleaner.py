"""Ray Train's cleaner of placement groups, made to end after its driver's death wherever that happens.

It is an actor that outlives everything, and ends once the controller is dead. Ray asks it to watch with a call of its
own, which never comes where the driver dies while the actor's process still starts; and what it asks about the
controller is the dashboard, which never answers on a cluster that has none.
"""

from __future__ import annotations

from typing import Any

import ray
import ray.train.torch
from ray._private import state
from ray.exceptions import RayError
from ray.train.v2._internal.callbacks import placement_group_callback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.context import TrainRunContext
from ray.train.v2._internal.execution.controller import placement_group_cleaner
from ray.util.state.exception import RayStateApiException


class PlacementGroupCleaner(placement_group_cleaner.PlacementGroupCleaner):
    """Watches the controller from its own start on; asked to watch, it says that it does already."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        placement_group_cleaner.is_actor_alive = _is_actor_alive  # pyright: ignore[reportPrivateImportUsage]
        self.start_monitoring()


def _is_actor_alive(actor_id: str, timeout: float) -> bool:
    """Ask the head itself; an error of which Ray's loop knows means that it asks again."""
    try:
        entry = state.actors(actor_id)
    except RayError as error:
        raise RayStateApiException(str(error)) from error
    return bool(entry) and entry["State"] != "DEAD"


class CleanerCallback(PlacementGroupCleanerCallback):
    """Starts this cleaner instead of Ray's own."""

    def after_controller_start(self, train_run_context: TrainRunContext) -> None:
        """Start the cleaner; runs in the controller's process."""
        placement_group_callback.PlacementGroupCleaner = PlacementGroupCleaner  # pyright: ignore[reportPrivateImportUsage]
        super().after_controller_start(train_run_context)


class Trainer(ray.train.torch.TorchTrainer):
    """Ray's trainer for torch, with this cleaner."""

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [CleanerCallback() if type(each) is PlacementGroupCleanerCallback else each for each in callbacks]
