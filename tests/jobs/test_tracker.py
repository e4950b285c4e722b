"""Where a job is: the run folder is the truth, then the cluster, then the ledger."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
from fake_server import Fault
from job_helpers import Home

from tltrain.jobs import tracker
from tltrain.jobs.ledger import Attempt, new_attempt
from tltrain.jobs.ray_jobs import JobInfo
from tltrain.jobs.states import Cause, State, Verdict
from tltrain.jobs.submission import retry
from tltrain.jobs.tracker import LOST_AFTER_S, Seen, judge, refresh
from tltrain.progress import Meter, Progress, Wait, read_progress_and_waits
from tltrain.run_folder import WINNER, RunFolder
from tltrain.spec.load import dump_yaml

NOW = 1000.0
OWN_ID = "tiny-012345-1"
SENT = replace(new_attempt("tiny-012345", 1), state=State.STARTING, recorded_at=900.0, accepted_at=901.0, session="s1")
RECORDED = replace(new_attempt("tiny-012345", 1), recorded_at=999.0)


def seen(status: str, session: str = "s1", **fields: Any) -> Seen:
    return Seen({OWN_ID: JobInfo(OWN_ID, status, **fields)}, session)


def own(state: str, **fields: Any) -> dict[str, Any]:
    return {"job": OWN_ID, "state": state, **fields}


CASES: dict[str, tuple[Attempt, Seen, dict[str, Any] | None, State, Cause | None]] = {
    "pending": (SENT, seen("PENDING"), {}, State.STARTING, None),
    "program runs, no training yet": (SENT, seen("RUNNING"), {}, State.STARTING, None),
    "run folder of an older attempt": (SENT, seen("RUNNING"), own("running") | {"job": "other"}, State.STARTING, None),
    "training": (SENT, seen("RUNNING"), own("running"), State.RUNNING, None),
    "storage cannot be read from here": (SENT, seen("RUNNING"), None, State.RUNNING, None),
    "succeeded": (SENT, seen("SUCCEEDED"), {}, State.SUCCEEDED, None),
    "stopped": (SENT, seen("STOPPED"), own("running"), State.STOPPED, None),
    "run folder knows the end first": (SENT, seen("RUNNING"), own("finished"), State.SUCCEEDED, None),
    "finished, then the driver crashed": (SENT, seen("FAILED", exit_code=1), own("finished"), State.SUCCEEDED, None),
    "finished before the cluster was lost": (SENT, Seen(silence="no"), own("finished"), State.SUCCEEDED, None),
    "finished by an older attempt": (
        SENT,
        seen("FAILED", exit_code=2),
        {"state": "finished"},
        State.FAILED,
        Cause.USER,
    ),
    "failed, cause in the run folder": (
        *(SENT, seen("RUNNING"), own("failed", cause="out of memory", error=["x"])),
        *(State.FAILED, Cause.OUT_OF_MEMORY),
    ),
    "bad data": (SENT, seen("FAILED", exit_code=4), {}, State.FAILED, Cause.DATA),
    "too small a cluster": (SENT, seen("FAILED", exit_code=3), {}, State.FAILED, Cause.RESOURCES),
    "exception": (SENT, seen("FAILED", exit_code=1), {}, State.FAILED, Cause.USER),
    "driver killed": (SENT, seen("FAILED", exit_code=137), {}, State.FAILED, Cause.NODE_LOST),
    "driver's node lost": (
        *(SENT, seen("FAILED", error_type="JOB_SUPERVISOR_ACTOR_DIED"), {}, State.FAILED, Cause.NODE_LOST),
    ),
    "interrupted": (SENT, seen("FAILED", exit_code=130), {}, State.STOPPED, None),
    "told to end by whoever runs the machine": (
        *(SENT, seen("FAILED", exit_code=143), own("interrupted"), State.FAILED, Cause.PREEMPTED),
    ),
    "silent for a moment": (replace(SENT, silent_since=NOW - 5), Seen(silence="no"), {}, State.STARTING, None),
    "silent for long": (
        *(replace(SENT, silent_since=NOW - LOST_AFTER_S), Seen(silence="no"), {}, State.FAILED, Cause.CLUSTER_LOST),
    ),
    "local head has ended": (SENT, Seen(silence="no", is_gone=True), {}, State.FAILED, Cause.CLUSTER_LOST),
    "local head has ended, and the run saw it as a lost node": (
        *(SENT, Seen(silence="no", is_gone=True), own("failed", cause="node lost"), State.FAILED, Cause.CLUSTER_LOST),
    ),
    "lost a node, on a cluster that answers": (
        *(SENT, seen("FAILED", exit_code=1), own("failed", cause="node lost"), State.FAILED, Cause.NODE_LOST),
    ),
    "failed by itself before the cluster was lost": (
        *(SENT, Seen(silence="no", is_gone=True), own("failed", cause="user code"), State.FAILED, Cause.USER),
    ),
    "silent, but the run's heart beats": (
        *(replace(SENT, silent_since=NOW - 100), Seen(silence="no"), own("running", heartbeat_at=NOW - 5)),
        *(State.RUNNING, None),
    ),
    "back again": (
        *(replace(SENT, state=State.FAILED, cause=Cause.CLUSTER_LOST), seen("RUNNING"), own("running")),
        *(State.RUNNING, None),
    ),
    "started anew, job forgotten": (SENT, Seen(session="s2"), {}, State.FAILED, Cause.CLUSTER_LOST),
    "started anew, job still said to run": (SENT, seen("RUNNING", "s2"), {}, State.FAILED, Cause.CLUSTER_LOST),
    "started anew, job known as ended": (SENT, seen("SUCCEEDED", "s2"), {}, State.SUCCEEDED, None),
    "forgotten": (SENT, Seen(session="s1"), {}, State.UNKNOWN, None),
    "on its way": (RECORDED, Seen(session="s1"), {}, State.QUEUED, None),
    "never arrived": (replace(RECORDED, recorded_at=1.0), Seen(session="s1"), {}, State.QUEUED, None),
    "arrived without an answer": (RECORDED, seen("PENDING"), {}, State.STARTING, None),
    "waits in line": (replace(RECORDED, waits=True, reason="place 1"), Seen(silence="no"), {}, State.QUEUED, None),
    "ended for good": (replace(SENT, state=State.STOPPED), seen("RUNNING"), {}, State.STOPPED, None),
}


@pytest.mark.parametrize("case", CASES)
def test_state_and_cause(case: str) -> None:
    attempt, look, run, state, cause = CASES[case]

    verdict = judge(attempt, look, run, NOW)

    assert (verdict.state, verdict.cause) == (state, cause), verdict


def test_whoever_waits_says_for_what_and_how_long_at_most() -> None:
    for_nodes = own("running", waiting={"for": "nodes: 2 of 3 are there", "until": NOW})
    for_room = own("running", waiting={"for": "room", "until": NOW + 2 * 86400})
    for_another = {"job": "other", "holder": "attempt 2 (process 7 on far)"}
    reasons = [judge(SENT, seen("RUNNING"), run, NOW).reason for run in (for_nodes, for_another, for_room)]
    clock = time.strftime("%H:%M:%S", time.localtime(NOW))
    assert reasons[0] == f"waits for nodes: 2 of 3 are there, at most until {clock}"
    assert reasons[1] == "waits to see whether attempt 2 (process 7 on far) is still alive, at most 60 s"
    day = time.strftime("%Y-%m-%d %H:%M", time.localtime(NOW + 2 * 86400))
    assert reasons[2] == f"waits for room, at most until {day}"


def test_workers_that_wait_or_stand_still_say_so() -> None:
    def reason(*waits: Wait, **group: Any) -> str:
        counted = Progress("training", 3, 9, num_images=100, **group)
        return judge(SENT, seen("RUNNING"), own("running", groups=[counted], waits=waits), NOW).reason

    late, still = Wait("images: none came", NOW - 1), {"images": 50, "updated_at": NOW - 75}
    clock = time.strftime("%H:%M:%S", time.localtime(NOW + 45))
    assert reason(images=50, updated_at=NOW - 50) == ""
    assert reason(images=100, updated_at=NOW - 75) == "", "it has something else to do"
    assert reason(**still) == "no image has been counted for 75 s (training, epoch 3)"
    assert reason(late, **still, limit_s=120.0).endswith(f"; a rank is waited for at most until {clock}")
    assert reason(late, Wait("images", NOW + 45), **still) == f"waits for images, at most until {clock}"


def test_every_state_and_cause_is_reached_and_said() -> None:
    verdicts = [judge(attempt, look, run, NOW) for attempt, look, run, *_ in CASES.values()]

    assert {verdict.state for verdict in verdicts} == set(State)
    assert str(Verdict(State.FAILED, "why", Cause.NODE_LOST)) == "FAILED (node lost): why"


def test_jobs_are_brought_up_to_date_from_cluster_and_run_folder(home: Home) -> None:
    with home.ledger() as ledger:
        first, second = home.submit(ledger), home.submit(ledger)
        home.fake.set(first.latest.submission_id, "RUNNING")
        home.run_says(first, state="running")
        home.fake.set(second.latest.submission_id, "FAILED", driver_exit_code=4, message="bad image\n", end_time=5000)

        found = {job.id: job.latest for job in refresh(ledger, ledger.jobs())}

        assert found[first.id].state is State.RUNNING
        assert found[second.id].verdict == Verdict(State.FAILED, "bad image", Cause.DATA)
        assert found[second.id].ended_at == 5.0


@pytest.mark.parametrize(
    ("where", "phase"),
    [((), "training"), ((), ""), ((WINNER,), "training")],
    ids=["a run or the lanes of a sweep", "a look at the images before", "the winner of a sweep"],
)
def test_what_workers_wait_for_is_read_from_the_run_folder(home: Home, where: tuple[str, ...], phase: str) -> None:
    with home.ledger() as ledger:
        job = home.submit(ledger)
        home.fake.set(job.latest.submission_id, "RUNNING")
        home.run_says(job, state="running")
        folder = RunFolder.at(job.storage, job.run).folder.child(*where)
        with closing(Meter(folder)) as meter:
            if phase:
                meter.begin(phase, 100)
            meter.waits("images", time.time() + 60)
            while len(read_progress_and_waits(folder)[1]) < 1:
                time.sleep(0.05)
            found = refresh(ledger, ledger.jobs())[0].latest
        assert found.verdict.reason.startswith("waits for images, at most until ")
        assert refresh(ledger, ledger.jobs())[0].latest.verdict == Verdict(State.RUNNING)


def test_cluster_that_fell_silent_is_lost_within_a_minute_and_may_come_back(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert LOST_AFTER_S < 60
    monkeypatch.setattr(tracker, "LOST_AFTER_S", 0.2)
    with home.ledger() as ledger:
        job = home.submit(ledger)
        home.fake.set(job.latest.submission_id, "RUNNING")
        home.run_says(job, state="running")
        home.fake.fall_silent()

        assert refresh(ledger, [job])[0].latest.state is State.STARTING
        time.sleep(0.25)
        lost = refresh(ledger, ledger.jobs())[0].latest
        home.fake.listen()
        back = refresh(ledger, ledger.jobs())[0].latest

    assert (lost.state, lost.cause) == (State.FAILED, Cause.CLUSTER_LOST)
    assert (back.state, back.cause, back.silent_since) == (State.RUNNING, None, None)


def test_refresh_of_a_cluster_that_hangs_takes_no_longer_than_its_timeout(home: Home) -> None:
    with home.ledger() as ledger:
        job = home.submit(ledger)
        home.fake.fault = lambda *_: Fault(delay_s=2.0)
        began = time.monotonic()
        silent = refresh(ledger, [job], timeout_s=0.3)[0].latest

    assert time.monotonic() - began < 1.0
    assert silent.state is State.STARTING
    assert "no answer" in silent.reason


# Records and sends a job; it is killed while it waits for the answer.
SUBMITTER = """
    import sys
    from pathlib import Path
    from tltrain.jobs.clusters import load_cluster
    from tltrain.jobs.ledger import Ledger
    from tltrain.jobs.submission import Options, plan_job, submit
    from tltrain.spec.load import load_spec

    with Ledger() as ledger:
        job, package = plan_job(load_spec(sys.argv[1]).spec, load_cluster(sys.argv[2]), Options(with_tltrain=False))
        print(job.id, flush=True)
        submit(ledger, job, package)
