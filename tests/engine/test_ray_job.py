"""The same program as a Ray job: submitted to a head that was started with `ray start --head`."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from heads import BIN, Head, running_head

from tltrain.run_folder import RunFolder

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("default")]


@pytest.fixture
def head() -> Iterator[Head]:
    with running_head() as head:
        yield head


def test_a_job_trains_a_shipped_spec_on_the_head(head: Head, project_dir: Path, tmp_path: Path) -> None:
    entrypoint = ["python", "-m", "tltrain.run", "jobs/fashion-lite0.yaml"]
    entrypoint += ["--set", "train.epochs=1", "--set", "model.freeze_depth=all", "--set", f"storage={tmp_path}"]
    done = subprocess.run(
        [str(BIN / "ray"), "job", "submit", "--working-dir", ".", "--", *entrypoint],
        cwd=project_dir,
        env=head.environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Test accuracy" in done.stdout
    state = RunFolder.at(str(tmp_path), "fashion-lite0").state()
    assert state["state"] == "finished"
    assert state["evaluation"]["accuracy"] > 0.3
