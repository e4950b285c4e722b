"""Secrets of a job: their values are in no file, request, log or answer, on neither side; only the program has them."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from job_helpers import Home
from tiny import tiny_spec

from tltrain.cli.main import main
from tltrain.environment import SECRETS_VARIABLE
from tltrain.jobs.clusters import load_cluster
from tltrain.jobs.submission import retry
from tltrain.jobs.tracker import refresh
from tltrain.run_folder import RunFolder
from tltrain.spec.load import dump_yaml

CANARY = "canary-5e1c9a7d"


def holding(folder: Path, *but: Path) -> list[Path]:
    """The files below a folder that hold the canary, plainly or packed."""
    found = []
    for path in folder.rglob("*"):
        if path.is_file() and path not in but:
            content = path.read_bytes()
            if content[:2] == b"PK":
                with zipfile.ZipFile(io.BytesIO(content)) as archive:
                    content += b"".join(archive.read(name) for name in archive.namelist())
            if CANARY.encode() in content:
                found.append(path)
    return found


@pytest.fixture
def canary(home: Home, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A secret in the submitter's own environment and in a file, both named by the cluster file; the secret's file."""
    file = home.folder / "secret"
    file.write_text(CANARY)
    monkeypatch.setenv("MY_SECRET", CANARY)
    path = home.cluster.path
    path.write_text(path.read_text() + f"secrets: {{API_KEY: 'env:MY_SECRET', OTHER_KEY: 'file:{file}'}}\n")
    home.cluster = load_cluster(str(path))
    return file


def test_what_is_sent_recorded_and_shown_holds_no_secret(
    home: Home,
    canary: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.DEBUG)
    with home.ledger() as ledger:
        job = home.submit(ledger, uploads=[Path(__file__).parent])
        home.run_says(job, state="failed", cause="node lost", error=["x"])
        job, _ = retry(ledger, refresh(ledger, [job])[0])
    for arguments in (["status", job.id, "--json"], ["status", job.id], ["jobs", "-a", "--json"], ["logs", job.id]):
        monkeypatch.setattr(sys, "argv", ["tltrain", *arguments])
        with pytest.raises(SystemExit):
            main()
    with home.ledger():
        pass  # the last connection folds the log of writes into the ledger

    assert len(home.fake.bodies) == 2
    assert "env:MY_SECRET" in str(home.fake.bodies), "the reference travels"
    for sent in (home.fake.bodies, home.fake.requests, home.fake.headers, home.fake.jobs):
        assert CANARY not in str(sent)
    assert home.fake.packages
    for content in home.fake.packages.values():
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            assert not any(
                CANARY.encode() in archive.read(name) for name in archive.namelist() if "test_secrets" not in name
            )
    assert holding(home.folder, canary, *home.folder.rglob("uploads/*")) == []
    said = capsys.readouterr()
    assert CANARY not in caplog.text + said.out + said.err


PROGRAM = """
import os
import torch

def build(num_classes):
    assert os.environ["API_KEY"] == open("secret").read(), "the program has the secret"
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
                               torch.nn.Linear(4, num_classes))
"""


@pytest.mark.slow
def test_a_run_that_has_a_secret_writes_and_prints_none(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(CANARY)
    (tmp_path / "nets.py").write_text(PROGRAM)
    model = {"factory": "nets:build", "weights": "random", "freeze_depth": 0}
    spec = tiny_spec(tmp_path / "digits", {"allow_code": True, "model": model})
    (tmp_path / "spec.yaml").write_text(dump_yaml(spec))
    variables = {SECRETS_VARIABLE: json.dumps({"API_KEY": f"file:{tmp_path}/secret"}), "AWS_SECRET_ACCESS_KEY": CANARY}

    done = subprocess.run(
        [sys.executable, "-m", "tltrain.run", "spec.yaml", "--local"],
        env=os.environ | variables,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert RunFolder.at(spec.storage, spec.name).state()["state"] == "finished"
    assert CANARY not in done.stdout + done.stderr
    assert holding(tmp_path, tmp_path / "secret") == []
