"""Shell completion: what is offered where, and the script in a real bash."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tltrain.cli import completion


@pytest.fixture(autouse=True)
def near(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with specs, runs and clusters."""
    for name in (
        "a.yaml",
        "jobs/quick.yaml",
        "jobs/note.txt",
        "jobs/deep/far.yaml",
        ".hidden/x.yaml",
        "cluster/big.yaml",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name in ("one", "two"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "run.json").touch()
    (tmp_path / "runs" / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path


def test_specs_runs_and_clusters_that_begin_with_what_is_typed(near: Path) -> None:
    assert completion.specs("") == ["a.yaml", "cluster/big.yaml", "jobs/quick.yaml"]
    assert completion.specs("jobs/") == ["jobs/deep/far.yaml", "jobs/quick.yaml"]
    assert completion.specs("jobs/q") == ["jobs/quick.yaml"]
    assert completion.specs(f"{near}/a") == [f"{near}/a.yaml"]
    assert completion.runs("") == completion.runs("runs/") == ["runs/one", "runs/two"]
    assert completion.runs("runs/t") == ["runs/two"]
    assert completion.clusters("") == ["big"]
    assert completion.clusters("x") == []


def test_folders_that_are_not_there_offer_nothing() -> None:
    assert completion.specs("no/such/place/x") == []
    assert completion.runs("a.yaml/x") == []


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
@pytest.mark.parametrize(
    ("words", "offered"),
    [("run jo", ["jobs/quick.yaml"]), ("submit a.yaml --cluster ''", ["big"]), ("doc", ["doctor"])],
)
def test_script_completes_in_bash(words: str, offered: list[str]) -> None:
    program = Path(sys.executable).with_name("tltrain")
    if not program.exists():
        pytest.skip("tltrain is not installed as a program")
    script = f"""
        eval "$(_TLTRAIN_COMPLETE=source_bash {program})"
        complete -p tltrain > /dev/null || exit 9
        COMP_WORDS=(tltrain {words}); COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
        _tltrain_completion {program}
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """

    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=60, check=False, env=os.environ
    )

    assert (done.returncode, done.stdout.split()) == (0, offered), done.stderr
