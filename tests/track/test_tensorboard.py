"""TensorBoard's event files, read back: by TensorBoard itself where it is installed, else record by record."""

from __future__ import annotations

import importlib
import struct
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from track_helpers import begin_run, finish_run, row, spec_in, write_trials

from tltrain.run_folder import RunFolder
from tltrain.storage import Folder
from tltrain.track.mirror import Mirror
from tltrain.track.tensorboard import TensorBoard

pytest.importorskip("tensorboardX")


def mirror(spec: Any, run: RunFolder) -> Mirror:
    return Mirror(spec, run, "tensorboard", TensorBoard(run.folder))


def events(path: Path) -> list[Any]:
    """The records of an event file: length, its checksum, an Event, its checksum."""
    messages: Any = importlib.import_module("tensorboardX.proto.event_pb2")
    data, found, at = path.read_bytes(), [], 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        found.append(messages.Event.FromString(data[at + 12 : at + 12 + length]))
        at += 12 + length + 4
    return found


def scalars_in(folder: Path) -> dict[str, dict[int, float]]:
    """Tag -> step -> value as TensorBoard shows them: a file that goes on drops what the one before has from there."""
    shown: dict[str, dict[int, float]] = defaultdict(dict)
    for path in sorted(folder.glob("*tfevents*")):
        for event in events(path):
            if event.WhichOneof("what") == "session_log":
                for values in shown.values():
                    for step in [step for step in values if step >= event.step]:
                        del values[step]
            for value in event.summary.value if event.WhichOneof("what") == "summary" else ():
                if value.WhichOneof("value") == "simple_value":
                    assert event.step not in shown[value.tag], f"{value.tag} has two values at {event.step}"
                    shown[value.tag][event.step] = value.simple_value
    return dict(shown)


def resumed_run(folder: Path) -> RunFolder:
    """A run that told three rows, two of them again after a crash before they were noted, and ended."""
    spec = spec_in(folder)
    run = begin_run(spec)
    run.record_metrics([row("lane-0", 1)])
    first = mirror(spec, run)
    first.update()
    noted = run.folder.read_bytes("tracking.json")
    run.record_metrics([row("lane-0", 2), row("lane-0", 3)])
    first.update()
    run.folder.write_bytes("tracking.json", noted)
    finish_run(run)
    mirror(spec, run).end("finished")
    return run


@pytest.fixture(autouse=True)
def distinct_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """File names hold the second they were begun in; these are a minute apart, as after a restart."""
    import tensorboardX.event_file_writer as writer

    begun = iter(range(1_750_000_000, 1_760_000_000, 60))

    class Clock:
        time = staticmethod(lambda: float(next(begun)))

    monkeypatch.setattr(writer, "time", Clock)


def test_a_resumed_run_has_each_row_once_under_standard_tags(tmp_path: Path) -> None:
    run = resumed_run(tmp_path)
    shown = scalars_in(tmp_path / run.name / "tensorboard")
    assert shown["train/loss"] == pytest.approx({10: 2.0, 20: 1.0, 30: 2 / 3})
    assert shown["val/top1"] == pytest.approx({10: 0.09, 20: 0.18, 30: 0.27})
    assert shown["learning_rate"] == pytest.approx({10: 0.01, 20: 0.01, 30: 0.01})
    assert shown["test/accuracy"] == {30: 0.5}
    assert "val/top5" not in shown


def test_each_trial_has_a_folder_with_its_hyperparameters(tmp_path: Path) -> None:
    spec = spec_in(tmp_path, sweep=True)
    run = begin_run(spec)
    write_trials(run, t0000="finished", t0001="finished")
    run.record_metrics([row("t0000", 1), row("t0001", 1)])
    finish_run(run)
    mirror(spec, run).end("finished")
    folder = tmp_path / "sweep" / "tensorboard"
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["sweep-t0000", "sweep-t0001"]
    tags = {
        value.tag
        for path in (folder / "sweep-t0001").iterdir()
        for event in events(path)
        for value in event.summary.value
    }
    assert {"train/loss", "_hparams_/session_start_info", "_hparams_/session_end_info"} <= tags


@pytest.mark.slow
def test_in_a_bucket_what_was_told_outlives_the_process_and_nothing_stays_here(s3_uri: str, tmp_path: Path) -> None:
    spec = spec_in(Path("unused"), storage=s3_uri)
    run = begin_run(spec)
    run.record_metrics([row("lane-0", 1)])
    mirror(spec, run).update()  # and is killed
    run.record_metrics([row("lane-0", 2)])
    finish_run(run)
    last = mirror(spec, run)
    last.end("finished")
    bucket = Folder.open(run.uri).child("tensorboard")
    for name in bucket.names():
        (tmp_path / name).write_bytes(bucket.read_bytes(name))
    assert scalars_in(tmp_path)["train/loss"] == pytest.approx({10: 2.0, 20: 1.0})
    assert isinstance(last._tracker, TensorBoard)
    assert not last._tracker._root.exists()


@pytest.mark.slow
def test_tensorboard_reads_the_same(tmp_path: Path) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = resumed_run(tmp_path)
    reader = accumulators.EventAccumulator(str(tmp_path / run.name / "tensorboard"))
    reader.Reload()
    losses = [(event.step, event.value) for event in reader.Scalars("train/loss")]
    assert losses == [(10, 2.0), (20, 1.0), (30, pytest.approx(2 / 3))]
    assert set(reader.Tags()["scalars"]) >= {"train/loss", "val/loss", "val/top1", "learning_rate", "epoch"}
