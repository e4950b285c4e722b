"""What trackers are told: each row once whatever is cut short, a sweep as parent and children, nothing secret."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from track_helpers import begin_run, finish_run, row, spec_in, write_trials

from tltrain.errors import ResourceError
from tltrain.run_folder import RunFolder
from tltrain.track import tracking
from tltrain.track.entries import Entry, parameters, scalars
from tltrain.track.mirror import Mirror


class Recorder:
    """A tracker that keeps what it is told, as a server would, beyond the process that tells it."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.told: list[tuple[str, int]] = []
        self.values: dict[tuple[str, int], Mapping[str, float]] = {}
        self.files: list[tuple[str, str, str]] = []
        self.states: dict[str, str] = {}
        self.is_closed = False
        self.knows_its_last_step = True
        self.fails_at: int | None = None

    def begin(self, entry: Entry, known: str | None) -> tuple[str, bool]:
        if known is not None:
            self.states.pop(known, None)
            return known, False
        id = f"id-{len(self.entries)}"
        self.entries[id] = entry
        return id, True

    def last_step(self, id: str) -> int | None:
        steps = [step for told, step in self.told if told == id]
        return max(steps, default=None) if self.knows_its_last_step else None

    def log(self, id: str, step: int, values: Mapping[str, float]) -> None:
        if self.fails_at == len(self.told):
            raise ConnectionError("gone")
        self.told.append((id, step))
        self.values[id, step] = values

    def add_file(self, id: str, path: Path, folder: str) -> None:
        self.files.append((id, folder, path.name))

    def keep(self) -> None:
        pass

    def end(self, id: str, state: str) -> None:
        self.states[id] = state

    def close(self) -> None:
        self.is_closed = True


def test_a_run_is_an_entry_with_parameters_metrics_results_and_files(tmp_path: Path) -> None:
    spec, tracker = spec_in(tmp_path), Recorder()
    run = begin_run(spec)
    mirror = Mirror(spec, run, "recorder", tracker)
    run.record_metrics([row("lane-0", 1)])
    mirror.update()
    mirror.update()
    run.record_metrics([row("lane-0", 2)])
    finish_run(run)
    mirror.end("finished")
    assert tracker.told == [("id-0", 10), ("id-0", 20), ("id-0", 20)], "each row once, then the results"
    assert tracker.values["id-0", 10] == scalars(row("lane-0", 1))
    assert tracker.values["id-0", 20] == {"best/epoch": 2.0, "best/top1": 0.18, "best/loss": 1.25} | {
        "test/accuracy": 0.5,
        "test/num_images": 20.0,
    }
    entry = tracker.entries["id-0"]
    assert (entry.title, entry.kind, entry.parent) == ("single", "run", None)
    assert entry.parameters["optim.learning_rate"] == 0.01
    assert sorted(tracker.files) == [
        ("id-0", "", "evaluation.json"),
        ("id-0", "", "report.html"),
        ("id-0", "model", "model.json"),
        ("id-0", "model", "model.safetensors"),
    ]
    assert tracker.states == {"id-0": "finished"}
    assert tracker.is_closed


def test_a_sweep_is_a_parent_with_its_trials_as_children(tmp_path: Path) -> None:
    spec, tracker = spec_in(tmp_path, sweep=True), Recorder()
    run = begin_run(spec)
    write_trials(run, t0000="running", t0001="running")
    run.record_metrics([row("t0000", 1), row("t0001", 1)])
    mirror = Mirror(spec, run, "recorder", tracker)
    mirror.update()
    write_trials(run, t0000="stopped", t0001="running")
    mirror.update()
    assert tracker.states == {"id-1": "stopped"}
    run.record_metrics([row("t0001", 2), row("t0001-s1", 1)])
    write_trials(run, t0000="stopped", t0001="finished")
    finish_run(run)
    mirror.end("finished")
    parent, first, second, confirmed = tracker.entries.values()
    assert (parent.kind, parent.parent) == ("sweep", None)
    assert [(each.title, each.parent) for each in (first, second, confirmed)] == [
        ("sweep-t0000", "id-0"),
        ("sweep-t0001", "id-0"),
        ("sweep-t0001-s1", "id-0"),
    ]
    assert first.parameters == {"optim.learning_rate": 0.01}
    assert tracker.states == {"id-0": "finished", "id-1": "stopped", "id-2": "finished", "id-3": "finished"}
    assert sorted(tracker.told) == [("id-0", 20), ("id-1", 10), ("id-2", 10), ("id-2", 20), ("id-3", 10)]


@pytest.mark.parametrize("fails_at", range(5))
@pytest.mark.parametrize("notes_are_lost", [False, True], ids=["notes", "notes behind"])
def test_a_resumed_run_goes_on_in_its_entry_without_doubles(
    fails_at: int, notes_are_lost: bool, tmp_path: Path
) -> None:
    """Wherever the telling is cut short, another process goes on: every row is there once."""
    spec, tracker = spec_in(tmp_path), Recorder()
    run = begin_run(spec)
    run.record_metrics([row("lane-0", 1)])
    mirror = Mirror(spec, run, "recorder", tracker)
    mirror.update()
    before = run.folder.read_bytes("tracking.json")
    run.record_metrics([row("lane-0", epoch) for epoch in (2, 3, 4)])
    tracker.fails_at = fails_at
    with contextlib.suppress(ConnectionError):
        mirror.update()
    if notes_are_lost:
        run.folder.write_bytes("tracking.json", before)
    tracker.fails_at = None
    run.drop_metrics_after(20)  # it goes on from an earlier checkpoint, and trains two epochs again
    again = Mirror(spec, run, "recorder", tracker)
    again.update()
    run.record_metrics([row("lane-0", epoch) for epoch in (3, 4, 5)])
    again.end("interrupted")
    assert len(tracker.entries) == 1
    assert tracker.told == [("id-0", step) for step in (10, 20, 30, 40, 50)]
    assert tracker.states == {"id-0": "interrupted"}


