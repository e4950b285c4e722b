"""Talking to a Jobs server that fails in every way: one submission is one job, and the token goes nowhere else."""

from __future__ import annotations

import http.server
import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from fake_server import TOKEN, Fault
from job_helpers import Home

from tltrain.jobs import ray_jobs
from tltrain.jobs.endpoint import Endpoint
from tltrain.jobs.ray_jobs import NoAnswerError, RayJobs, RefusedError, Usage
from tltrain.jobs.request import build_request
from tltrain.jobs.states import State
from tltrain.jobs.upload import Entry, pack

REQUEST = build_request("tiny-012345", 1, pack([Entry("spec.yaml", b"name: tiny")]))
OWN_ID = REQUEST.submission_id


def once(*faults: tuple[str, str, Fault]) -> Callable[[str, str], Fault | None]:
    """Faults for the first request each of (method, beginning of the path)."""
    left = list(faults)

    def fault(method: str, path: str) -> Fault | None:
        hit = next((entry for entry in left if entry[0] == method and path.startswith(entry[1])), None)
        if hit is None:
            return None
        left.remove(hit)
        return hit[2]

    return fault


def test_submission_is_uploaded_and_taken(home: Home) -> None:
    RayJobs(home.fake.endpoint).submit(REQUEST)

    assert home.fake.packages == {REQUEST.package.name: REQUEST.package.content}
    assert home.fake.bodies[OWN_ID] == REQUEST.body()
    RayJobs(home.fake.endpoint).submit(replace(REQUEST, submission_id="tiny-012345-2"))
    assert [request[0] for request in home.fake.requests].count("PUT") == 1, "the same upload is sent once"


@pytest.mark.parametrize(
    "fault",
    [
        once(("POST", "/api/jobs", Fault(status=500))),
        once(("POST", "/api/jobs", Fault(drops_answer=True))),
        once(("POST", "/api/jobs", Fault(drops_answer=True)), ("GET", "/api/jobs/tiny", Fault(status=500))),
        once(("PUT", "/api/packages", Fault(drops_answer=True))),
        once(("GET", "/api/packages", Fault(status=503))),
        once(("POST", "/api/jobs", Fault(delay_s=1.0))),
    ],
    ids=["500", "answer lost", "answer lost and no look", "upload's answer lost", "503", "late"],
)
def test_one_submission_is_one_job_whatever_goes_wrong(home: Home, fault: Callable[[str, str], Fault | None]) -> None:
    home.fake.fault = fault

    RayJobs(home.fake.endpoint, timeout_s=0.4).submit(REQUEST, deadline_s=10)

    time.sleep(0.8)  # for an answer that comes late
    assert home.fake.accepted == {OWN_ID: 1}


def test_repeated_submission_is_the_same_job(home: Home) -> None:
    for _ in range(3):
        RayJobs(home.fake.endpoint).submit(REQUEST)

    assert home.fake.accepted == {OWN_ID: 1}


def test_no_available_agent_after_a_head_start_is_tried_again_until_the_deadline(home: Home) -> None:
    home.fake.fault = lambda method, path: Fault(status=500) if method == "POST" else None

    began = time.monotonic()
    with pytest.raises(NoAnswerError, match="No available agent"):
        RayJobs(home.fake.endpoint).submit(REQUEST, deadline_s=1.0)

    assert 0.3 < time.monotonic() - began < 2.0
    assert home.fake.accepted == {}


def test_200_submissions_with_one_answer_in_ten_lost_are_200_jobs(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_jobs, "_PAUSES_S", (0.0, 0.01))
    chance = random.Random(0)
    home.fake.fault = lambda *_: (
        chance.choice([Fault(status=500), Fault(drops_answer=True)]) if chance.random() < 0.1 else None
    )
    spec = home.spec()

    with home.ledger() as ledger:
        submitted = {home.submit(ledger, spec=spec).latest.submission_id for _ in range(200)}
        recorded = ledger.jobs()

    assert len(submitted) == 200
    assert home.fake.accepted == dict.fromkeys(submitted, 1), "none lost, none twice"
    assert {job.latest.state for job in recorded} == {State.STARTING}
    faulty = len(home.fake.requests) - 200 * 5
    assert faulty > 60, "the server did fail"


