"""Following a job to its end: its turn in the queue, its output, lost connections, and repeated attempts."""

from __future__ import annotations

import time
from collections.abc import Callable

from tltrain.errors import ResourceError
from tltrain.jobs.clusters import load_cluster
from tltrain.jobs.endpoint import reach
from tltrain.jobs.failures import failure_lines
from tltrain.jobs.ledger import Job, Ledger
from tltrain.jobs.ray_jobs import NoAnswerError, RayJobs
from tltrain.jobs.states import State, Verdict
from tltrain.jobs.submission import decide_retry, next_attempt, send
from tltrain.jobs.tracker import Seen, look, look_at, refresh, settle
from tltrain.jobs.waiting import reason_to_wait

POLL_S = 0.5
QUEUE_POLL_S = 3.0
RECONNECT_S = 1.0
LAST_WORDS_S = 30.0
"""How long a program whose run has ended may take to print what came of it."""
_READING_SHARE = 0.1  # of the time; a log is read whole each time, so a long one is read less often


class Follower:
    """Follows one job. `write` takes its output as it comes, `tell` takes lines about it.

    With `retrying`, an attempt that failed for a cause outside the program is repeated within the budgets.
    """

    def __init__(
        self,
        ledger: Ledger,
        job: Job,
        write: Callable[[str], None],
        tell: Callable[[str], None],
        *,
        retrying: bool,
        timeout_s: float | None = None,
    ) -> None:
        """Follow `job` for at most `timeout_s` seconds, or to its end."""
        self._ledger, self._job, self._retrying = ledger, job, retrying
        self._write, self._tell = write, tell
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._log = ""
        self._told = ""
        self._lost = ""

    def follow(self) -> Verdict:
        """Return how the job ended. Raises TimeoutError where it has not; that, and Ctrl-C, leave it alive."""
        while True:
            if self._job.latest.waits:
                self._wait_for_turn()
            verdict = self._follow_attempt()
            if verdict.state is State.FAILED:
                for text in failure_lines(self._log):
                    self._tell(text)
            if verdict.state is not State.FAILED or not self._retrying or not self._repeat():
                return verdict

    def _wait_for_turn(self) -> None:
        """Return once the job has been sent, by us or another process, or taken out of the queue."""
        while True:
            self._job = self._ledger.find(self._job.id)
            if not self._job.latest.waits:
                return
            reason = self._reason_to_wait()
            if not reason and self._ledger.take_from_queue(self._job.latest):
                self._job = send(self._ledger, self._ledger.find(self._job.id))
                return
            if reason != self._job.latest.reason:
                self._ledger.update(self._job.latest, reason=reason)
            self._tell_once(f"Waiting: {reason}")
            self._pause(QUEUE_POLL_S)

    def _reason_to_wait(self) -> str:
        jobs = refresh(self._ledger, self._ledger.jobs(), timeout_s=5.0)
        try:
            with reach(load_cluster(self._job.cluster_path)) as endpoint:
                usage = RayJobs(endpoint).usage()
        except ResourceError as error:
            return error.problems[0].what
        return reason_to_wait(self._job, jobs, usage)

    def _follow_attempt(self) -> Verdict:
        """Return how the latest attempt ended; connections that are lost are made again."""
        self._log = ""
        while True:
            try:
                with reach(load_cluster(self._job.cluster_path)) as endpoint:
                    return self._follow_connected(RayJobs(endpoint))
            except ResourceError as error:
                if verdict := self._without_connection(error):
                    return verdict
            self._pause(RECONNECT_S)

    def _without_connection(self, error: ResourceError) -> Verdict | None:
        """The verdict where the cluster is lost or the run folder knows the end; None to connect again."""
        seen = Seen(silence=error.problems[0].what)
        if not isinstance(error, NoAnswerError):
            seen = look(self._job.cluster_path, [self._job.latest.submission_id])
        self._job = settle(self._ledger, self._job, seen)
        if not self._job.latest.state.is_active:
            return self._job.latest.verdict
        if not self._lost:
            self._tell(f"Connection lost ({error.problems[0].what}). The job is not ended by that; trying again.")
            self._lost = "lost"
        return None

    def _follow_connected(self, jobs: RayJobs) -> Verdict:
        attempt, ended_at = self._job.latest, None
        while True:
            # The state first: what was printed before an end is in the log that is read after it was seen.
            seen = look_at(jobs, [attempt.submission_id])
            began = time.monotonic()
            self._print_new(jobs.logs(attempt.submission_id))
            reading_s = time.monotonic() - began
            self._job = settle(self._ledger, self._job, seen)
            if self._lost:
                self._tell("Connected again.")
                self._lost = ""
            if self._job.latest.number != attempt.number:
                return self._job.latest.verdict
            if not self._job.latest.state.is_active:
                ended_at = ended_at or began
                if not seen.runs(attempt.submission_id) or began - ended_at > LAST_WORDS_S:
                    return self._job.latest.verdict
            self._pause(max(POLL_S, reading_s / _READING_SHARE))

    def _print_new(self, log: str) -> None:
        if log.startswith(self._log) and len(log) > len(self._log):
            self._write(log[len(self._log) :])
        if len(log) >= len(self._log):
            self._log = log

    def _repeat(self) -> bool:
        """Make another attempt where the policy is for it; False where it is against it."""
        losses = 0
        while True:
            decision = decide_retry(self._job, further_losses=losses)
            if not decision.retry:
                self._tell(f"Not repeated: {decision.reason}.")
                return False
            self._tell(f"{decision.reason[:1].upper()}{decision.reason[1:]}.")
            self._pause(decision.wait_s)
            self._job = refresh(self._ledger, [self._job], timeout_s=10.0)[0]
            if self._job.latest.state is not State.FAILED:  # it has come back, or another process was faster
                return True
            if self._job.latest.silent_since is None:
                self._send_next(halve_micro_batch=decision.halve_micro_batch)
                return True
            losses += 1

    def _send_next(self, *, halve_micro_batch: bool) -> None:
        added = self._ledger.add_attempt(next_attempt(self._job, halve_micro_batch=halve_micro_batch))
        self._job = self._ledger.find(self._job.id)
        if added:  # else another process sends it
            self._job = send(self._ledger, self._job)

    def _pause(self, seconds: float) -> None:
        """Wait that long. Raises TimeoutError at the deadline."""
        left_s = seconds if self._deadline is None else self._deadline - time.monotonic()
        time.sleep(max(0.0, min(seconds, left_s)))
        if left_s < seconds:
            raise TimeoutError(f"the job {self._job.id} has not ended yet: it is {self._job.latest.verdict}")

    def _tell_once(self, text: str) -> None:
        if text != self._told:
            self._tell(text)
            self._told = text
