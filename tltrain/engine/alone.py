"""A worker group of one worker without Ray Train: one process instead of seven, and there in a third of the time.

Nothing here needs torch, so that the processes can start while the driver imports it, which takes seconds.
"""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError

from tltrain.engine.cluster import live_nodes
from tltrain.engine.line import has_place
from tltrain.engine.plan import Request, capacity, make_request
from tltrain.run_folder import RunFolder
from tltrain.spec.schema import Spec

if TYPE_CHECKING:
    from tltrain.train.distributed import Group

Worker = Callable[[dict[str, Any], "Group"], Any]

PING_EVERY_S = 2.0
HUNG_AFTER_S = 40.0
"""How long a worker may leave a ping unanswered."""
STARTED_WITHIN_S = 600.0
"""How long a worker's process may take to start once it has its place."""
_LOOK_EVERY_S = 1.0


class WorkerHungError(RuntimeError):
    """A worker does not answer any more."""


class _Alone:
    """The worker's process; it answers pings while it works."""

    def __init__(self) -> None:
        import tltrain.engine.lane_worker  # noqa: F401  seconds of imports, while others get ready too

    def run(self, worker: Worker, config: dict[str, Any]) -> Any:
        """Call `worker` with its config and the group of this process alone."""
        import torch

        from tltrain.train.distributed import Group, choose_device

        has_gpu = bool(ray.get_gpu_ids()) and torch.cuda.is_available()
        return worker(config, Group(0, 1, 0, 1, choose_device(0, has_gpu)))

    def ping(self) -> str:
        """Say that the process goes on, and which one it is."""
        return f"process {os.getpid()} on {socket.gethostname()}"


def prestart(spec: Spec) -> list[Any]:
    """Start the processes of a sweep's groups of one worker, before it is known whether it can begin.

    Returns their handles; none where groups are larger, trials have workers of their own, or there is no room now.
    """
    assert spec.sweep is not None
    nodes = live_nodes()
    request = make_request(spec.resources, nodes)
    room = sum(capacity(request, node) for node in nodes)
    if request.max_workers > 1 or spec.sweep.isolation == "process":
        return []
    return [start_process(request) for _ in range(min(room, spec.sweep.num_trials or room))]


def start_process(request: Request) -> Any:
    """Start the process of a worker with its resources and return its handle; `run_alone` takes it up."""
    options = {
        "num_cpus": request.cpus_per_worker,
        "num_gpus": request.gpus_per_worker,
        "max_concurrency": 2,
        "scheduling_strategy": "SPREAD" if request.placement == "spread" else "DEFAULT",
    }
    process: Any = ray.remote(_Alone).options(**options)
    return process.remote()


def run_alone(
    worker: Worker,
    make_config: Callable[[], dict[str, Any]],
    spec: Spec,
    run: RunFolder,
    process: Any,
    *,
    look: Callable[[bool], None],
) -> Any:
    """Call `worker` in a process that `start_process` gave, and return its result; the process ends with it.

    It gets the config that is made once it has started, with the spec, the run's address and this folder. look: is
    told every second until then whether the process has got its place. Raises a RayError, whose `cause` is the worker's
    own error, WorkerHungError, or what `look` raises.
    """
    try:
        name = _wait_for_start(process, look)
        config = {"spec": spec.model_dump_json(), "run": run.uri, "python_path": os.getcwd(), **make_config()}
        result = process.run.remote(worker, config)
        _watch(process, result, name=name)
        return ray.get(result)
    finally:
        ray.kill(process)


def _wait_for_start(process: Any, look: Callable[[bool], None]) -> str:
    """Wait until the process answers, and return its name; a failed start shows in its result."""
    answer, deadline = process.ping.remote(), math.inf
    while not ray.wait([answer], timeout=_LOOK_EVERY_S)[0]:
        is_placed = has_place(process)
        look(is_placed)
        if is_placed:
            deadline = min(deadline, time.monotonic() + STARTED_WITHIN_S)
        if time.monotonic() > deadline:
            raise WorkerHungError(f"a worker has not started within {STARTED_WITHIN_S:g} s")
    try:
        return ray.get(answer)
    except RayError:
        return "its process"


def _watch(process: Any, result: Any, *, name: str) -> None:
    """Wait for the result as long as pings are answered."""
    while not ray.wait([result], timeout=PING_EVERY_S)[0]:
        answered, _ = ray.wait([result, process.ping.remote()], timeout=HUNG_AFTER_S)
        if not answered:
            raise WorkerHungError(f"a worker ({name}) has not answered for {HUNG_AFTER_S:g} s")