"""


@pytest.mark.parametrize("arrives", [True, False], ids=["after it arrived", "before it arrived"])
def test_job_of_a_submitter_that_was_killed_is_found_again(home: Home, arrives: bool) -> None:
    (home.folder / "spec.yaml").write_text(dump_yaml(home.spec()))
    fault = Fault(late_s=30.0) if arrives else Fault(delay_s=30.0)
    home.fake.fault = lambda method, _: fault if method == "POST" else None
    command = [sys.executable, "-c", textwrap.dedent(SUBMITTER), str(home.folder / "spec.yaml"), str(home.cluster.path)]
    submitter = subprocess.Popen(command, env=os.environ.copy(), stdout=subprocess.PIPE, text=True)
    assert submitter.stdout is not None
    own_id = submitter.stdout.readline().strip()
    while ("POST", "/api/jobs/") not in home.fake.requests or (arrives and not home.fake.jobs):
        time.sleep(0.02)
    submitter.send_signal(signal.SIGKILL)
    submitter.wait()
    submitter.stdout.close()
    home.fake.fault = lambda *_: None

    with home.ledger() as ledger:
        found = refresh(ledger, [ledger.find(own_id)])[0]
        if not arrives:
            assert found.latest.verdict == Verdict(State.QUEUED, "on its way to the cluster")
            found, _ = retry(ledger, found)
        assert found.latest.state is State.STARTING

    assert home.fake.accepted == {f"{own_id}-1": 1}
