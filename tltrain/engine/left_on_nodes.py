"""What workers that died have left on the disks of the nodes, deleted there once the run's workers have all ended."""

from __future__ import annotations

import logging

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tltrain.run_folder import RunFolder
from tltrain.scratch import LOADER, delete_abandoned
from tltrain.train.node_folder import delete_left_behind

logger = logging.getLogger(__name__)

DEATH_S = 10.0
"""How long Ray may take to end processes that it was told to kill."""
LIMIT_S = 30.0
"""How long the nodes may take for all of it."""


def delete_on_nodes(run: RunFolder, *, wait_s: float = DEATH_S) -> None:
    """Delete what the processes of `run` have left on each node of the cluster, in a small task there.

    That is the folder that they have shared, and those for the sockets of their loaders.

    No worker of the run may be about to start; those that were killed may take `wait_s` to be gone. A node that does
    not answer, or where a process goes on, is named in a warning; the next run that comes to it deletes what is there.
    """
    task = ray.remote(num_cpus=0, max_retries=0)(_delete_here)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    places = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
    tasks = [task.options(scheduling_strategy=place).remote(run.uri, wait_s) for place in places]
    ray.wait(tasks, num_returns=len(tasks), timeout=LIMIT_S)
    for node, each in zip(nodes, tasks, strict=True):
        try:
            reason = "" if ray.get(each, timeout=0) else "a process still uses them"
        except RayError as error:
            reason = str(error).strip().splitlines()[-1]
            ray.cancel(each, force=True)
        if reason:
            logger.warning("temporary files of the run may be left on node %s: %s", node["NodeManagerHostname"], reason)


def _delete_here(run_uri: str, wait_s: float) -> bool:
    is_gone = delete_left_behind(run_uri, wait_s)
    delete_abandoned(LOADER)
    return is_gone
