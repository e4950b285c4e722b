"""The verbs around jobs, on a fake cluster: what goes to which stream, and the exit codes."""

from __future__ import annotations

import json
import logging
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_server import FakeRay
from job_helpers import Home, home_at

from tltrain.cli.main import main
from tltrain.jobs import follow
from tltrain.spec.load import dump_yaml


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    """A home with a fake cluster and spec.yaml; the logger is left as other tests expect it."""
    logger = logging.getLogger("tltrain")
    level, handlers = logger.level, list(logger.handlers)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(follow, "POLL_S", 0.02)
    with home_at(tmp_path) as home:
        (tmp_path / "spec.yaml").write_text(dump_yaml(home.spec()))
        yield home
    logger.setLevel(level)
    logger.handlers[:] = handlers


def tltrain(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str, str]:
    """Run the program in this process; returns its exit code, stdout and stderr."""
    monkeypatch.setattr(sys, "argv", ["tltrain", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    said = capsys.readouterr()
    return int(caught.value.code or 0), said.out, said.err


Call = tuple[pytest.MonkeyPatch, pytest.CaptureFixture[str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    return monkeypatch, capsys


def only_job(fake: FakeRay) -> str:
    (own_id,) = fake.jobs
    return own_id


def test_dry_run_prints_exactly_what_is_then_sent(home: Home, call: Call) -> None:
    submit = ("submit", "spec.yaml", "--cluster", "fake", "--max-duration", "60", "--upload", "digits/train.parquet")

    code, out, _ = tltrain(*call, *submit, "--dry-run")
    shown = json.loads(out)
    assert (code, home.fake.requests) == (0, [])
    tltrain(*call, *submit, "-d")

    sent = home.fake.bodies[only_job(home.fake)]
    shown_id, sent_id = (body["metadata"]["tltrain_job"] for body in (shown["request"], sent))
    assert json.loads(json.dumps(shown["request"]).replace(shown_id, sent_id)) == sent, "but for the random part"
    assert {"spec.yaml", "train.parquet", "tltrain/run.py"} <= {file["name"] for file in shown["upload"]["files"]}
    assert shown["upload"]["bytes"] == len(
        home.fake.packages[sent["runtime_env"]["working_dir"].removeprefix("gcs://")]
    )


def test_submit_says_where_the_job_is_and_what_comes_next(home: Home, call: Call) -> None:
    code, out, err = tltrain(*call, "submit", "spec.yaml", "--cluster", "fake", "-d")

    own_id = only_job(home.fake).removesuffix("-1")
    assert (code, out) == (0, "")
    assert f"{own_id} submitted to fake ({home.fake.endpoint.url})" in err
    for command in (f"tltrain status {own_id}", f"tltrain logs -f {own_id}", f"tltrain stop {own_id}"):
        assert command in err


@pytest.mark.parametrize(
    ("status", "exit_code", "expected"),
    [("SUCCEEDED", None, 0), ("FAILED", 1, 1), ("FAILED", 3, 3), ("FAILED", 4, 4), ("STOPPED", None, 1)],
)
def test_exit_code_of_a_followed_job_is_that_of_its_run(
    home: Home, call: Call, status: str, exit_code: int | None, expected: int
) -> None:
    tltrain(*call, "submit", "spec.yaml", "--cluster", "fake", "-d")
    home.fake.logs[only_job(home.fake)] = "a line\n"
    home.fake.set(only_job(home.fake), status, driver_exit_code=exit_code, message="why\n")

    code, out, err = tltrain(*call, "logs", "-f", "tiny")

    assert (code, out) == (expected, "a line\n")
    assert f" {status}" in err


def test_jobs_lists_active_ones_and_all_with_a(home: Home, call: Call) -> None:
    assert tltrain(*call, "jobs")[1:] == ("", "No jobs are active.\n")
    tltrain(*call, "submit", "spec.yaml", "--cluster", "fake", "-d")
    own_id = only_job(home.fake)

    out = tltrain(*call, "jobs")[1]
    assert out.splitlines()[0].split() == ["ID", "STATE", "CLUSTER", "AGE", "ATTEMPT", "WHY"]
    assert out.splitlines()[1].split()[:3] == [own_id.removesuffix("-1"), "STARTING", "fake"]
    home.fake.set(own_id, "FAILED", driver_exit_code=4, message="bad image\n")
    assert tltrain(*call, "jobs")[1:] == ("", "No jobs are active; `tltrain jobs -a` lists 1 that have ended.\n")
    assert "data: bad image" in tltrain(*call, "jobs", "-a")[1]
    (job,) = json.loads(tltrain(*call, "jobs", "-a", "--json")[1])
    assert (job["state"], job["cause"]) == ("FAILED", "data")


def test_status_says_why_and_what_comes_next(home: Home, call: Call) -> None:
    tltrain(*call, "submit", "spec.yaml", "--cluster", "fake", "-d", "--max-duration", "60")
    home.fake.set(only_job(home.fake), "FAILED", driver_exit_code=137)

    code, out, _ = tltrain(*call, "status", "tiny")

    assert code == 0
    assert "FAILED (node lost): the program was killed (signal 9)" in out
    assert f"{home.folder}/digits/runs/tiny" in out
    assert "tltrain retry tiny-" in out
    assert json.loads(tltrain(*call, "status", "tiny", "--json")[1])["cause"] == "node lost"


def test_what_is_shown_fits_80_columns_and_a_failure_that_is_not_repeated_says_so(
    home: Home, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    _, _, err = tltrain(*call, "submit", "spec.yaml", "--cluster", "fake", "-d")
    home.fake.set(only_job(home.fake), "FAILED", driver_exit_code=4, message=f"ImageError: {'a bad image ' * 20}\n")

    details, table = tltrain(*call, "status", "tiny")[1], tltrain(*call, "jobs", "-a")[1]

    submitted = err[err.index(" submitted to ") :]  # behind the warnings of the spec
    for line in (submitted + details + table).splitlines():
        assert len(line) <= 80 or max(len(word) for word in line.split()) > 55, line
    own_id = only_job(home.fake).removesuffix("-1")
    assert " ".join(details.split()).count("a bad image") == 20, "nothing is left out of the details"
    assert table.splitlines()[1].endswith("…")
    assert details.splitlines()[-3:] == [
        "no retry  data: the same data would fail in the same way",
        f"next      tltrain logs {own_id}",
        f"          tltrain retry --force {own_id}",
    ]


def test_stop_retry_and_rm(home: Home, call: Call) -> None:
    tltrain(*call, "submit", "spec.yaml", "--cluster", "fake", "-d")

    code, _, err = tltrain(*call, "stop", "tiny")
    assert (code, err.endswith(" STOPPED\n")) == (0, True)
    code, _, err = tltrain(*call, "retry", "tiny", "-d")
    assert (code, "attempt 2 was sent" in err) == (0, True)
    code, _, err = tltrain(*call, "rm", "tiny")
    assert (code, "Stop it first" in err) == (2, True)
    tltrain(*call, "stop", "tiny")
    assert tltrain(*call, "rm", "tiny")[0] == 0
    assert tltrain(*call, "status", "tiny")[0] == 2


def test_cluster_that_nobody_knows_leaves_no_record(home: Home, call: Call) -> None:
    code, _, err = tltrain(*call, "submit", "spec.yaml", "--cluster", "nowhere")
    assert (code, "there is no cluster nowhere" in err) == (2, True)
    assert tltrain(*call, "jobs", "-a")[2] == "No jobs are active.\n"


def test_what_is_not_on_the_cluster_is_warned_of(home: Home, call: Call) -> None:
    upload = ["--upload", "digits/train.parquet"]

    _, _, err = tltrain(*call, "submit", "spec.yaml", "--cluster", "fake", "--dry-run", *upload)

    assert "storage: " in err
    assert "data.test: " in err
    assert "data.train: " not in err


def test_a_queued_job_that_nobody_watches_is_sent_when_there_is_room(home: Home, call: Call) -> None:
    home.fake.usage = {"CPU": (4.0, 4.0)}

    _, _, err = tltrain(*call, "submit", "spec.yaml", "--cluster", "fake", "--queue", "-d")
    waiter = int(err.split("Process ")[1].split()[0])
    try:
        assert "waits in line for fake" in err
        assert home.fake.jobs == {}
        home.fake.usage = {"CPU": (0.0, 4.0)}
        deadline = time.monotonic() + 30
        while not home.fake.jobs:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        home.fake.set(only_job(home.fake), "SUCCEEDED")
        os.waitpid(waiter, 0)
    except AssertionError:
        os.kill(waiter, 9)
        raise


def test_status_and_jobs_are_quick_and_import_neither_ray_nor_torch(home: Home, call: Call) -> None:
    tltrain(*call, "submit", "spec.yaml", "--cluster", "fake", "-d")
    code = "import sys; sys.argv[0] = 'tltrain'\nfrom tltrain.cli.main import main\n"
    code += "try: main()\nexcept SystemExit as end: assert not end.code\n"
    code += "assert not {'ray', 'torch'} & sys.modules.keys()"

    for arguments in (["status", "tiny"], ["jobs"]):
        before = children_cpu_s()
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert children_cpu_s() - before < 1.5


def children_cpu_s() -> float:
    """CPU time of all children that have ended: other programs of the machine do not count."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
