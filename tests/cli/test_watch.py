"""tltrain watch: what it shows of runs, sweeps and storages from their files, and when it ends."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tltrain import lease
from tltrain.cli import watch
from tltrain.cli.main import main
from tltrain.errors import StorageError
from tltrain.lease import hold
from tltrain.progress import Meter
from tltrain.report.lines import COLUMNS
from tltrain.run_folder import RunFolder
from tltrain.storage import Folder

SPEC = "name: {name}\nmodel: {{name: resnet50}}\ndata: {{train: a}}\ntrain: {{epochs: 3}}\n"
SWEEP = "sweep: {space: {optim.learning_rate: {grid: [0.01, 0.1]}}}\n"
HEADER = {
    "versions": {"tltrain": "0.1.0", "torch": "2.9"},
    "devices": "no GPU, 2 CPU cores",
    "workers": "1 x 1 CPU",
    "num_train": 1000,
    "num_val": 100,
    "num_test": 0,
    "classes": ["a", "b"],
    "image_size": 224,
    "trained_parameters": 10,
    "parameters": 100,
    "stages": [{"name": "stem", "trained": False}, {"name": "head", "trained": True}],
    "model": "resnet50",
    "run": "runs/x",
    "searched": None,
    "notes": [],
}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Look often, take leases at once, and keep an index of runs here."""
    for name in ("LOCAL_INTERVAL_S", "REMOTE_INTERVAL_S"):
        monkeypatch.setattr(watch, name, 0.05)
    monkeypatch.setattr(lease, "SETTLE_S", 0.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def row(lane: str, epoch: int) -> dict[str, Any]:
    metrics = {"train_loss": 1.0 / epoch, "train_top1": 0.5, "val_loss": 1.5 / epoch, "val_top1": 0.3 * epoch}
    speed = {"learning_rate": 0.01, "train_images_per_s": 50.0, "epoch_s": 2.0}
    return {"lane": lane, "step": 10 * epoch, "epoch": epoch, **metrics, **speed}


def begin(storage: str, name: str, *, sweep: bool = False) -> RunFolder:
    run = RunFolder.at(storage, name)
    run.write_spec(SPEC.format(name=name) + (SWEEP if sweep else ""))
    run.write_json("header.json", HEADER)
    run.update(name=name, state="running", started_at=time.time(), **({"kind": "sweep"} if sweep else {}))
    return run


def write_trials(run: RunFolder, first: str, second: str) -> None:
    best = {"epoch": 3, "top1": 0.9, "loss": 0.5}
    trials = [
        {"trial": f"t{number}", "values": {"optim.learning_rate": rate}, "state": state, "epochs": epochs, "best": best}
        for number, (rate, state, epochs) in enumerate([(0.01, first, 3), (0.1, second, 1)])
    ]
    run.write_json("trials.json", trials)
    run.record_metrics([*(row("t0", epoch) for epoch in (1, 2, 3)), row("t1", 1)])


def finish(run: RunFolder, **fields: Any) -> None:
    best = {"epoch": 3, "top1": 0.9, "loss": 0.5}
    evaluation = {"split": "test", "accuracy": 0.8, "accuracy_interval_95": [0.7, 0.9], "num_images": 50}
    run.update(state="finished", finished_at=time.time(), best=best, evaluation=evaluation, **fields)


def watching(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["tltrain", "watch", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def between_looks(monkeypatch: pytest.MonkeyPatch, *events: Callable[[], None]) -> None:
    """Have one thing after another happen after each look, where watching else waits."""
    coming = iter(events)
    monkeypatch.setattr(watch._Patience, "wait", lambda _: next(coming)())


def test_a_run_that_somebody_else_trains_is_followed_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = begin(str(tmp_path), "x")

    def train() -> None:
        with hold(run.folder):
            for epoch in (1, 2, 3):
                time.sleep(0.15)
                run.record_metrics([row("lane-0", epoch)])
            finish(run)

    trainer = threading.Thread(target=train)
    trainer.start()
    code = watching(monkeypatch, run.uri)
    trainer.join()
    lines = capsys.readouterr().out.splitlines()
    assert code == 0
    assert lines[0].startswith("tltrain     0.1.0")
    assert [line[:6].strip() for line in lines if "/3 " in line[:7]] == ["1/3", "2/3", "3/3"]
    assert lines.count(COLUMNS) == 1
    assert any("Test accuracy 0.8000" in line for line in lines)
    assert not any("\x1b" in line for line in lines)


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"state": "failed", "error": ["loss is not finite"]}, "error: loss is not finite"),
        ({"state": "interrupted"}, "error: the run was interrupted"),
        ({"state": "running"}, "error: nothing is heard of the run any more"),
    ],
    ids=lambda part: part["state"] if isinstance(part, dict) else None,
)
def test_a_run_that_ended_badly_ends_the_watching_with_1(
    state: dict[str, Any],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = begin(str(tmp_path), "x")
    dead = {"owner": "x", "attempt": 1, "host": socket.gethostname(), "pid": 1, "process": "gone", "heartbeat_at": 0.0}
    run.write_json("lease.json", dead)
    run.update(**state)
    assert watching(monkeypatch, run.uri) == 1
    assert said in capsys.readouterr().err


def test_once_shows_how_far_a_run_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = begin(str(tmp_path), "x")
    run.record_metrics([row("lane-0", 1)])
    with counted(run.folder):
        assert watching(monkeypatch, run.uri, "--once") == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[-1].startswith("Epoch 2/3 training  50 %")
        assert max(map(len, lines)) <= 80
        assert watching(monkeypatch, run.uri, "--once", "--json") == 0
        facts = json.loads(capsys.readouterr().out)
    assert (facts["state"], facts["last_epoch"]["epoch"]) == ("running", 1)
    assert facts["progress"]["share"] == 0.5


class counted:
    """A worker group that is half through the second epoch of three."""

    def __init__(self, folder: Folder) -> None:
        self._folder, self._meter = folder, Meter(folder)

    def __enter__(self) -> None:
        self._meter.begin_epoch(2, 3)
        self._meter.begin("training", 100)
        self._meter.at(50)
        deadline = time.monotonic() + 5
        while not self._folder.child("progress").names() and time.monotonic() < deadline:
            time.sleep(0.02)

    def __exit__(self, *_: object) -> None:
        self._meter.close()


def test_a_sweep_is_a_line_per_trial_that_ends_and_its_table_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = begin(str(tmp_path), "s", sweep=True)
    write_trials(run, "finished", "running")
    assert watching(monkeypatch, run.uri, "--once") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "1 of 2 trials ended  67 %"
    assert sum(line.startswith("t0 ") for line in lines) == 1
    write_trials(run, "finished", "stopped")
    finish(run, winner="t0", winner_values={"optim.learning_rate": 0.01}, winner_run="winner")
    assert watching(monkeypatch, run.uri) == 0
    out = capsys.readouterr().out
    assert "Winner      t0: optim.learning_rate=0.01" in out
    assert "   1/2    t0  top-1 90.0 %" in out
    assert sum(line.startswith("trial ") for line in out.splitlines()) == 1


def test_a_storage_is_watched_until_nothing_runs_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = tmp_path / "runs"
    finish(begin(str(storage), "old"))
    new = begin(str(storage), "new")
    between_looks(monkeypatch, lambda: finish(new))
    with hold(new.folder):
        assert watching(monkeypatch, str(storage)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["name", "new", "old"]
    assert "new  finished" in lines
    assert watching(monkeypatch, str(storage), "--once", "--json") == 0
    assert {run["name"]: run["state"] for run in json.loads(capsys.readouterr().out)["runs"]} == {
        "new": "finished",
        "old": "finished",
    }


def test_json_is_a_line_for_each_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = begin(str(tmp_path), "x")
    between_looks(monkeypatch, lambda: run.record_metrics([row("lane-0", 1)]), lambda: None, lambda: finish(run))
    with hold(run.folder):
        assert watching(monkeypatch, run.uri, "--json") == 0
    seen = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["state"] for each in seen] == ["running", "running", "finished"]
    assert [each["last_epoch"] and each["last_epoch"]["epoch"] for each in seen] == [None, 1, 1]


class Silent:
    """A storage that does not answer for a while, and then shows the end."""

    def __init__(self, failures: int) -> None:
        self.failures, self.looks = failures, 0

    def look(self) -> Any:
        from tltrain.cli.watching import View

        self.looks += 1
        if self.looks <= self.failures:
            raise StorageError("no answer")
        return View([], [], None, {}, ending=["the end"])


def test_a_storage_that_does_not_answer_is_asked_less_and_less_often_and_named_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tltrain.cli import watching as views

    silent, waits = Silent(4), list[float]()
    monkeypatch.setattr(views, "make_watcher", lambda _: silent)
    monkeypatch.setattr(watch._Patience, "wait", lambda patience: waits.append(patience._interval_s))
    assert watching(monkeypatch, "s3://bucket/runs") == 0
    out, err = capsys.readouterr()
    assert out == "the end\n"
    assert err.count("no answer") == 1
    assert len(waits) == 4
    assert waits == sorted(waits)
    assert waits[-1] > 2 * waits[0]


def test_what_is_no_run_and_no_storage_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert watching(monkeypatch, str(tmp_path / "nothing")) == 2
    assert "this is no run folder" in capsys.readouterr().err


@pytest.mark.slow
def test_over_s3(s3_uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run = begin(s3_uri, "x")
    run.record_metrics([row("lane-0", 1)])
    finish(run)
    assert watching(monkeypatch, run.uri) == 0
    assert "Test accuracy 0.8000" in capsys.readouterr().out
    assert watching(monkeypatch, s3_uri, "--once") == 0
    assert "finished" in capsys.readouterr().out
