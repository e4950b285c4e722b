"""Following a job: lost connections, ends, its turn in the queue, and repeated attempts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from fake_server import Fault
from job_helpers import Home

from tltrain.errors import SpecError
from tltrain.jobs import follow, retries, tracker
from tltrain.jobs.follow import Follower
from tltrain.jobs.ledger import Job, Ledger, new_attempt
from tltrain.jobs.ray_jobs import Usage
from tltrain.jobs.states import Cause, State, Verdict
from tltrain.jobs.submission import next_attempt, remove, retry, stop
from tltrain.jobs.waiting import line, reason_to_wait


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Polls and pauses that tests can wait for."""
    for name in ("POLL_S", "QUEUE_POLL_S", "RECONNECT_S"):
        monkeypatch.setattr(follow, name, 0.02)
    budgets = {cause: (most, 0.01, 0.05) for cause, (most, _, _) in retries.BUDGETS.items()}
    monkeypatch.setattr(retries, "BUDGETS", budgets)


@dataclass
class Following:
    """A follower in a thread of its own, and what it said."""

    printed: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    verdict: Verdict | None = None

    @property
    def text(self) -> str:
        return "".join(self.printed)


@contextmanager
def following(job: Job, *, retrying: bool = False) -> Iterator[Following]:
    """Follow a job for the length of a `with` block, which has to bring it to its end."""
    result = Following()

    def run() -> None:
        with Ledger() as ledger:
            follower = Follower(ledger, job, result.printed.append, result.told.append, retrying=retrying)
            result.verdict = follower.follow()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield result
    thread.join(timeout=20)
    assert not thread.is_alive(), result


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.01)


def test_every_line_is_printed_once_to_the_very_last(home: Home) -> None:
    with home.ledger() as ledger:
        job = home.submit(ledger)
    own_id = job.latest.submission_id
    with following(job) as result:
        for number in range(5):
            home.fake.logs[own_id] = home.fake.logs.get(own_id, "") + f"line {number}\n"
            time.sleep(0.05)
        with home.fake.lock:
            home.fake.logs[own_id] += "the last words\n"
            home.fake.jobs[own_id]["status"] = "SUCCEEDED"

    assert result.text == "".join(f"line {number}\n" for number in range(5)) + "the last words\n"
    assert result.verdict == Verdict(State.SUCCEEDED)


@pytest.mark.parametrize(("state", "status"), [("finished", "SUCCEEDED"), ("failed", "FAILED")])
def test_last_words_are_waited_for_where_the_run_folder_knows_the_end_first(
    home: Home, state: str, status: str
) -> None:
    with home.ledger() as ledger:
        job = home.submit(ledger)
        own_id = job.latest.submission_id
        home.fake.set(own_id, "RUNNING")
        with following(job) as result:
            home.run_says(job, state=state)
            until(lambda: not ledger.find(job.id).latest.state.is_active)
            home.fake.logs[own_id] = "the last words\n"
            home.fake.set(own_id, status)

    assert result.text == "the last words\n"
    assert result.verdict is not None
    assert result.verdict.state is State(status)


def test_lost_connection_is_not_the_end_of_the_job(home: Home) -> None:
    with home.ledger() as ledger:
        job = home.submit(ledger)
    own_id = job.latest.submission_id
    home.fake.logs[own_id] = "before\n"
    with following(job) as result:
        until(lambda: result.text == "before\n")
        home.fake.fall_silent()
        until(lambda: result.told)
        home.fake.logs[own_id] += "meanwhile\n"
        home.fake.listen()
        until(lambda: "meanwhile" in result.text)
        home.fake.set(own_id, "SUCCEEDED")

    assert result.text == "before\nmeanwhile\n"
    assert result.told[0].startswith("Connection lost")
    assert "Connected again." in result.told
    assert result.verdict == Verdict(State.SUCCEEDED)


def test_logs_that_fail_now_and_then_are_printed_whole(home: Home) -> None:
    with home.ledger() as ledger:
        job = home.submit(ledger)
    own_id = job.latest.submission_id
    count = iter(range(10**6))
    home.fake.fault = lambda *_: [None, Fault(status=500), Fault(drops_answer=True)][next(count) % 3]
    with following(job) as result:
        for number in range(10):
            home.fake.logs[own_id] = home.fake.logs.get(own_id, "") + f"line {number}\n"
            time.sleep(0.03)
        home.fake.fault = lambda *_: None
        home.fake.set(own_id, "SUCCEEDED")

    assert result.text == "".join(f"line {number}\n" for number in range(10))


