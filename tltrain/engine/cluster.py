"""Joining a Ray cluster, or starting a private one on this machine for the length of a run.

Nothing here needs torch, so that a cluster can start while torch is imported, which takes seconds.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import ray
from ray._private import ray_constants, services
from ray.exceptions import RayError

from tltrain.engine.line import ROOM_WITHIN_S
from tltrain.engine.plan import Node, Request, find_shortage, make_request
from tltrain.errors import LostError, ResourceError
from tltrain.machine import devices_text
from tltrain.run_folder import RunFolder
from tltrain.scratch import RAY, scratch_folder
from tltrain.spec.schema import ResourcesSpec

logger = logging.getLogger(__name__)

LONGEST_SOCKET = "ray/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store"
RETURN_S = 60.0
"""Seconds that a lost node has to come back where `resources.wait_s` gives it fewer."""

_has_asked = threading.Event()
"""Whether this process has asked the cluster that it has joined for nodes."""

# Set before Ray is first used: quieter, quicker to notice the end of a worker, and nothing sent to anybody.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "40",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": f"{ROOM_WITHIN_S:g}",
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5",  # one that stands still does not leave its process group at all
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Trials, brokers and controllers are processes that take no CPU; Ray warns about their number on stdout.
    "RAY_worker_maximum_startup_concurrency": "16",
}
# For the processes of a cluster of our own, by inheritance: workers train in a thread, whose freed memory glibc keeps
# only where all threads share one arena (see tltrain.train.allocator).
PRIVATE_ENVIRONMENT = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # Else Ray takes the machine's outer address, and listens on every interface. On macOS it does so by itself.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
}


@contextlib.contextmanager
def connected() -> Iterator[None]:
    """Join the cluster that RAY_ADDRESS names (as in a Ray job), or start one on this machine, for a `with` block.

    The private cluster listens with a token of its own that stands in no file, and its folder goes with it. A process
    that is connected already stays so.
    """
    if ray.is_initialized():
        yield
        return
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with _joined() if os.environ.get("RAY_ADDRESS") else private_cluster():
        yield


@contextlib.contextmanager
def _joined() -> Iterator[None]:
    try:
        ray.init(**_ray_logging())
    except ConnectionError as error:
        address = os.environ["RAY_ADDRESS"]
        raise ResourceError(
            f"no Ray cluster answers at RAY_ADDRESS={address}: {error}",
            "Start one there, give its token in RAY_AUTH_TOKEN, or unset RAY_ADDRESS to run on this machine",
        ) from error
    _has_asked.clear()
    try:
        yield
    finally:
        _ask_for_nothing()
        ray.shutdown()


@contextlib.contextmanager
def private_cluster() -> Iterator[None]:
    """Start a cluster on this machine for a `with` block; it ends with this process at the latest."""
    # Ray turns token mode on by itself where RAY_AUTH_MODE is unset; with a token at hand it writes none to a file.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    for name, value in {**ENVIRONMENT, **PRIVATE_ENVIRONMENT}.items():
        os.environ.setdefault(name, value)
    with scratch_folder(RAY, sockets=LONGEST_SOCKET) as folder, _on_loopback(), _apart():
        try:
            ray.init(
                address="local",
                include_dashboard=False,
                _temp_dir=f"{folder}/ray",  # which Ray opens to every user of the machine
                **_ray_logging(),
            )
            yield
        finally:
            ray.shutdown()


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """Let Ray take 127.0.0.1 for this machine's address; it has read what its environment says of that before."""
    before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextlib.contextmanager
def _apart() -> Iterator[None]:
    """Have Ray start its processes outside of this one's group.

    A signal to the whole group, such as timeout(1) sends, must not end Ray: the program is still to write a checkpoint.
    """
    before = services.ConsolePopen
    services.ConsolePopen = functools.partial(before, start_new_session=True)
    try:
        yield
    finally:
        services.ConsolePopen = before


