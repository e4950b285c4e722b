"""The Python API: its names and signatures, what importing it costs, and runs and jobs made with it."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_spec

import tltrain
from tltrain import api
from tltrain.errors import RunError, SpecError
from tltrain.jobs import follow, submission
from tltrain.jobs.ledger import Job, Ledger
from tltrain.jobs.states import Cause, State, Verdict
from tltrain.run_folder import Result, RunFolder
from tltrain.spec.load import dump_yaml

SIGNATURES = {
    "load_spec": "(path: 'str | Path', sets: 'Sequence[str]' = ()) -> 'Spec'",
    "run": "(spec: 'Spec', *, local: 'bool' = False) -> 'Result'",
    "submit": "(spec: 'Spec', cluster: 'str | Path', *, uploads: 'Sequence[str | Path]' = (), queue: 'bool' = False, "
    "priority: 'int' = 0, max_duration_s: 'float | None' = None, installed: 'bool' = False) -> 'Job'",
    "Job": "(id: 'str') -> 'None'",
    "Job.status": "(self) -> 'Verdict'",
    "Job.logs": "(self) -> 'str'",
    "Job.wait": "(self, write: 'Callable[[str], None] | None' = None, *, timeout_s: 'float | None' = None)"
    " -> 'Verdict'",
    "Job.result": "(self, *, timeout_s: 'float | None' = None) -> 'Result'",
}
FIELDS = {
    "Result": ["uri", "state", "best", "evaluation", "metrics"],
    "Verdict": ["state", "reason", "cause"],
}


def named(name: str) -> Any:
    first, _, rest = name.partition(".")
    value = getattr(tltrain, first)
    return getattr(value, rest) if rest else value


def test_the_public_names_are_these() -> None:
    assert sorted(tltrain.__all__) == ["Job", "Result", "Spec", "load_spec", "run", "submit"]
    assert set(tltrain.__all__) <= set(dir(tltrain))
    methods = {name for name, value in vars(tltrain.Job).items() if inspect.isfunction(value) and name[0] != "_"}
    assert methods == {"status", "logs", "wait", "result"}
    for kind in (Result, Verdict):
        assert list(inspect.signature(kind).parameters) == FIELDS[kind.__name__]


@pytest.mark.parametrize("name", SIGNATURES)
def test_the_signatures_are_these(name: str) -> None:
    assert str(inspect.signature(named(name))) == SIGNATURES[name]


def test_everything_public_says_what_it_does() -> None:
    assert all(inspect.getdoc(named(name)) for name in SIGNATURES)


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'fit'"):
        getattr(tltrain, "fit")  # noqa: B009


CHECKS = {
    "importing imports nothing": """
import sys
import tltrain
assert not {"pydantic", "pyarrow", "typer", "torch", "ray"} & sys.modules.keys()
""",
    "the API imports neither torch nor ray": """
import sys
import tltrain
for name in tltrain.__all__:
    getattr(tltrain, name)
assert not {"torch", "ray"} & sys.modules.keys()
""",
    "run can be called whatever was imported before": """
import tltrain.run
import tltrain
assert callable(tltrain.run)
from tltrain import run
assert run is tltrain.run and run.execute
""",
    "run can be called after the rest": """
import tltrain
tltrain.submit, tltrain.Job
assert callable(tltrain.run)
""",
}


@pytest.mark.parametrize("code", CHECKS.values(), ids=CHECKS)
def test_in_a_fresh_interpreter(code: str, project_dir: Path) -> None:
    subprocess.run([sys.executable, "-c", code], cwd=project_dir, check=True, timeout=60)


def test_a_spec_is_loaded_run_and_its_result_returned(tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(dump_yaml(tiny_spec(tmp_path)))
    spec = tltrain.load_spec(path, ["train.epochs=1"])
    result = tltrain.run(spec, local=True)
    assert result == RunFolder.open(str(tmp_path / "runs" / "tiny")).result()
    assert (result.state, len(result.metrics)) == ("finished", 1)
    assert result.best is not None
    assert result.evaluation is not None
    assert result.evaluation["num_images"] == 45
    assert tltrain.run(spec, local=True) == result


def test_settings_without_effect_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(dump_yaml(tiny_spec(tmp_path)))
    tltrain.load_spec(path, ["optim.nesterov=false", "optim.betas=[0.5,0.6]"])
    assert "optim.betas" in caplog.text


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cluster file, and a ledger of this test's own. Nothing answers at the address."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("SOME_TOKEN", "secret")
    path = tmp_path / "far.yaml"
    path.write_text("kind: address\nurl: http://127.0.0.1:9\ntoken: env:SOME_TOKEN\n")
    return path


@pytest.fixture
def send(monkeypatch: pytest.MonkeyPatch) -> None:
    """Submitting records the job and sends nothing."""

    def record(ledger: Ledger, job: Job, package: Any) -> Job:
        ledger.add(job, package)
        return ledger.find(job.id)

    monkeypatch.setattr(submission, "submit", record)


def ends(monkeypatch: pytest.MonkeyPatch, verdict: Verdict) -> None:
    """Let following a job print a line and end with a verdict."""

    class Follower(follow.Follower):
        def follow(self) -> Verdict:
            self._write("epoch 1\n")
            return verdict

    monkeypatch.setattr(api, "Follower", Follower)


def test_a_submitted_job_is_found_by_its_id(tmp_path: Path, cluster: Path, send: None) -> None:
    job = tltrain.submit(tiny_spec(tmp_path), cluster, queue=True, priority=3)
    assert tltrain.Job(job.id).id == job.id
    assert job.status().state == "QUEUED"
    assert job.logs() == ""
    with Ledger() as ledger:
        assert ledger.find(job.id).priority == 3
    with pytest.raises(SpecError, match="there is no job"):
        tltrain.Job("nobody")


def test_waiting_gives_the_output_and_the_end_and_the_result(
    tmp_path: Path, cluster: Path, send: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tiny_spec(tmp_path)
    RunFolder.at(spec.storage, spec.name).update(state="finished", best={"epoch": 1}, evaluation={"accuracy": 0.5})
    job = tltrain.submit(spec, cluster)
    ends(monkeypatch, Verdict(State.SUCCEEDED))
    printed: list[str] = []
    assert job.wait(printed.append).state is State.SUCCEEDED
    assert printed == ["epoch 1\n"]
    assert job.result().evaluation == {"accuracy": 0.5}


def test_the_result_of_a_failed_job_is_an_error_with_its_cause(
    tmp_path: Path, cluster: Path, send: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = tltrain.submit(tiny_spec(tmp_path), cluster)
    ends(monkeypatch, Verdict(State.FAILED, "no images", Cause.DATA))
    with pytest.raises(RunError, match=rf"{job.id} is FAILED \(data\): no images"):
        job.result()
