"""Workers for which others leave no room: no failure but a wait, with a reason, a limit, and a line in status."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

import ray
from ray._private import state
from ray.core.generated.gcs_pb2 import PlacementGroupTableData  # pyright: ignore[reportAttributeAccessIssue]

from tltrain.engine.plan import Request
from tltrain.engine.reserved import placement_groups
from tltrain.errors import Problem, ResourceError
from tltrain.run_folder import RunFolder
from tltrain.spec.schema import ResourcesSpec

logger = logging.getLogger(__name__)

ROOM_WITHIN_S = 30.0
"""How long workers may be without a place before others take their work, or Ray Train asks for it anew."""


class NoRoomError(RuntimeError):
    """Workers have not started, since there was no place for them."""


def has_no_room(failures: Sequence[BaseException]) -> bool:
    """Whether workers did not start since there was no place for them."""
    names = ("NoRoomError", "WorkerGroupStartupTimeoutError")  # the latter is Ray Train's, and means nothing else
    return bool(failures) and all(type(failure).__name__ in names for failure in failures)


def has_place(process: Any) -> bool:
    """Whether an actor has got its resources, though it may still be starting."""
    entry = state.actors(process._actor_id.hex())
    return bool(entry) and entry["Address"]["Port"] != 0


def have_places() -> bool | None:
    """Whether the workers that Ray Train starts for this program have got their resources; None if it starts none."""
    mine = ray.get_runtime_context().get_job_id()
    states = {group.state for group in placement_groups() if group.creator_job_id.hex() == mine}
    if PlacementGroupTableData.CREATED in states:
        return True
    return False if PlacementGroupTableData.PENDING in states else None


def used_by_others(request: Request, seconds: float) -> ResourceError:
    """Return the error of what has waited so long for room."""
    return ResourceError(
        Problem(
            f"others have used what {request} need for {seconds:g} s",
            "Run the same command again when there is room, or wait longer",
            key="resources.queue_timeout_s",
        )
    )


class Line:
    """Where a run stands while others use what it needs, as its folder tells; `resources.queue_timeout_s` at most."""

    def __init__(self, resources: ResourcesSpec, request: Request, run: RunFolder) -> None:
        self._limit_s, self._request, self._run = resources.queue_timeout_s, request, run
        self._deadline: float | None = None

    @property
    def is_waiting(self) -> bool:
        """Whether it waits now."""
        return self._deadline is not None

    def wait(self) -> None:
        """Say that it waits, the first time. Raises ResourceError where it has waited for too long."""
        if self._deadline is None:
            self._deadline = time.monotonic() + self._limit_s
            logger.info("others use the cluster; waiting up to %g s for room for %s", self._limit_s, self._request)
            reason = f"room for {self._request}, which others use"
            self._run.update(waiting={"for": reason, "until": time.time() + self._limit_s})
        elif time.monotonic() > self._deadline:
            self.leave()
            raise used_by_others(self._request, self._limit_s)

    def leave(self) -> None:
        """It waits no more."""
        if self._deadline is not None:
            self._deadline = None
            self._run.update(waiting=None)
