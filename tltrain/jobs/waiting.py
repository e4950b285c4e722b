"""The queue of a full cluster: who is next, and why a job waits. Pure decisions; the ledger is the queue."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tltrain.jobs.ledger import Job
from tltrain.jobs.ray_jobs import Usage
from tltrain.spec.schema import ResourcesSpec


@dataclass(frozen=True)
class Need:
    """What a job takes of a cluster as long as it runs."""

    cpus: float
    gpus: float


def request_of(resources: ResourcesSpec) -> dict[str, int | str]:
    """What the ledger keeps of a spec's resources; of an elastic number of workers, the fewest."""
    count = resources.num_workers
    workers = count if isinstance(count, int) else count.min
    return {"workers": workers, "cpus": resources.cpus_per_worker, "gpus": resources.gpus_per_worker}


def need(job: Job, usage: Usage) -> Need:
    """What a job takes; `gpus: auto` is one per worker where the cluster has any."""
    workers, gpus = job.request["workers"], job.request["gpus"]
    each = (1 if usage.gpus else 0) if gpus == "auto" else gpus
    return Need(workers * job.request["cpus"], workers * each)


def line(jobs: Iterable[Job], cluster_path: str) -> list[Job]:
    """The jobs that wait for a cluster, the next one first: by priority, then by age."""
    waiting = [job for job in jobs if job.cluster_path == cluster_path and job.attempts and job.latest.waits]
    return sorted(waiting, key=lambda job: (-job.priority, job.created_at, job.id))


def reason_to_wait(job: Job, jobs: Iterable[Job], usage: Usage | None) -> str:
    """Why a job of the queue has to wait, with its place in line; empty where it is its turn."""
    jobs = list(jobs)
    queue = [other.id for other in line(jobs, job.cluster_path)]
    place = queue.index(job.id) + 1 if job.id in queue else 1
    lack = _lack(job, jobs, usage)
    if place == 1 and not lack:
        return ""
    ahead = f"behind {queue[place - 2]}" if place > 1 else ""
    return f"place {place} of {max(len(queue), 1)}: {', '.join(part for part in (ahead, lack) if part)}"


def _lack(job: Job, jobs: list[Job], usage: Usage | None) -> str:
    if usage is None:
        return "the cluster does not say yet what is free"
    wanted = need(job, usage)
    # What we have sent a moment ago may not be counted by the cluster yet.
    ours = [need(other, usage) for other in jobs if _takes(other, job)]
    free_cpus = min(usage.free_cpus, usage.cpus - sum(other.cpus for other in ours))
    free_gpus = min(usage.free_gpus, usage.gpus - sum(other.gpus for other in ours))
    lacks = []
    if wanted.cpus > free_cpus:
        lacks.append(f"it needs {wanted.cpus:g} CPU, and {max(0.0, free_cpus):g} of {usage.cpus:g} are free")
    if wanted.gpus > free_gpus:
        lacks.append(f"it needs {wanted.gpus:g} GPU, and {max(0.0, free_gpus):g} of {usage.gpus:g} are free")
    return "; ".join(lacks)


def _takes(other: Job, job: Job) -> bool:
    is_here = other.id != job.id and other.cluster_path == job.cluster_path
    return is_here and bool(other.attempts) and other.latest.state.is_active and not other.latest.waits