def test_cluster_that_never_comes_back_is_the_end(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker, "LOST_AFTER_S", 0.2)
    with home.ledger() as ledger:
        job = home.submit(ledger)
    with following(job, retrying=True) as result:
        time.sleep(0.1)
        home.fake.fall_silent()

    assert result.verdict is not None
    assert (result.verdict.state, result.verdict.cause) == (State.FAILED, Cause.CLUSTER_LOST)
    assert result.told[-1] == "Not repeated: cluster lost: all 3 retries are used."
    assert home.fake.accepted.total() == 1


@pytest.mark.parametrize("is_silent", [False, True])
def test_following_ends_in_time_and_the_job_goes_on(home: Home, is_silent: bool) -> None:
    with home.ledger() as ledger:
        job = home.submit(ledger)
        if is_silent:
            home.fake.fall_silent()
        follower = Follower(ledger, job, lambda _: None, lambda _: None, retrying=True, timeout_s=0.2)
        began = time.monotonic()
        with pytest.raises(TimeoutError, match=f"the job {job.id} has not ended yet: it is "):
            follower.follow()
        assert 0.2 <= time.monotonic() - began < 5
        assert ledger.find(job.id).latest.state.is_active
    assert home.fake.accepted == {job.latest.submission_id: 1}


def test_following_ends_in_time_before_the_next_attempt(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "BUDGETS", {Cause.NODE_LOST: (5, 600.0, 600.0)})
    with home.ledger() as ledger:
        job = home.submit(ledger)
        home.fake.set(job.latest.submission_id, "FAILED", driver_exit_code=137)
        with pytest.raises(TimeoutError, match=r"FAILED \(node lost\)"):
            Follower(ledger, job, lambda _: None, lambda _: None, retrying=True, timeout_s=0.2).follow()
        assert len(ledger.find(job.id).attempts) == 1


def test_cluster_that_was_started_anew_gets_the_job_again(home: Home) -> None:
    with home.ledger() as ledger:
        job = home.submit(ledger)
    with following(job, retrying=True) as result:
        time.sleep(0.1)
        home.fake.start_anew()
        until(lambda: f"{job.id}-2" in home.fake.jobs)
        home.fake.set(f"{job.id}-2", "SUCCEEDED")

    assert result.verdict == Verdict(State.SUCCEEDED)
    assert home.fake.accepted == {f"{job.id}-1": 1, f"{job.id}-2": 1}


def test_out_of_memory_is_repeated_once_with_half_the_micro_batch(home: Home) -> None:
    with home.ledger() as ledger:
        job = home.submit(ledger)
        with following(job, retrying=True) as result:
            for number in (1, 2):
                until(lambda number=number: f"{job.id}-{number}" in home.fake.jobs)
                home.run_says(job, attempt=number, state="failed", error=["no memory"], cause="out of memory")
                home.fake.set(f"{job.id}-{number}", "FAILED", driver_exit_code=3)

    assert result.verdict == Verdict(State.FAILED, "no memory", Cause.OUT_OF_MEMORY)
    entrypoints = [body["entrypoint"] for body in home.fake.bodies.values()]
    assert entrypoints == [
        "python -m tltrain.run spec.yaml",
        "python -m tltrain.run spec.yaml --set train.accumulation_steps=2",
    ]
    assert any("half the micro-batch; the batch stays the same" in text for text in result.told)


def test_user_errors_are_not_repeated_and_their_line_is_shown(home: Home) -> None:
    with home.ledger() as ledger:
        job = home.submit(ledger)
        own_id = job.latest.submission_id
        home.fake.logs[own_id] = 'Traceback:\n  File "/job/net.py", line 3, in build\n    x\nKeyError: 1\n'
        home.fake.set(own_id, "FAILED", driver_exit_code=1)
        with following(job, retrying=True) as result:
            pass

        assert result.told[:2] == ["The program failed: KeyError: 1", "  /job/net.py:3 in build"]
        assert home.fake.accepted.total() == 1
        with pytest.raises(SpecError, match="not repeated: user code"):
            retry(ledger, ledger.find(job.id))
        job, _ = retry(ledger, ledger.find(job.id), force=True)
        assert job.latest.number == 2
    assert home.fake.accepted == {f"{job.id}-1": 1, f"{job.id}-2": 1}


