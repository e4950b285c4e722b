"""Progress: counted without waiting, written now and then, read by anyone, and turned into a bar with the time left."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tltrain import progress
from tltrain.errors import RunError, StorageError
from tltrain.progress import (
    Bar,
    Meter,
    Pace,
    Progress,
    Wait,
    clock,
    read_progress,
    read_progress_and_waits,
    run_bar,
    sweep_bar,
    take_waits,
)
from tltrain.storage import Folder


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a hundred times a second."""
    monkeypatch.setattr(progress, "LOCAL_INTERVAL_S", 0.01)


def wait_for(folder: Folder, images: int) -> Progress:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        found = read_progress(folder)
        if found and found[0].images == images:
            return found[0]
        time.sleep(0.01)
    raise AssertionError(f"{images} images were never written")


def test_what_is_counted_is_read_by_others(tmp_path: Path) -> None:
    folder, meter = Folder.open(str(tmp_path)), Meter(Folder.open(str(tmp_path)), "3")
    meter.begin_epoch(2, 5, lanes=8)
    meter.begin("training", 100)
    meter.at(30)
    wait_for(folder, 30)
    meter.add(20)
    seen = wait_for(folder, 50)
    meter.close()
    assert (seen.phase, seen.epoch, seen.epochs, seen.lanes, seen.num_images) == ("training", 2, 5, 8, 100)
    assert (seen.share, seen.epochs_done) == (0.5, 1.5)
    assert seen.images_per_s > 0
    assert list((tmp_path / "progress").iterdir()) == [], "nothing is left of a group that has ended"


def test_nothing_is_written_while_nothing_changes_or_by_ranks_that_count_for_nobody(tmp_path: Path) -> None:
    folder, meter, silent = Folder.open(str(tmp_path)), Meter(Folder.open(str(tmp_path))), Meter()
    silent.begin("training", 10)
    meter.begin("training", 100)
    meter.at(10)
    first = wait_for(folder, 10)
    time.sleep(0.1)
    assert read_progress(folder) == [first]
    meter.close()
    silent.close()


def wait_for_waits(folder: Folder, what: list[str]) -> None:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if sorted(wait.what for wait in read_progress_and_waits(folder)[1]) == what:
            return
        time.sleep(0.01)
    raise AssertionError(f"{what} was never written")


def test_what_any_rank_waits_for_is_read_by_others_until_it_is_over(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path))
    first, second, other = (Meter(folder, name, rank=rank) for name, rank in (("0", 0), ("0", 1), ("1", 1)))
    first.begin("training", 100)
    first.waits("images", 500.0)
    second.waits("pictures", 600.0)
    other.waits("more", 700.0)
    wait_for_waits(folder, ["images", "more", "pictures"])
    assert read_progress_and_waits(folder)[1][0] == Wait("images", 500.0)
    assert len(read_progress(folder)) == 1, "what is waited for is no progress"
    second.waits("", 0.0)
    wait_for_waits(folder, ["images", "more"])
    for meter in (first, second, other):
        meter.close()
    assert list((tmp_path / "progress").iterdir()) == []


def test_what_a_group_that_was_killed_waited_for_is_forgotten_when_it_begins_again(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path))
    for file in ("0.waits-1.json", "10.waits-1.json"):
        folder.child("progress").write_bytes(file, json.dumps({"what": file, "until": 1.0}).encode())
    meter = Meter(folder, "0")
    meter.begin("training", 100)
    wait_for_waits(folder, ["10.waits-1.json"])
    meter.close()


def test_what_a_group_that_died_had_waited_for_is_taken_once_and_not_that_of_others(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path))
    for file in ("1.waits-0.json", "1.waits-2.json", "11.waits-0.json", "1.json"):
        folder.child("progress").write_bytes(file, json.dumps({"what": file, "until": 1.0}).encode())
    assert take_waits(folder, "1") == [Wait("1.waits-0.json", 1.0), Wait("1.waits-2.json", 1.0)]
    assert take_waits(folder, "1") == []
    assert folder.child("progress").names() == ["1.json", "11.waits-0.json"]


@pytest.mark.parametrize(("error", "goes_on"), [(StorageError("no answer"), True), (RunError("taken over"), False)])
def test_a_storage_that_fails_is_tried_again_and_a_lost_run_is_left_alone(
    error: RunError, goes_on: bool, tmp_path: Path
) -> None:
    calls: list[int] = []

    def guard() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise error

    meter = Meter(Folder.open(str(tmp_path)).guarded(guard))
    meter.begin("training", 100)
    deadline = time.monotonic() + 2
    while len(calls) < 3 and time.monotonic() < deadline and (goes_on or time.monotonic() < deadline - 1.8):
        meter.add(1)
        time.sleep(0.01)
    meter.close()
    assert (len(calls) > 2) is goes_on, "a write, and at the end the removal of what was written"


def test_a_file_that_is_damaged_or_of_another_version_is_left_out(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path)).child("progress")
    folder.write_bytes("0.json", b"{")
    folder.write_bytes("1.json", json.dumps({"unknown": 1}).encode())
    folder.write_bytes("2.json", json.dumps({"epoch": 4}).encode())
    assert [each.epoch for each in read_progress(Folder.open(str(tmp_path)))] == [4]


def test_the_time_left_follows_the_pace_of_the_last_minute() -> None:
    pace = Pace()
    assert pace.left_s(0.0, 10, now=0.0) is None
    assert pace.left_s(1.0, 10, now=10.0) == pytest.approx(90)
    left = [pace.left_s(1.0 + (second - 10) * 0.01, 10, now=float(second)) for second in range(11, 200)]
    assert left[-1] == pytest.approx((10 - 2.89) * 100, rel=0.05), "ten times slower than before"
    assert pace.left_s(0.5, 10, now=201.0) is None, "it has gone back"


def test_the_bar_of_a_run_names_its_epoch_and_phase() -> None:
    pace = Pace()
    assert run_bar([], pace) is None
    pace.left_s(1.0, 5, now=time.monotonic() - 10)
    bar = run_bar([Progress("training", 2, 5, 1, 500, 1000, 812.4)], pace)
    assert bar is not None
    assert str(bar) == "Epoch 2/5 training  50 %  812 images/s  1:10 left"
    bar = run_bar([Progress("validation", 5, 5, 1, 10, 100)], Pace())
    assert bar is not None
    assert str(bar) == "Epoch 5/5 validation  10 %"


def test_the_bar_of_a_sweep_counts_epochs_and_images_of_all_lanes() -> None:
    groups = [Progress("training", 2, 4, 8, 50, 100, 20.0), Progress("validation", 1, 4, 8, 1, 10, 99.0)]
    bar = sweep_bar(groups, label="1 of 4", epochs=5, total=16, pace=Pace())
    assert bar.share == pytest.approx((5 + 8 * 0.5) / 16)
    assert (bar.label, bar.images_per_s) == ("1 of 4", 160)
    prefix = [Progress("prefix", 0, 0, 1, 30, 100, 5.0), Progress("prefix", 0, 0, 1, 20, 100, 5.0)]
    bar = sweep_bar(prefix, label="0 of 2", epochs=0, total=8, pace=Pace())
    assert (bar.label, bar.share) == ("Frozen layers, once for all trials", 0.5)


def test_times_are_written_like_a_clock() -> None:
    assert [clock(seconds) for seconds in (0, 42.4, 75, 3725)] == ["0:00", "0:42", "1:15", "1:02:05"]
    assert str(Bar("Evaluation", 1.0)) == "Evaluation  100 %"
