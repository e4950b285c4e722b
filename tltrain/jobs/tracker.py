"""Where jobs are: what the ledger, the cluster and the run folder say, brought together."""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tltrain.errors import EXIT_INTERRUPTED, EXIT_TERMINATED, ResourceError, StorageError, TltrainError
from tltrain.jobs.clusters import LocalCluster, load_cluster
from tltrain.jobs.endpoint import reach
from tltrain.jobs.ledger import Attempt, Job, Ledger
from tltrain.jobs.ray_jobs import JobInfo, NoAnswerError, RayJobs
from tltrain.jobs.states import Cause, State, Verdict
from tltrain.lease import EXPIRY_S, read_lease
from tltrain.progress import Progress, read_progress_and_waits
from tltrain.run_folder import WINNER, RunFolder

LOST_AFTER_S = 40.0
"""Seconds of silence after which a cluster counts as lost, until it answers again."""
STILL_S = 60.0
"""Seconds without a counted image after which it is said that a run stands still."""
SENDING_S = 90.0
"""Seconds after its record in which an attempt may still be on its way to the cluster."""

_KILLED = (-9, 137)
# What ends a program by SIGTERM without `tltrain stop`, which is known as such, is a machine that is taken back.
_CAUSES_BY_EXIT_CODE = {2: Cause.USER, 3: Cause.RESOURCES, 4: Cause.DATA, EXIT_TERMINATED: Cause.PREEMPTED}
_NODE_ERRORS = ("JOB_SUPERVISOR_ACTOR_DIED", "JOB_SUPERVISOR_ACTOR_UNKNOWN_FAILURE")
_CLUSTER_ERRORS = ("RUNTIME_ENV_SETUP_FAILURE", "JOB_SUPERVISOR_ACTOR_UNSCHEDULABLE")


@dataclass(frozen=True)
class Seen:
    """What a cluster has said just now: which submissions it knows, or that it was silent."""

    infos: Mapping[str, JobInfo] = field(default_factory=dict)
    session: str = ""
    silence: str = ""
    """Why there was no answer; empty where there was one."""
    is_gone: bool = False
    """Whether it is certain that the cluster does not run any more."""

    def runs(self, submission_id: str) -> bool:
        """Whether the cluster has said that a submission has not ended: it may print more."""
        info = self.infos.get(submission_id)
        return info is not None and info.status in ("PENDING", "RUNNING")


def judge(attempt: Attempt, seen: Seen, run: Mapping[str, Any] | None, now: float) -> Verdict:
    """Say where an attempt is. `run` is its run.json, None where that cannot be read from here.

    The run folder is the truth for what this attempt wrote into it; then the cluster decides, then the ledger. But to a
    run whose cluster dies it looks as if a node were lost: where that is all it wrote, a silent cluster decides.
    """
    own = run if run and run.get("job") == attempt.submission_id else {}
    if own.get("state") == "finished":
        return Verdict(State.SUCCEEDED)
    if attempt.waits or _is_final(attempt):
        return attempt.verdict
    if own.get("state") == "failed" and not (seen.silence and own.get("cause") == Cause.NODE_LOST.value):
        return Verdict(State.FAILED, _first(own.get("error")), _cause(own.get("cause")))
    if seen.silence:
        return _judge_silence(attempt, seen, own, now)
    info = seen.infos.get(attempt.submission_id)
    is_new_session = attempt.session is not None and seen.session != attempt.session
    if info is None:
        return _judge_missing(attempt, is_new_session, now)
    if seen.runs(attempt.submission_id) and is_new_session:
        return Verdict(State.FAILED, "the cluster was started anew while it ran", Cause.CLUSTER_LOST)
    return _judge_info(info, own, run, now)


def _is_final(attempt: Attempt) -> bool:
    """Whether nothing that is seen can change the attempt's state. A lost cluster may come back."""
    return not attempt.state.is_active and attempt.state is not State.UNKNOWN and attempt.cause != Cause.CLUSTER_LOST


