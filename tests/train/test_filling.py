"""Taps that worker groups of one node compute together: each image once, and no lane can tell."""

from __future__ import annotations

import concurrent.futures
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from test_lane_group import curve, lane_spec, train_alone
from tiny import tiny_spec

from tltrain.errors import StorageError
from tltrain.run_folder import RunFolder
from tltrain.spec.schema import Spec
from tltrain.train.distributed import Group
from tltrain.train.lane_group import LaneGroup
from tltrain.train.node_folder import NodeFolder
from tltrain.train.workbench import open_folder


def train_in_group(
    group: Group, specs: dict[str, Spec], trial: str, index: int
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Train one lane of `specs` in a group that fills taps with others; return its curve and the images it ran."""
    first = next(iter(specs.values()))
    run = RunFolder.at(first.storage, "sweep")
    lanes = LaneGroup(first, run, group, index=index, passes=9, likely=list(specs.values()), attempt="1")
    lanes.add(trial, specs[trial], None)
    bench = lanes._members[trial].bench
    missing = {kept.split: len(split) - kept.num_filled() // 2 for split, kept in bench.constant_splits()}
    rows = [row for epoch in range(2) for row in lanes.train_epoch([trial], epoch)[0]]
    lanes.close()
    return rows, missing


def test_groups_of_a_node_fill_taps_together_and_lanes_equal_those_alone(tmp_path: Path) -> None:
    specs = {lane: lane_spec(tmp_path, lane, {}, lane) for lane in ("head", "upper")}
    with concurrent.futures.ThreadPoolExecutor(2) as executor:
        started = [
            executor.submit(ranks.run, 1, train_in_group, specs, trial, index) for index, trial in enumerate(specs)
        ]
        results = dict(zip(specs, (each.result()[0] for each in started), strict=True))
    for lane, (rows, missing) in results.items():
        assert curve(rows) == curve(ranks.run(1, train_alone, specs[lane])[0]), lane
        assert missing == {"train": 0, "val": 0}  # both cuts of all images were there before training


def test_images_that_differ_between_epochs_are_not_filled(tmp_path: Path) -> None:
    specs = {"head": lane_spec(tmp_path, "head", {"data.augment": "basic"}, "head")}
    _, missing = ranks.run(1, train_in_group, specs, "head", 0)[0]
    assert list(missing) == ["val"]


def test_a_piece_of_work_is_claimed_once_by_any_number_of_processes(tmp_path: Path) -> None:
    code = "from tltrain.train.node_folder import NodeFolder; print(*NodeFolder('run').claims('work', 200))"
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", code]
    processes = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    claimed = [int(word) for process in processes for word in process.communicate()[0].split()]
    assert sorted(claimed) == list(range(200))


def test_the_last_one_out_removes_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    first, second = NodeFolder("run"), NodeFolder("run")
    assert first.path == second.path
    first.close()
    assert second.path.is_dir()
    second.close()
    assert not second.path.exists()
    NodeFolder("run").close()
    assert list(tmp_path.iterdir()) == []


def test_an_attempt_that_shares_nothing_deletes_what_an_earlier_one_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    spec, run = tiny_spec(tmp_path / "data"), RunFolder.at(str(tmp_path / "runs"), "sweep")
    alone = Group(0, 1, 0, 1, torch.device("cpu"))
    left = NodeFolder(run.uri)
    assert open_folder(spec, run, alone) is None
    assert left.path.exists(), "somebody uses it"
    os.close(left._users)  # as the end of a process does
    assert open_folder(spec, run, alone) is None
    assert not left.path.exists()


def test_the_folder_of_a_run_whose_processes_died_goes_when_another_run_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    dead, used = NodeFolder("dead"), NodeFolder("used")
    (dead.path / "kept.arrow").write_bytes(b"kept")
    os.close(dead._users)  # as the end of a process does
    (tmp_path / "tltrain-taps-just-made").mkdir()
    other = NodeFolder("other")
    assert not dead.path.exists()
    assert {path.name for path in tmp_path.iterdir()} == {used.path.name, other.path.name, "tltrain-taps-just-made"}
    for folder in (used, other):
        folder.close()


def test_a_folder_that_is_a_link_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = NodeFolder("run")
    folder.close()
    (tmp_path / "elsewhere").mkdir()
    folder.path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="belongs to somebody else"):
        NodeFolder("run")