def test_max_duration_spans_attempts(home: Home) -> None:
    with home.ledger() as ledger:
        job = home.submit(ledger, max_duration_s=100.0)
        ledger.update(job.latest, accepted_at=time.time() - 60)
        home.fake.set(job.latest.submission_id, "STOPPED")
        job, _ = retry(ledger, ledger.find(job.id))

    first, second = (body["entrypoint"] for body in home.fake.bodies.values())
    assert first.endswith("--max-duration 100")
    assert second.endswith(("--max-duration 40", "--max-duration 39"))


def test_accumulation_never_exceeds_a_workers_part_of_the_batch(home: Home) -> None:
    with home.ledger() as ledger:
        job = home.submit(ledger, spec=home.spec(**{"train.accumulation_steps": 16, "train.batch_size": 16}))
        home.run_says(job, state="failed", error=["no memory"], cause="out of memory")
        home.fake.set(job.latest.submission_id, "FAILED", driver_exit_code=3)

        with pytest.raises(SpecError, match="is one image already"):
            retry(ledger, job)
        assert next_attempt(job, halve_micro_batch=True).sets == ("train.accumulation_steps=32",)


def test_stop_ends_a_job_and_rm_forgets_it_everywhere(home: Home) -> None:
    with home.ledger() as ledger:
        job = home.submit(ledger)
        with pytest.raises(SpecError, match="is STARTING"):
            remove(ledger, [job])
        assert stop(ledger, job).latest.state is State.STOPPED
        assert home.fake.jobs[job.latest.submission_id]["status"] == "STOPPED"

        remove(ledger, ledger.jobs())

        assert ledger.jobs() == []
        assert home.fake.jobs == {}


def test_queued_job_is_sent_once_when_there_is_room(home: Home) -> None:
    home.fake.usage = {"CPU": (4.0, 4.0)}
    with home.ledger() as ledger:
        job = home.submit(ledger, queue=True)
        assert (job.latest.state, home.fake.accepted.total()) == (State.QUEUED, 0)
        with following(job) as result, following(job) as other:
            until(lambda: result.told and other.told)
            assert ledger.find(job.id).latest.reason == "place 1 of 1: it needs 1 CPU, and 0 of 4 are free"
            home.fake.usage = {"CPU": (3.0, 4.0)}
            until(lambda: home.fake.jobs)
            home.fake.set(f"{job.id}-1", "SUCCEEDED")

    assert result.verdict == other.verdict == Verdict(State.SUCCEEDED)
    assert home.fake.accepted == {f"{job.id}-1": 1}


def test_queued_job_can_be_taken_out(home: Home) -> None:
    with home.ledger() as ledger:
        job = stop(ledger, home.submit(ledger, queue=True))
        with following(job) as result:
            pass

    assert result.verdict == Verdict(State.STOPPED, "taken out of the queue")
    assert home.fake.accepted.total() == 0


def waiting_job(own_id: str, created_at: float, priority: int = 0, *, waits: bool = True, workers: int = 1) -> Job:
    attempt = new_attempt(own_id, 1, waits=waits)
    request = {"workers": workers, "cpus": 1, "gpus": "auto"}
    return Job(own_id, "x", "/r", "c", "/c.yaml", "p", request, priority, None, created_at, (attempt,))


def test_line_is_by_priority_then_age_and_says_who_is_ahead() -> None:
    jobs = [waiting_job("old-1", 1.0), waiting_job("new-2", 2.0), waiting_job("urgent-3", 3.0, priority=5)]
    free = Usage(4, 0, 4, 0)

    assert [job.id for job in line(jobs, "/c.yaml")] == ["urgent-3", "old-1", "new-2"]
    assert reason_to_wait(jobs[2], jobs, free) == ""
    assert reason_to_wait(jobs[1], jobs, free) == "place 3 of 3: behind old-1"


def test_what_was_sent_just_now_is_counted_before_the_cluster_counts_it() -> None:
    sent = waiting_job("sent-1", 1.0, waits=False, workers=3)
    job = waiting_job("next-2", 2.0, workers=2)

    reason = reason_to_wait(job, [sent, job], Usage(4, 8, 4, 8))

    assert reason == "place 1 of 1: it needs 2 CPU, and 1 of 4 are free"
    assert reason_to_wait(job, [job], None) == "place 1 of 1: the cluster does not say yet what is free"


def test_gpus_are_counted_where_the_cluster_has_any() -> None:
    job = waiting_job("a-1", 1.0, workers=2)

    assert reason_to_wait(job, [job], Usage(4, 2, 4, 1)) == "place 1 of 1: it needs 2 GPU, and 1 of 2 are free"