def _judge_silence(attempt: Attempt, seen: Seen, own: Mapping[str, Any], now: float) -> Verdict:
    silent_s = now - (attempt.silent_since or now)
    if own.get("heartbeat_at", 0.0) > now - LOST_AFTER_S and not seen.is_gone:
        return Verdict(State.RUNNING, f"it writes into its run folder, but there is no answer: {seen.silence}")
    if attempt.accepted_at is None:
        return Verdict(State.QUEUED, f"not known to have arrived, and there is no answer: {seen.silence}")
    if seen.is_gone or silent_s >= LOST_AFTER_S:
        return Verdict(State.FAILED, seen.silence, Cause.CLUSTER_LOST)
    state = State.RUNNING if attempt.cause == Cause.CLUSTER_LOST else attempt.state
    return Verdict(state, f"no answer for {silent_s:.0f} s: {seen.silence}")


def _judge_missing(attempt: Attempt, is_new_session: bool, now: float) -> Verdict:
    if attempt.accepted_at is None:
        if now - attempt.recorded_at < SENDING_S:
            return Verdict(State.QUEUED, "on its way to the cluster")
        return Verdict(State.QUEUED, f"it never reached the cluster; `tltrain retry {attempt.job_id}` sends it")
    if is_new_session:
        return Verdict(State.FAILED, "the cluster was started anew and knows it no more", Cause.CLUSTER_LOST)
    return Verdict(State.UNKNOWN, "the cluster knows it no more")


def _judge_info(info: JobInfo, own: Mapping[str, Any], run: Mapping[str, Any] | None, now: float) -> Verdict:
    if info.status == "PENDING":
        reason = info.message.strip().partition("\n")[0].rstrip(".") or "the cluster prepares it"
        return Verdict(State.STARTING, f"{reason}; Ray gives up after 15 min, if nobody has told it otherwise")
    if info.status == "RUNNING":
        return _judge_running(own, run, now)
    if info.status == "SUCCEEDED":
        return Verdict(State.SUCCEEDED)
    if info.status == "STOPPED" or info.exit_code == EXIT_INTERRUPTED:
        return Verdict(State.STOPPED)
    return Verdict(State.FAILED, _reason(info), failure_cause(info))


def _judge_running(own: Mapping[str, Any], run: Mapping[str, Any] | None, now: float) -> Verdict:
    """Say what the program is at: where it waits, for what, and for how long at most."""
    if waiting := own.get("waiting"):
        return Verdict(State.RUNNING, f"waits for {waiting['for']}, at most until {_clock(waiting['until'], now)}")
    for wait in own.get("waits", ()):
        if wait.until > now:
            return Verdict(State.RUNNING, f"waits for {wait.what}, at most until {_clock(wait.until, now)}")
    if own or run is None:
        return Verdict(State.RUNNING, _stillness(own.get("groups", ()), now))
    if "holder" in run:
        return Verdict(State.STARTING, f"waits to see whether {run['holder']} is still alive, at most {EXPIRY_S:g} s")
    return Verdict(State.STARTING, "the program runs; training has not begun")


def _stillness(groups: Iterable[Progress], now: float) -> str:
    """Say since when a worker group that has images to go through has counted none, where that is long."""
    for group in groups:
        still_s = now - group.updated_at
        if group.share < 1 and still_s >= STILL_S:
            what = f"no image has been counted for {still_s:.0f} s ({group.phase}, epoch {group.epoch})"
            if not group.limit_s:
                return what
            return f"{what}; a rank is waited for at most until {_clock(group.updated_at + group.limit_s, now)}"
    return ""


def _clock(at: float, now: float) -> str:
    """Return a time as people write it who read it at `now`, both Unix times."""
    local, today = time.localtime(at), time.localtime(now)
    return time.strftime("%H:%M:%S" if local[:3] == today[:3] else "%Y-%m-%d %H:%M", local)


def failure_cause(info: JobInfo) -> Cause:
    """The cause of a failure that the run folder says nothing about."""
    if info.error_type in _NODE_ERRORS or "actor died" in info.message.lower():
        return Cause.NODE_LOST
    if info.error_type in _CLUSTER_ERRORS:
        return Cause.RESOURCES
    if "OutOfMemory" in info.message or "out of memory" in info.message:
        return Cause.OUT_OF_MEMORY
    if info.exit_code in _KILLED:
        return Cause.NODE_LOST
    return _CAUSES_BY_EXIT_CODE.get(info.exit_code or 0, Cause.USER)


def _reason(info: JobInfo) -> str:
    if info.exit_code in _KILLED:
        return "the program was killed (signal 9), as the system does when a machine's memory is full"
    return next((line.strip() for line in reversed(info.message.splitlines()) if line.strip()), "")[:300]


