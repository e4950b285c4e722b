"""Does the request fit the cluster? A pure comparison, so that nothing waits for what will never be there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tltrain.errors import Problem
from tltrain.spec.schema import ResourcesSpec


@dataclass(frozen=True)
class Node:
    """What one node of a cluster has in all: CPU cores and GPUs."""

    name: str
    cpus: int
    gpus: int


@dataclass(frozen=True)
class Request:
    """A worker group: at least `min_workers`, at most `max_workers`, each with so many CPU cores and GPUs."""

    min_workers: int
    max_workers: int
    cpus_per_worker: int
    gpus_per_worker: int
    placement: str

    @property
    def is_elastic(self) -> bool:
        """Whether the number of workers may change."""
        return self.min_workers != self.max_workers

    def __str__(self) -> str:
        gpus = f" + {self.gpus_per_worker} GPU" if self.gpus_per_worker else ""
        return f"{self.min_workers} worker(s) of {self.cpus_per_worker} CPU{gpus}"


def make_request(resources: ResourcesSpec, nodes: Sequence[Node]) -> Request:
    """Return what `resources` asks for on a cluster of `nodes`: `auto` is one GPU per worker where there are any."""
    gpus = resources.gpus_per_worker
    if gpus == "auto":
        gpus = 1 if any(node.gpus for node in nodes) else 0
    count = resources.num_workers
    low, high = (count, count) if isinstance(count, int) else (count.min, count.max)
    return Request(low, high, resources.cpus_per_worker, gpus, resources.placement)


def capacity(request: Request, node: Node) -> int:
    """Return how many workers of `request` one node holds."""
    by_cpu = node.cpus // request.cpus_per_worker
    return by_cpu if request.gpus_per_worker == 0 else min(by_cpu, node.gpus // request.gpus_per_worker)


def find_shortage(request: Request, nodes: Sequence[Node]) -> Problem | None:
    """Return what is missing on `nodes`, with the arithmetic, or None where the request fits."""
    held = sum(capacity(request, node) for node in nodes)
    if held >= request.min_workers:
        return None
    listed = "; ".join(
        f"{node.name} has {node.cpus} CPU + {node.gpus} GPU, holds {capacity(request, node)}" for node in nodes[:8]
    )
    more = f"; and {len(nodes) - 8} more nodes" if len(nodes) > 8 else ""
    return Problem(
        f"{request} are asked for and the cluster holds {held} ({listed}{more})",
        f"Set resources.num_workers to {held}" if held else "Ask for less per worker, or use a larger cluster",
        key="resources",
    )