def _ray_logging() -> dict[str, Any]:
    """Options of ray.init: what Ray and its workers say is shown where all is wanted (`-v`), else errors alone."""
    is_verbose = logging.getLogger("tltrain").isEnabledFor(logging.DEBUG)
    return {"log_to_driver": is_verbose, "logging_level": logging.INFO if is_verbose else logging.ERROR}


def live_nodes() -> list[Node]:
    """Return the nodes that are alive now, with all they have."""
    return [
        Node(node["NodeManagerHostname"], int(resources.get("CPU", 0)), int(resources.get("GPU", 0)))
        for node in ray.nodes()
        if node["Alive"] and (resources := node["Resources"]) is not None
    ]


def describe_devices() -> str:
    """Return what the cluster has to compute with, as people say it."""
    nodes = [node["Resources"] or {} for node in ray.nodes() if node["Alive"]]
    gpus = [kind for resources in nodes for kind in [_gpu_kind(resources)] * int(resources.get("GPU", 0))]
    return devices_text(sum(int(resources.get("CPU", 0)) for resources in nodes), gpus, len(nodes))


def _gpu_kind(resources: Mapping[str, float]) -> str:
    kinds = [name.partition(":")[2] for name in resources if name.startswith("accelerator_type:")]
    return kinds[0] if kinds else "GPU"


def wait_for_room_again(
    resources: ResourcesSpec, run: RunFolder | None = None, ended: threading.Event | None = None
) -> Request:
    """Return the request after a loss, waiting at least RETURN_S for a node to come back or to be replaced.

    run: where it is noted that this waits, why, and until when. ended: nobody waits any more once it is set. Raises
    LostError where none comes: the request did fit, so it is no mistake of the user's.
    """
    try:
        return wait_for_room(resources.model_copy(update={"wait_s": max(resources.wait_s, RETURN_S)}), run, ended)
    except ResourceError as error:
        raise LostError(
            f"a node was lost, and none came in its place: {error.problems[0].what}",
            "Run the same command again when it is back, or with fewer workers",
        ) from error


def wait_for_room(
    resources: ResourcesSpec, run: RunFolder | None = None, ended: threading.Event | None = None
) -> Request:
    """Return the request as the cluster can hold it, waiting up to `resources.wait_s` for nodes to join.

    run: where it is noted that this waits, why, and until when. ended: nobody waits any more once it is set. Raises
    ResourceError with the arithmetic where it still does not fit then.
    """
    ended = ended or threading.Event()
    deadline = time.monotonic() + resources.wait_s
    told = False
    while True:
        nodes = live_nodes()
        request = make_request(resources, nodes)
        shortage = find_shortage(request, nodes)
        if shortage is None:
            if told and run is not None:
                run.update(waiting=None)
            return request
        if ended.is_set() or time.monotonic() >= deadline:
            raise ResourceError(shortage)
        if not told:
            logger.info("waiting up to %g s for nodes: %s", resources.wait_s, shortage.what)
            if run is not None:
                until = time.time() + deadline - time.monotonic()
                run.update(waiting={"for": f"nodes: {shortage.what}", "until": until})
            told = True
        ask_autoscaler(request)
        ended.wait(min(2.0, max(0.0, deadline - time.monotonic())))


def ask_autoscaler(request: Request, groups: int = 1) -> None:
    """Ask a cluster that can grow for nodes that hold so many groups of workers, until this process leaves it.

    There is one such wish in a cluster: what asks later, as Ray Train does for whatever runs, takes its place. So this
    is called again and again while somebody waits.
    """
    from ray.autoscaler.sdk import request_resources

    bundle = {"CPU": request.cpus_per_worker} | ({"GPU": request.gpus_per_worker} if request.gpus_per_worker else {})
    request_resources(bundles=[bundle] * (request.min_workers * groups))
    _has_asked.set()


def _ask_for_nothing() -> None:
    """Withdraw what this process has asked for: Ray would keep such nodes up for ever, idle and paid for."""
    from ray.autoscaler.sdk import request_resources

    if not _has_asked.is_set():
        return
    try:
        request_resources(bundles=[])
    except RayError as error:  # as where the head is gone
        logger.warning("the nodes that were waited for are still asked for: %s", error)