def _first(error: Any) -> str:
    return str(error[0]).partition("\n")[0] if error else ""


def _cause(text: Any) -> Cause:
    return Cause(text) if text in [cause.value for cause in Cause] else Cause.USER


def look(cluster_path: str, ids: Sequence[str] | None = None, *, timeout_s: float = 10.0) -> Seen:
    """Ask a cluster for these submissions, or for all it knows. It never raises for a cluster that is silent."""
    try:
        loaded = load_cluster(cluster_path)
        is_local = isinstance(loaded.cluster, LocalCluster)
    except TltrainError as error:
        return Seen(silence=str(error))
    try:
        with reach(loaded) as endpoint:
            return look_at(RayJobs(endpoint, timeout_s=timeout_s), ids)
    except NoAnswerError as error:
        return Seen(silence=error.problems[0].what)
    except ResourceError as error:  # a local head that has ended, or a tunnel that does not open
        return Seen(silence=error.problems[0].what, is_gone=is_local)


def look_at(jobs: RayJobs, ids: Sequence[str] | None = None) -> Seen:
    """Ask a cluster that can be reached. Raises NoAnswerError."""
    infos = jobs.list() if ids is None else {own_id: info for own_id in ids if (info := jobs.info(own_id)) is not None}
    # Read last: what was asked of a head that has been started anew since counts as lost, never as forgotten.
    return Seen(infos, jobs.session())


def read_run(job: Job) -> dict[str, Any] | None:
    """The run.json of a job's run, its last heartbeat and what its workers are at; None where it cannot be read."""
    try:
        run = RunFolder.at(job.storage, job.run)
        lease = read_lease(run.folder)
        held = {"heartbeat_at": lease.heartbeat_at, "holder": str(lease)} if lease and not lease.released else {}
        state = run.state()
        return state | held | (_progress(run) if state.get("state") == "running" else {})
    except StorageError:
        return None


def _progress(run: RunFolder) -> dict[str, Any]:
    """What the worker groups of a run are at, of the winner of a sweep too, and what they wait for."""
    groups, waits = read_progress_and_waits(run.folder)
    if not groups and not waits:
        groups, waits = read_progress_and_waits(run.folder.child(WINNER))
    return {"groups": groups, "waits": waits}


def settle(ledger: Ledger, job: Job, seen: Seen) -> Job:
    """Record what is known of a job's latest attempt now, and return the job as the ledger has it then."""
    attempt, now = job.latest, time.time()
    changes: dict[str, Any] = {"silent_since": (attempt.silent_since or now) if seen.silence else None}
    if attempt.submission_id in seen.infos and attempt.accepted_at is None:
        changes |= {"accepted_at": now, "session": seen.session}
    verdict = judge(attempt, seen, read_run(job), now)
    changes |= {"state": verdict.state, "cause": verdict.cause, "reason": verdict.reason}
    if verdict.state.is_active:
        changes["ended_at"] = None
    elif attempt.ended_at is None:
        info = seen.infos.get(attempt.submission_id)
        changes["ended_at"] = (info.end_time if info else None) or now
    changed = {name: value for name, value in changes.items() if getattr(attempt, name) != value}
    if changed:
        ledger.update(attempt, only_as_seen=True, **changed)
    return ledger.find(job.id)


def refresh(ledger: Ledger, jobs: Iterable[Job], *, timeout_s: float = 1.0) -> list[Job]:
    """Bring jobs up to date, asking their clusters side by side; those that have ended for good are left alone."""
    jobs = list(jobs)
    open_jobs = [job for job in jobs if not _is_final(job.latest)]
    paths = sorted({job.cluster_path for job in open_jobs})
    if not paths:
        return jobs
    ids = {path: [job.latest.submission_id for job in open_jobs if job.cluster_path == path] for path in paths}
    with concurrent.futures.ThreadPoolExecutor(max_workers=min(16, len(paths))) as pool:
        looks = {
            path: pool.submit(look, path, ids[path] if len(ids[path]) <= 3 else None, timeout_s=timeout_s)
            for path in paths
        }
    settled = {job.id: settle(ledger, job, looks[job.cluster_path].result()) for job in open_jobs}
    return [settled.get(job.id, job) for job in jobs]