def test_an_entry_that_is_gone_is_made_anew_from_the_first_row(tmp_path: Path) -> None:
    spec = spec_in(tmp_path)
    run = begin_run(spec)
    run.record_metrics([row("lane-0", 1)])
    Mirror(spec, run, "recorder", Recorder()).update()
    fresh = Recorder()
    fresh.begin = lambda entry, known: ("new", True)  # type: ignore[method-assign]
    Mirror(spec, run, "recorder", fresh).update()
    assert fresh.told == [("new", 10)]


def test_parameters_have_no_credentials_and_metrics_no_gaps(tmp_path: Path) -> None:
    found = parameters(spec_in(tmp_path).model_dump())
    assert found["data.train"] == "s3://bucket/images"
    assert "secret" not in str(found)
    assert not {"name", "storage", "track"} & found.keys()
    assert all(isinstance(value, str | int | float | bool) for value in found.values())
    assert "val/top5" not in scalars(row("lane-0", 1))


@pytest.fixture
def hung() -> Iterator[threading.Event]:
    """What a tracker that hangs waits for: set when its test is over, and its thread ends with the test.

    One that went on would warn in the log of another test.
    """
    over = threading.Event()
    yield over
    over.set()
    for thread in threading.enumerate():
        if thread.name.startswith("track-"):
            thread.join(30)
            assert not thread.is_alive()


def test_a_tracker_that_fails_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(Recorder):
        def begin(self, entry: Entry, known: str | None) -> tuple[str, bool]:
            raise ConnectionError("no server")

    track_with(Failing(), tmp_path, monkeypatch)
    assert "mlflow is told nothing more of this run: ConnectionError: no server" in caplog.text


def test_a_tracker_that_hangs_is_a_warning(
    hung: threading.Event, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Hanging(Recorder):
        def begin(self, entry: Entry, known: str | None) -> tuple[str, bool]:
            hung.wait()
            return super().begin(entry, known)

    monkeypatch.setattr(tracking, "END_LIMIT_S", {"finished": 0.3})
    track_with(Hanging(), tmp_path, monkeypatch)
    assert "mlflow has not taken everything in time" in caplog.text


@pytest.mark.parametrize(
    ("error", "state"), [(None, "finished"), (KeyboardInterrupt(), "interrupted"), (ValueError(), "failed")]
)
def test_the_end_of_the_run_is_told_as_it_was(
    error: BaseException | None, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = Recorder()
    install(monkeypatch, tracker)
    spec = spec_in(tmp_path, track=["mlflow"])
    run = begin_run(spec)
    with contextlib.suppress(KeyboardInterrupt, ValueError), tracking.tracked(spec, run):
        run.record_metrics([row("lane-0", 1)])
        if error:
            raise error
    assert tracker.states == {"id-0": state}
    assert tracker.told[0] == ("id-0", 10)


def test_ctrl_c_while_a_tracker_takes_the_rest_leaves_the_run_finished(
    hung: threading.Event, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Slow(Recorder):
        def end(self, id: str, state: str) -> None:
            hung.wait()

    def interrupt(self: object, deadline: float) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(tracking._Thread, "wait", interrupt)
    track_with(Slow(), tmp_path, monkeypatch)
    assert "not everything was told to mlflow" in caplog.text


def track_with(tracker: Recorder, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tell `tracker` of a run of one row that finishes."""
    install(monkeypatch, tracker)
    spec = spec_in(folder, track=["mlflow"])
    run = begin_run(spec)
    with tracking.tracked(spec, run):
        run.record_metrics([row("lane-0", 1)])


def install(monkeypatch: pytest.MonkeyPatch, tracker: Any) -> None:
    def make(_: str) -> Any:
        return lambda run: tracker

    monkeypatch.setattr(tracking, "_make", make)
    monkeypatch.setattr(tracking, "_is_installed", lambda _: True)


def test_a_tracker_whose_package_is_missing_is_refused_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "_is_installed", lambda _: False)
    tracking.check_packages(spec_in(tmp_path))  # event files are the default, and no more than that
    with pytest.raises(ResourceError) as error:
        tracking.check_packages(spec_in(tmp_path, track=["tensorboard", "mlflow", "wandb"]))
    assert ["tltrain[mlflow]" in str(p) or "tltrain[wandb]" in str(p) for p in error.value.problems] == [True, True]


def test_notes_of_several_trackers_stand_side_by_side(tmp_path: Path) -> None:
    spec = spec_in(tmp_path)
    run = begin_run(spec)
    run.record_metrics([row("lane-0", 1)])
    for name in ("one", "two"):
        Mirror(spec, run, name, Recorder()).update()
    assert RunFolder.open(run.uri).read_json("tracking.json") == {
        "one": {"": {"id": "id-0", "step": 10}},
        "two": {"": {"id": "id-0", "step": 10}},
    }