def test_what_a_cluster_says_is_read(home: Home) -> None:
    jobs = RayJobs(home.fake.endpoint)
    assert jobs.info(OWN_ID) is None
    assert jobs.logs(OWN_ID) == ""
    assert (jobs.stop(OWN_ID), jobs.delete(OWN_ID)) == (False, False)
    jobs.submit(REQUEST)
    home.fake.set(OWN_ID, "FAILED", message="exit code 2", driver_exit_code=2, end_time=12_000)
    home.fake.logs[OWN_ID] = "line\n"
    home.fake.usage = {"CPU": (1.0, 4.0), "GPU": (2.0, 2.0)}

    info = jobs.info(OWN_ID)

    assert info is not None
    assert (info.status, info.exit_code, info.end_time) == ("FAILED", 2, 12.0)
    assert jobs.list() == {OWN_ID: info}
    assert jobs.logs(OWN_ID) == "line\n"
    assert jobs.usage() == Usage(cpus=4, gpus=2, free_cpus=3, free_gpus=0)
    assert jobs.session() == "session_1"
    assert jobs.delete(OWN_ID)
    assert jobs.info(OWN_ID) is None


@pytest.mark.parametrize(("token", "said"), [(None, "asks for a token"), ("wrong-CANARY", "does not take the token")])
def test_refused_token_is_no_reason_to_try_again(home: Home, token: str | None, said: str) -> None:
    endpoint = replace(home.fake.endpoint, token=token)

    with pytest.raises(RefusedError, match=said) as caught:
        RayJobs(endpoint).submit(REQUEST)

    assert len(home.fake.requests) == 1
    assert "CANARY" not in str(caught.value) + repr(endpoint)


def test_silent_cluster_is_named(home: Home) -> None:
    home.fake.fall_silent()

    with pytest.raises(NoAnswerError, match=rf"{home.fake.endpoint.url} does not answer: .*refused"):
        RayJobs(home.fake.endpoint).info(OWN_ID)


def test_what_is_no_dashboard_is_refused() -> None:
    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>hello</html>")

        def log_message(self, format: str, *args: object) -> None: ...

    with _serving(Page) as url, pytest.raises(NoAnswerError, match="no JSON"):
        RayJobs(Endpoint(url, TOKEN)).session()


def test_token_follows_no_redirect(home: Home) -> None:
    class Elsewhere(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("Location", home.fake.endpoint.url + "/api/version")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None: ...

    with _serving(Elsewhere) as url, pytest.raises(RefusedError, match="302"):
        RayJobs(Endpoint(url, TOKEN)).session()
    assert home.fake.requests == []


def test_token_is_in_no_record_log_or_request_body(home: Home, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    home.fake.fault = once(("POST", "/api/jobs", Fault(status=500)))

    with home.ledger() as ledger:
        job = home.submit(ledger)
    with home.ledger() as ledger:  # the second connection folds the log of writes into the ledger
        assert ledger.find(job.id).latest.state is State.STARTING

    assert all(headers["Authorization"] == f"Bearer {TOKEN}" for headers in home.fake.headers)
    assert TOKEN not in caplog.text
    assert TOKEN not in str(home.fake.bodies)
    written = [path for path in (home.folder / "data").rglob("*") if path.is_file()]
    assert len(written) >= 2
    assert not any(TOKEN.encode() in path.read_bytes() for path in written)


class _serving:
    """Serves with a handler on a free port for the length of a `with` block; yields the address."""

    def __init__(self, handler: type[http.server.BaseHTTPRequestHandler]) -> None:
        self._server = http.server.HTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self) -> str:
        self._thread.start()
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
