"""Ray Train's cleaner of placement groups, made to do its work and to end wherever a controller dies.

It is an actor that outlives the controller, removes what that had reserved, and ends. Ray asks it to watch with a call
of its own, which never comes where the driver dies while the actor's process still starts; it asks the dashboard about
the controller, which never answers on a cluster that has none; it hears of what is reserved only once all workers run;
and it ends without a look where a controller ends by itself, which forgets a group whose workers die just when they
begin to train. What was reserved stayed so, and no other group of workers found room.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ray
import ray.train.torch
from ray._private import state
from ray.exceptions import RayError
from ray.train.v2._internal.callbacks import placement_group_callback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.context import TrainRunContext
from ray.train.v2._internal.execution.controller import placement_group_cleaner
from ray.util.placement_group import PlacementGroup
from ray.util.state.exception import RayStateApiException

from tltrain.engine.reserved import placement_groups


class PlacementGroupCleaner(placement_group_cleaner.PlacementGroupCleaner):
    """Watches the controller from its own start on; asked to watch, it says that it does already."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        placement_group_cleaner.is_actor_alive = _is_actor_alive  # pyright: ignore[reportPrivateImportUsage]
        self.start_monitoring()

    def stop(self) -> None:
        """End, as the controller asks for when it has shut its workers down; what it has forgotten is removed first."""
        self._stop_monitor_thread()
        self._cleanup_placement_group(None)
        super().stop()

    def _cleanup_placement_group(self, placement_group: PlacementGroup | None) -> None:
        """Remove all that the controller has made, whether it has told of it or not."""
        for each in _made_by(self._controller_actor_id):
            super()._cleanup_placement_group(each)


def _made_by(actor_id: str) -> Iterator[PlacementGroup]:
    for made in placement_groups():
        if made.creator_actor_id.hex() == actor_id:
            yield PlacementGroup(ray.PlacementGroupID(made.placement_group_id))


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
