"""Submitting, repeating, stopping and forgetting jobs: each step recorded in the ledger before it is sent."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tltrain.errors import ResourceError, SpecError
from tltrain.jobs.clusters import LoadedCluster, load_cluster
from tltrain.jobs.endpoint import reach
from tltrain.jobs.ledger import Attempt, Job, Ledger, new_attempt
from tltrain.jobs.ray_jobs import RayJobs, RefusedError
from tltrain.jobs.request import JobRequest, build_package, build_request, new_job_id
from tltrain.jobs.retries import Decision, decide
from tltrain.jobs.states import Cause, State
from tltrain.jobs.tracker import refresh
from tltrain.jobs.upload import Package
from tltrain.jobs.waiting import request_of
from tltrain.spec.schema import Spec

ACCUMULATION = "train.accumulation_steps"
STOP_WAIT_S = 20.0


@dataclass(frozen=True)
class Options:
    """How a job is to be submitted."""

    uploads: Sequence[Path] = ()
    with_tltrain: bool = True
    """Whether the upload holds the tltrain package, for clusters whose image lacks it."""
    queue: bool = False
    """Whether to wait in line where the cluster is full."""
    priority: int = 0
    max_duration_s: float | None = None
    """Seconds after which the job ends, over all attempts."""


def plan_job(spec: Spec, loaded: LoadedCluster, options: Options) -> tuple[Job, Package]:
    """A new job and its upload; nothing is recorded or sent yet. Raises SpecError with all problems."""
    package = build_package(spec, options.uploads, with_tltrain=options.with_tltrain)
    workers = spec.resources.num_workers
    most_workers = workers if isinstance(workers, int) else workers.max
    batch_size = spec.train.batch_size
    request: dict[str, Any] = {
        **request_of(spec.resources),
        "accumulation_steps": spec.train.accumulation_steps,
        # A batch size that is found by trying fits: more parts would not help.
        "most_accumulation_steps": 1 if batch_size == "auto" else batch_size // most_workers,
    }
    job = Job(
        id=new_job_id(spec.name),
        run=spec.name,
        storage=spec.storage,
        cluster=loaded.name,
        cluster_path=str(loaded.path.absolute()),
        package=package.name,
        request=request,
        priority=options.priority,
        max_duration_s=options.max_duration_s,
        created_at=time.time(),
    )
    return replace(job, attempts=(new_attempt(job.id, 1, waits=options.queue),)), package


def request_for(job: Job, loaded: LoadedCluster, package: Package) -> JobRequest:
    """What is sent for the latest attempt at a job."""
    return build_request(
        job.id,
        job.latest.number,
        package,
        cluster_secrets=loaded.cluster.secrets,
        sets=job.latest.sets,
        max_duration_s=time_left_s(job),
    )


def time_left_s(job: Job) -> float | None:
    """What is left of max_duration, at least a second; None where there is no limit."""
    if job.max_duration_s is None:
        return None
    starts = [attempt.accepted_at for attempt in job.attempts if attempt.accepted_at is not None]
    used_s = time.time() - min(starts) if starts else 0.0
    return max(1.0, job.max_duration_s - used_s)


def submit(ledger: Ledger, job: Job, package: Package, *, deadline_s: float = 60.0) -> Job:
    """Record a new job, then send it, unless it is to wait in line. Raises TltrainError."""
    if job.latest.waits:
        ledger.add(job, package)
        return ledger.find(job.id)
    loaded = load_cluster(job.cluster_path)
    with reach(loaded) as endpoint:
        ledger.add(job, package)
        return _send(ledger, job, RayJobs(endpoint), request_for(job, loaded, package), deadline_s)


def send(ledger: Ledger, job: Job, *, deadline_s: float = 60.0) -> Job:
    """Send the latest attempt at a job that is recorded. One that the cluster has already stays as it is."""
    loaded = load_cluster(job.cluster_path)
    package = Package(ledger.package_content(job), ())
    with reach(loaded) as endpoint:
        return _send(ledger, job, RayJobs(endpoint), request_for(job, loaded, package), deadline_s)


def _send(ledger: Ledger, job: Job, jobs: RayJobs, request: JobRequest, deadline_s: float) -> Job:
    try:
        session = jobs.submit(request, deadline_s=deadline_s)
    except RefusedError as error:
        changes = {"state": State.FAILED, "cause": Cause.RESOURCES, "reason": error.problems[0].what}
        ledger.update(job.latest, ended_at=time.time(), **changes)
        raise
    except ResourceError as error:
        what = f"{job.id} is recorded, and may or may not have arrived: {error.problems[0].what}"
        raise ResourceError(what, f"`tltrain status {job.id}` looks, `tltrain retry {job.id}` sends it once") from error
    ledger.update(job.latest, state=State.STARTING, reason="", accepted_at=time.time(), session=session)
    return ledger.find(job.id)


def decide_retry(job: Job, *, further_losses: int = 0) -> Decision:
    """What the policy says about a job whose latest attempt has failed.

    `further_losses` counts how often the cluster was not there since.
    """
    causes = [attempt.cause for attempt in job.attempts if attempt.cause is not None]
    causes += [Cause.CLUSTER_LOST] * further_losses
    left_s = None if job.max_duration_s is None else (time_left_s(job) or 0.0)
    decision = decide(causes, time_left_s=left_s)
    if decision.halve_micro_batch and _doubled(job) > job.request["most_accumulation_steps"]:
        return Decision(False, "out of memory, and a worker's part of the batch is one image already")
    return decision


def next_attempt(job: Job, *, halve_micro_batch: bool = False) -> Attempt:
    """The attempt after the latest, with twice the accumulation steps where it has to do with less memory."""
    sets = job.latest.sets
    if halve_micro_batch:
        kept = [assignment for assignment in sets if not assignment.startswith(f"{ACCUMULATION}=")]
        sets = (*kept, f"{ACCUMULATION}={_doubled(job)}")
    return new_attempt(job.id, job.latest.number + 1, sets=sets)


def _doubled(job: Job) -> int:
    set_before = [int(text.partition("=")[2]) for text in job.latest.sets if text.startswith(f"{ACCUMULATION}=")]
    return 2 * (set_before or [job.request["accumulation_steps"]])[-1]


def retry(ledger: Ledger, job: Job, *, force: bool = False) -> tuple[Job, str]:
    """Send another attempt at a job that has ended, or the latest one where it never arrived; also says what was done.

    Raises SpecError where the job runs or is done, or where the policy is against it and `force` is not given.
    """
    job = refresh(ledger, [job], timeout_s=10.0)[0]
    state = job.latest.state
    if job.latest.waits:
        raise SpecError(f"{job.id} waits in line: {job.latest.reason}", f"`tltrain logs -f {job.id}` waits with it")
    if state.is_active and job.latest.accepted_at is None:
        return send(ledger, job), f"attempt {job.latest.number} was sent"
    if state.is_active:
        raise SpecError(f"{job.id} is {state.value}", f"Stop it first: tltrain stop {job.id}")
    if state is State.SUCCEEDED and not force:
        raise SpecError(f"{job.id} has succeeded", "--force runs it again; the finished run stays as it is")
    decision = decide_retry(job) if state is State.FAILED else Decision(True, "")
    if not (decision.retry or force):
        raise SpecError(f"not repeated: {decision.reason}", "Correct it and submit anew, or --force")
    attempt = next_attempt(job, halve_micro_batch=decision.halve_micro_batch)
    if not ledger.add_attempt(attempt):
        raise SpecError(f"attempt {attempt.number} at {job.id} has just been made by another", "Look at its status")
    what = f" with {', '.join(attempt.sets)}: half the micro-batch, the same batch" if attempt.sets else ""
    return send(ledger, ledger.find(job.id)), f"attempt {attempt.number} was sent{what}"


def stop(ledger: Ledger, job: Job) -> Job:
    """Take a job out of the queue, or ask its cluster to end it and wait until it has. Raises TltrainError."""
    attempt = job.latest
    if attempt.waits and ledger.take_from_queue(attempt):
        ledger.update(attempt, state=State.STOPPED, reason="taken out of the queue", ended_at=time.time())
        return ledger.find(job.id)
    job = refresh(ledger, [job], timeout_s=10.0)[0]
    deadline = time.monotonic() + STOP_WAIT_S
    if job.latest.state.is_active:
        with reach(load_cluster(job.cluster_path)) as endpoint:
            is_known = RayJobs(endpoint).stop(job.latest.submission_id)
        if not is_known and job.latest.accepted_at is None:
            ledger.update(job.latest, state=State.STOPPED, reason="it never ran", ended_at=time.time())
    while (job := refresh(ledger, [job], timeout_s=10.0)[0]).latest.state.is_active and time.monotonic() < deadline:
        time.sleep(0.3)
    return job


def remove(ledger: Ledger, jobs: Iterable[Job]) -> None:
    """Forget jobs that have ended, here and on their clusters; their run folders stay. Raises SpecError."""
    for job in refresh(ledger, jobs):
        if job.latest.state.is_active:
            raise SpecError(f"{job.id} is {job.latest.state.value}", f"Stop it first: tltrain stop {job.id}")
        if job.latest.cause is not Cause.CLUSTER_LOST and job.latest.silent_since is None:
            with reach(load_cluster(job.cluster_path)) as endpoint:
                for attempt in job.attempts:
                    RayJobs(endpoint).delete(attempt.submission_id)
        ledger.remove(job)
