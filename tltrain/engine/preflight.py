"""Before a job takes a GPU: do all nodes see the data, the storage and the weights, have one version, and can meet?"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tltrain.engine.cluster import wait_for_room_again
from tltrain.engine.node_check import DRIVER, FOLDER, Findings, look, meet
from tltrain.engine.plan import Node, Request, capacity
from tltrain.errors import Problem, ResourceError
from tltrain.run_folder import RunFolder
from tltrain.spec.schema import Spec

logger = logging.getLogger(__name__)

TOTAL_S, LOOK_S = 55.0, 40.0
"""Most seconds for all of it, and until the nodes have looked around, the start of their processes included."""
MEET_S = 15.0
"""Seconds for the nodes to meet, beside as many as they took to look around: on busy machines both take longer."""
LEAST_S = 10.0
"""Seconds that the nodes have for either in any case, however long the driver itself needs to look around."""
DEATH_S = 40.0
"""Seconds after which Ray has noticed, at the latest, that a node is lost whose task has failed."""
ROUNDS = 3
"""How often nodes are checked, where some are lost meanwhile."""
SAME_ENVIRONMENT = "Give all nodes the same image or environment"
LET_THEM_MEET = (
    "Open all ports between the nodes, and set GLOO_SOCKET_IFNAME (and NCCL_SOCKET_IFNAME for GPUs) to the network "
    "interface between them before `ray start`"
)


@dataclass
class Answers:
    """What nodes have answered, and what is wrong with those that have not."""

    found: dict[Place, Any] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    broken: list[Place] = field(default_factory=list)
    """Nodes whose task was broken off, be it by their end."""


@dataclass(frozen=True)
class Place:
    """A node that workers may be put on."""

    id: str
    host: str
    address: str

    def __str__(self) -> str:
        return f"node {self.host} ({self.address}, {self.id[:8]})"


def preflight(spec: Spec, run: RunFolder, request: Request) -> Request:
    """Check every node that may hold a worker, in small tasks without CPUs or GPUs; return the request.

    Where this node is the only one there is nothing to compare, and nothing is done. Where a node is lost meanwhile,
    the others are checked again, and the request is returned as these can hold it, which is waited for. A check takes
    less than a minute. Raises ResourceError with all problems, each naming its node, and LostError where nodes were
    lost and there is no room any more.
    """
    for number in range(1, ROUNDS + 1):
        places = _places(request)
        if all(place.id == ray.get_runtime_context().get_node_id() for place in places):
            break
        problems, broken = _check(spec, run, places)
        if not problems:
            break
        lost = _lost(places, broken)
        if not lost or number == ROUNDS:
            raise ResourceError(problems)
        logger.warning("%s was lost while it was checked", ", ".join(map(str, lost)))
        request = wait_for_room_again(spec.resources, run)
    return request


def _lost(places: Sequence[Place], broken: Sequence[Place]) -> list[Place]:
    """The nodes that are not alive any more; Ray may need some seconds to find that of those whose task was broken."""
    until = time.monotonic() + (DEATH_S if broken else 0)
    while True:
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        lost = [place for place in places if place.id not in alive]
        if lost or time.monotonic() > until:
            return lost
        time.sleep(0.5)


def _check(spec: Spec, run: RunFolder, places: Sequence[Place]) -> tuple[list[Problem], list[Place]]:
    """Let the nodes look around and meet; return all that is wrong, and the nodes whose task was broken off."""
    began = time.monotonic()
    mark = secrets.token_hex(4)
    arguments = spec.model_dump_json(), run.uri, mark
    has_weights = run.folder.exists("pretrained")
    folder = run.folder.child(FOLDER)
    folder.write_bytes(f"{mark}-{DRIVER}", b"")
    try:
        tasks = _start(look, [(place, (*arguments, place.id)) for place in places], has_weights=has_weights)
        mine = look(*arguments, DRIVER, has_weights=has_weights)
        looked = _collect(places, tasks, max(LEAST_S, LOOK_S - _since(began)))
        looked_s, found, problems = _since(began), looked.found, looked.problems
        problems += [problem for place, theirs in found.items() for problem in differences(place, mine, theirs)]
        unseen = _unseen(run, mark, [place for place in found if not _has(found[place].problems, "storage")])
        problems += [_not_shared(place, run) for place in unseen]
    finally:
        run.folder.delete(FOLDER)
    met = _meet(list(found), found, max(LEAST_S, min(MEET_S + looked_s, TOTAL_S - _since(began))))
    problems += met.problems
    if not problems:
        logger.info("all %d nodes see data, storage and weights, and can meet (%.1f s)", len(places), _since(began))
    return problems, looked.broken + met.broken


def _since(began: float) -> float:
    return time.monotonic() - began


def _places(request: Request) -> list[Place]:
    """The nodes that are alive and have room for a worker."""
    alive = [node for node in ray.nodes() if node["Alive"] and node["Resources"] is not None]
    return [
        Place(node["NodeID"], node["NodeManagerHostname"], node["NodeManagerAddress"])
        for node in alive
        if capacity(request, Node("", int(node["Resources"].get("CPU", 0)), int(node["Resources"].get("GPU", 0))))
    ]


def _start(function: Any, calls: Sequence[tuple[Place, tuple[Any, ...]]], **options: Any) -> list[Any]:
    """Start `function` on each node."""
    task = ray.remote(num_cpus=0, max_retries=0)(function)
    return [
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(place.id, soft=False)).remote(
            *arguments, **options
        )
        for place, arguments in calls
    ]


def _collect(places: Sequence[Place], tasks: Sequence[Any], limit_s: float) -> Answers:
    """Wait for the nodes' answers; return those that came, and a problem for each that did not."""
    began = time.monotonic()
    ray.wait(list(tasks), num_returns=len(tasks), timeout=limit_s)
    answers = Answers()
    for place, task in zip(places, tasks, strict=True):
        try:
            answers.found[place] = ray.get(task, timeout=0)
        except GetTimeoutError:
            ray.cancel(task, force=True)
            action = "Look at its load, its disks and its network, or take it out of the cluster"
            answers.problems.append(Problem(f"it did not answer within {_since(began):.0f} s", action, str(place)))
        except RayError as error:
            reason = str(error).strip().splitlines()[-1]
            answers.problems.append(Problem(f"it could not be checked: {reason}", SAME_ENVIRONMENT, str(place)))
            answers.broken.append(place)
    return answers


