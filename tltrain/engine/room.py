"""How many worker groups fit side by side, on this machine or on the cluster of RAY_ADDRESS; nothing is started."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

import torch

from tltrain.engine.cluster import connected, live_nodes
from tltrain.engine.plan import Node, capacity, find_shortage, make_request
from tltrain.errors import ResourceError
from tltrain.spec.schema import ResourcesSpec


@dataclass(frozen=True)
class Room:
    """What fits: `groups` of `workers` each. device: the kind a worker has, on this machine. where: for people."""

    groups: int
    workers: int
    device: torch.device
    where: str


def find_room(resources: ResourcesSpec) -> Room:
    """Return how many groups of `resources` fit. Raises ResourceError with the arithmetic where none does."""
    address = os.environ.get("RAY_ADDRESS")
    nodes, where = (_cluster_nodes(), f"the cluster at {address}") if address else ([_this_machine()], "this machine")
    request = make_request(resources, nodes)
    shortage = find_shortage(request, nodes)
    if shortage is not None:
        raise ResourceError(shortage)
    workers = min(request.max_workers, sum(capacity(request, node) for node in nodes))
    groups = sum(capacity(request, node) for node in nodes) // workers
    has_gpu = request.gpus_per_worker > 0 and torch.cuda.is_available()
    return Room(groups, workers, torch.device("cuda", 0) if has_gpu else torch.device("cpu"), where)


def _cluster_nodes() -> list[Node]:
    with connected():
        return live_nodes()


def _this_machine() -> Node:
    return Node(socket.gethostname(), os.cpu_count() or 1, torch.cuda.device_count())
