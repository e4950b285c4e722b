"""The Python API: specs loaded, runs made here, jobs submitted to clusters and followed.

`tltrain.run(spec)` is `tltrain.run.run_spec`: the name belongs to the program that runs on the cluster as well.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from tltrain.errors import RunError
from tltrain.jobs import submission
from tltrain.jobs.clusters import load_cluster
from tltrain.jobs.endpoint import reach
from tltrain.jobs.follow import Follower
from tltrain.jobs.ledger import Ledger
from tltrain.jobs.ray_jobs import RayJobs
from tltrain.jobs.states import State, Verdict
from tltrain.jobs.tracker import refresh
from tltrain.run_folder import Result, RunFolder
from tltrain.spec.load import load_spec as read_spec
from tltrain.spec.schema import Spec

__all__ = ["Job", "Result", "Spec", "load_spec", "submit"]

logger = logging.getLogger("tltrain")


def load_spec(path: str | Path, sets: Sequence[str] = ()) -> Spec:
    """Read the spec in a file and apply `sets`, each `KEY=VALUE`. Raises SpecError with all problems.

    Settings that have no effect are logged as warnings.
    """
    loaded = read_spec(path, sets)
    for warning in loaded.warnings:
        logger.warning("%s", warning)
    return loaded.spec


def submit(
    spec: Spec,
    cluster: str | Path,
    *,
    uploads: Sequence[str | Path] = (),
    queue: bool = False,
    priority: int = 0,
    max_duration_s: float | None = None,
    installed: bool = False,
) -> Job:
    """Send `spec` to a cluster and return the job, which goes on whatever becomes of this process.

    cluster: name or path of a cluster file. uploads: files and folders that the job needs. queue: wait in line where
    the cluster is full; `Job.wait` then sends it when it is its turn. installed: use the tltrain of the cluster's image
    instead of sending this one. Raises TltrainError.
    """
    options = submission.Options([Path(path) for path in uploads], not installed, queue, priority, max_duration_s)
    job, package = submission.plan_job(spec, load_cluster(str(cluster)), options)
    with Ledger() as ledger:
        return Job(submission.submit(ledger, job, package).id)


class Job:
    """A job that was submitted from this machine, here or by `tltrain submit`."""

    def __init__(self, id: str) -> None:
        """Find a job by its id, or by its first letters. Raises SpecError where there is none."""
        with Ledger() as ledger:
            self.id = ledger.find(id).id

    def __repr__(self) -> str:
        return f"Job({self.id!r})"

    def status(self) -> Verdict:
        """Ask the cluster and the run folder where the job is: `state`, `cause` of a failure, and `reason`."""
        with Ledger() as ledger:
            return refresh(ledger, [ledger.find(self.id)])[0].latest.verdict

    def logs(self) -> str:
        """Return what the latest attempt has printed so far; empty while it waits in line. Raises TltrainError."""
        with Ledger() as ledger:
            job = ledger.find(self.id)
        if job.latest.waits:
            return ""
        with reach(load_cluster(job.cluster_path)) as endpoint:
            return RayJobs(endpoint).logs(job.latest.submission_id)

    def wait(self, write: Callable[[str], None] | None = None, *, timeout_s: float | None = None) -> Verdict:
        """Follow the job to its end and return how it ended; `write` gets its output as it comes.

        As with `tltrain submit`, attempts that failed for a cause outside the program are repeated, and a job that
        waits in line is sent when it is its turn. Raises TimeoutError where it has not ended after `timeout_s` seconds
        (some seconds later where its cluster is slow to answer); the job goes on.
        """
        with Ledger() as ledger:
            job, tell = ledger.find(self.id), logger.info
            follower = Follower(ledger, job, write or (lambda _: None), tell, retrying=True, timeout_s=timeout_s)
            return follower.follow()

    def result(self, *, timeout_s: float | None = None) -> Result:
        """Wait for the end and return what came of the run. Raises RunError where it did not succeed.

        Raises TimeoutError as `wait` does.
        """
        verdict = self.wait(timeout_s=timeout_s)
        if verdict.state is not State.SUCCEEDED:
            raise RunError(f"the job {self.id} is {verdict}", f"tltrain logs {self.id} shows what it printed")
        with Ledger() as ledger:
            job = ledger.find(self.id)
        return RunFolder.open(RunFolder.at(job.storage, job.run).uri).result()