def differences(place: Place, mine: Findings, theirs: Findings) -> list[Problem]:
    """What a node found wrong, and where it differs from the driver."""
    problems = [replace(p, where=f"{place}{f', {p.where}' if p.where else ''}") for p in theirs.problems]
    for name, version in theirs.versions.items():
        if version != mine.versions[name]:
            what = f"it has {name} {version}, and the driver has {mine.versions[name]}"
            problems.append(Problem(what, SAME_ENVIRONMENT, str(place)))
    for key, (fingerprint, count) in theirs.data.items():
        if key in mine.data and fingerprint != mine.data[key][0]:
            what = f"it sees other files there ({count:,} images) than the driver ({mine.data[key][1]:,} images)"
            action = "Put the same data under this path on all nodes, or on a shared disk or in an object store"
            problems.append(Problem(what, action, str(place), key))
    return problems


def _has(problems: Sequence[Problem], key: str) -> bool:
    return any(problem.key == key for problem in problems)


def _unseen(run: RunFolder, mark: str, places: Sequence[Place]) -> list[Place]:
    """The nodes whose file in the storage is not seen here."""
    folder = run.folder.child(FOLDER)
    with ThreadPoolExecutor(16) as executor:
        seen = executor.map(lambda place: folder.exists(f"{mark}-{place.id}"), places)
        return [place for place, is_seen in zip(places, seen, strict=True) if not is_seen]


def _not_shared(place: Place, run: RunFolder) -> Problem:
    what = f"what it wrote into {run.folder} is not seen by the driver"
    action = "Set storage to a place that all nodes share, such as a shared disk or s3://bucket/runs"
    return Problem(what, action, str(place), "storage")


def _meet(places: Sequence[Place], found: Mapping[Place, Findings], limit_s: float) -> Answers:
    """Let the nodes sum a number together; there is a problem for each that could not within `limit_s`."""
    if len(places) < 2:
        return Answers()
    host, port = places[0].address, found[places[0]].port
    # Nodes wait for each other a little less long than they are waited for, so that they can say what is wrong.
    calls = [(place, (rank, len(places), host, port, limit_s - 3)) for rank, place in enumerate(places)]
    answers = _collect(places, _start(meet, calls), limit_s)
    answers.problems += [
        Problem(f"it cannot meet the others: {error}", LET_THEM_MEET, str(place))
        for place, error in answers.found.items()
        if error
    ]
    return answers
