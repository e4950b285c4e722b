"""The doctor: each check tells a fault from its absence, says what to do, and leaves nothing behind."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tltrain import doctor
from tltrain.cli.main import main
from tltrain.doctor import Finding
from tltrain.jobs.local_state import LocalState, write_private, write_state
from tltrain.jobs.processes import Process


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders of this user's own for states and tokens."""
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN_PATH", "TORCH_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "state"


def only(findings: Iterator[Finding]) -> Finding:
    (finding,) = findings
    assert finding.state == "ok" or finding.advice, "a fault without advice"
    return finding


def test_versions_are_compared_with_what_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(doctor._versions()).state == "ok"

    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda _: ["ray>=999", "no-such-package", "numpy>=1"])
    finding = only(doctor._versions())

    assert finding.state == "problem"
    assert "is not >=999" in finding.what
    assert "no-such-package is not installed" in finding.what


@pytest.mark.parametrize(
    ("limits", "state", "words"),
    [
        ((65536, 65536), "ok", ""),
        ((-1, -1), "ok", ""),
        ((1024, 1048576), "warning", "ulimit -n 65536"),
        ((1024, 8192), "warning", "ulimit -n 8192"),
        ((1024, 1024), "warning", "--ulimit nofile"),
    ],
)
def test_limit_of_open_files(limits: tuple[int, int], state: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "open_file_limits", lambda: limits)

    finding = only(doctor._open_files())

    assert finding.state == state
    assert words in finding.advice


@pytest.mark.parametrize(
    ("sizes", "words"), [((64 << 20, 64 << 20), "--shm-size"), ((8 << 30, 1 << 20), "what fills"), ((8 << 30,) * 2, "")]
)
def test_shared_memory_of_a_small_container(
    sizes: tuple[int, int], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "shared_memory", lambda: sizes)

    finding = only(doctor._shared_memory())

    assert (finding.state == "ok") is not bool(words)
    assert words in finding.advice


def test_storage_is_written_to_and_left_as_it_was(tmp_path: Path, s3_uri: str) -> None:
    assert only(doctor._storage(str(tmp_path / "a" / "runs"))).state == "ok"
    assert only(doctor._storage(s3_uri)).state == "ok"

    assert not (tmp_path / "a").exists()
    assert doctor.Folder.open(s3_uri).names() == []


def test_storage_that_cannot_be_written_is_a_problem(
    tmp_path: Path, s3_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(**_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refused)

    assert only(doctor._storage(str(tmp_path))).state == "problem"
    no_bucket = only(doctor._storage(s3_uri.replace("s3://bucket", "s3://none-")))
    assert no_bucket.state == "problem"
    assert "bucket" in no_bucket.advice


def test_tokens_that_others_can_read_are_problems(own_state: Path) -> None:
    write_private(own_state / "tltrain" / "local" / "token", "secret")
    assert only(doctor._tokens()).what == "1 files that this user alone can read"

    (own_state / "tltrain" / "local" / "token").chmod(0o644)
    finding = only(doctor._tokens())

    assert finding.state == "problem"
    assert finding.advice == f"chmod 600 {own_state}/tltrain/local/token"
    assert "secret" not in str(finding)


def test_cluster_that_is_up_and_does_not_answer_is_a_problem(own_state: Path) -> None:
    assert list(doctor._clusters(None)) == []
    me = Process.of(os.getpid())
    assert me is not None
    write_state("local", LocalState("http://127.0.0.1:9", "127.0.0.1:6379", (me,), "/tmp/x", 0.0))
    write_private(own_state / "tltrain" / "local" / "token", "secret")

    finding = only(doctor._clusters(None))

    assert (finding.check, finding.state) == ("cluster local", "problem")
    assert [one.check for one in doctor._clusters("no-such")] == ["cluster local", "cluster no-such"]


class FakeTorch:
    """A torch that sees no GPU."""

    class cuda:
        @staticmethod
        def is_available() -> bool:
            return False

    class version:
        cuda: str | None = None


@pytest.mark.parametrize(
    ("num_gpus", "cuda", "state", "words"),
    [(0, None, "ok", ""), (2, None, "problem", "CUDA build"), (2, "12.8", "problem", "CUDA 12.8")],
)
def test_gpus_that_torch_does_not_see_are_a_problem(
    num_gpus: int, cuda: str | None, state: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", FakeTorch)  # type: ignore[arg-type]
    monkeypatch.setattr(FakeTorch.version, "cuda", cuda)
    monkeypatch.setattr(doctor, "num_gpus", lambda: num_gpus)

    finding = only(doctor._devices())

    assert finding.state == state
    assert words in finding.advice


def test_ray_address_is_pointed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(doctor._ray()).state == "ok"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")

    assert "10.0.0.1:6379" in only(doctor._ray()).what


@pytest.mark.parametrize(("state", "code"), [("ok", 0), ("warning", 0), ("problem", 3)])
def test_exit_code_tells_of_problems_alone(
    state: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "examine", lambda *_: iter([Finding("memory", state, "x " * 80, "Do this")]))  # type: ignore[arg-type]

    for extra in ((), ("--json",)):
        monkeypatch.setattr(sys, "argv", ["tltrain", "doctor", *extra])
        with pytest.raises(SystemExit) as caught:
            main()
        assert int(caught.value.code or 0) == code
        out = capsys.readouterr().out
        assert json.loads(out)[0]["state"] == state if extra else max(map(len, out.splitlines())) <= 80
