"""`train.batch_size: auto` on a cluster: tried in a worker, with a worker's resources."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from tltrain.engine.cluster import connected, live_nodes, wait_for_room
from tltrain.engine.line import ROOM_WITHIN_S, used_by_others
from tltrain.engine.plan import Request, capacity
from tltrain.errors import RunError, TltrainError
from tltrain.spec.schema import Spec
from tltrain.train.batch_size import FoundBatchSize, fewest_workers, find_batch_size
from tltrain.train.distributed import choose_device

logger = logging.getLogger(__name__)


def find_on_worker(spec: Spec) -> FoundBatchSize:
    """Run `find_batch_size` in a process with one worker's CPU cores and GPUs, and return what it found.

    Raises ResourceError where the cluster holds no workers, or others have used what one needs for too long, or what it
    raised there.
    """
    with connected():
        request = wait_for_room(spec.resources)
        workers = fewest_workers(spec)
        on_node = max(capacity(request, node) for node in live_nodes())
        options: dict[str, Any] = {
            "num_cpus": request.cpus_per_worker,
            "num_gpus": request.gpus_per_worker,
            "max_retries": 0,
            "max_calls": 1,
        }
        task: Any = ray.remote(**options)(_find)
        try:
            found = task.remote(spec.model_dump_json(), workers, min(workers, on_node), os.getcwd())
            if not ray.wait([found], timeout=ROOM_WITHIN_S)[0]:
                _wait_on(found, request, spec.resources.queue_timeout_s)
            return ray.get(found)
        except RayTaskError as error:
            if isinstance(error.cause, TltrainError):
                raise error.cause from None
            raise
        except RayError as error:
            what = f"the process that tried batch sizes has ended: {error}"
            raise RunError(what, "Start it again, or give train.batch_size a number") from error


def _wait_on(found: Any, request: Request, limit_s: float) -> None:
    logger.info("batch sizes are still tried, or wait for room that others use; %g s at most", limit_s)
    if not ray.wait([found], timeout=limit_s)[0]:
        ray.cancel(found, force=True)
        raise used_by_others(request, limit_s)


def _find(spec_json: str, workers: int, processes: int, python_path: str) -> FoundBatchSize:
    if python_path not in sys.path:
        sys.path.insert(0, python_path)
    device = choose_device(0, bool(ray.get_gpu_ids()))
    return find_batch_size(Spec.model_validate_json(spec_json), device, num_workers=workers, processes=processes)
