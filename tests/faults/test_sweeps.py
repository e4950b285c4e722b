"""A sweep that is broken anywhere ends as one that was not, and leaves nothing behind."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from injector import AFTER, BEFORE
from sweep_bench import NOT_STRUCK, SETTINGS, Bench, Setting
from sweep_injector import BROKER, DRIVER, TRAINED, TRIAL, WORKER, SweepFault
from sweep_machine import machine
from sweep_truth import Reference, cloned, equal_rows, left_over, trained_again, whole
from sweeps import WHO, draw
from tiny import tiny_spec

from tltrain.run_folder import RunFolder

ray_and_slow = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.filterwarnings("default")]
FIFO, _, PBT, RANKS, _ = SETTINGS


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """Sweeps on one cluster of two nodes."""
    with machine() as here, here.running_cluster():
        yield Bench(here, tmp_path_factory.mktemp("sweeps"))


def case(setting: Setting, who: str) -> Any:
    return pytest.param(setting, who, marks=ray_and_slow, id=f"{setting.name}, {who}")


# Each with two of the settings; the campaign has them all.
@pytest.mark.parametrize(("setting", "who"), [case(SETTINGS[i % 5], WHO[(i + i // 5) % 5]) for i in range(10)])
def test_broken_at_a_random_place_a_sweep_ends_as_the_clean_one(bench: Bench, setting: Setting, who: str) -> None:
    fault = draw(random.Random(f"{setting.name} {who}"), who, bench.calls(setting), bench.seconds[setting.name])
    assert bench.broken(setting, fault, joins=True).problems == []


NAMED = [
    (FIFO, SweepFault(DRIVER, "trials' record", 1, BEFORE)),
    (FIFO, SweepFault(DRIVER, "JSON file", 2, AFTER)),
    (FIFO, SweepFault(DRIVER, "a trial's confirmation", 1, BEFORE)),
    (FIFO, SweepFault(DRIVER, "winner's training", 1, BEFORE)),
    (FIFO, SweepFault(DRIVER, "winner's end", 1, BEFORE)),
    (FIFO, SweepFault(DRIVER, "page", 1, BEFORE)),
    (FIFO, SweepFault(WORKER, "file rename", 5, BEFORE)),
    (RANKS, SweepFault(WORKER, "wait for work", 4, AFTER)),
    (RANKS, SweepFault(WORKER, "training begun", 1, BEFORE)),
    (FIFO, SweepFault(TRIAL, "trial begun", 2, BEFORE)),
    (PBT, SweepFault(BROKER, "lane registered", 4, BEFORE)),
    (PBT, SweepFault(DRIVER, "exploit", 1, AFTER)),
    (PBT, SweepFault(WORKER, "state loaded", 1, BEFORE)),
    (PBT, SweepFault(WORKER, "state loaded", 1, AFTER)),
    (PBT, SweepFault(TRIAL, "trial cloned", 1, AFTER)),
]


@pytest.mark.parametrize(
    ("setting", "fault"), [pytest.param(*each, marks=ray_and_slow, id=f"{each[0].name}, {each[1]}") for each in NAMED]
)
def test_broken_at_a_named_place_a_sweep_ends_as_the_clean_one(
    bench: Bench, setting: Setting, fault: SweepFault
) -> None:
    assert bench.broken(setting, fault, joins=False).problems == []


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_fault_that_does_not_happen_is_noticed(bench: Bench) -> None:
    never = SweepFault(WORKER, "optimiser step", 10_000, BEFORE)
    assert bench.broken(FIFO, never, joins=True).problems == [NOT_STRUCK]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_part_of_a_lanes_state_left_out_is_noticed(bench: Bench) -> None:
    in_the_second_epoch = SweepFault(WORKER, "validation", 2, BEFORE)
    problems = bench.broken(FIFO, in_the_second_epoch, joins=True, forgets_optimizer=True).problems
    assert any("differs in epoch 2" in problem for problem in problems)


class Folder:
    """The folder of a sweep of two trials that has ended well, written by hand."""

    def __init__(self, folder: Path) -> None:
        space = {"optim.learning_rate": {"grid": [0.1, 0.2]}}
        self.spec = tiny_spec(folder, {"sweep": {"space": space}}, name="sweep")
        self.run = RunFolder.at(self.spec.storage, self.spec.name)
        self.entries: list[dict[str, Any]] = [
            {"trial": f"t{index}", "values": {}, "state": "finished", "epochs": 2} for index in range(2)
        ]
        self.rows = [{"lane": f"t{i}", "step": 4 * e, "epoch": e, "loss": 0.5} for e in (1, 2) for i in range(2)]
        for name in ("report.html", "trials.parquet", "sharing.json", "evaluation.json", "predictions.parquet"):
            self.run.folder.write_bytes(name, b"")
        for run in (self.run, RunFolder(self.run.folder.child("winner"))):
            run.update(state="finished")

    def problems(self) -> list[str]:
        """What is said of it."""
        self.run.write_json("trials.json", self.entries)
        self.run.folder.write_bytes("metrics.jsonl", b"".join(json.dumps(row).encode() + b"\n" for row in self.rows))
        return list(whole(self.run, self.spec))


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_what_is_missing_or_doubled_in_the_folder_of_a_sweep_is_noticed(folder: Folder) -> None:
    assert folder.problems() == []
    folder.rows.append(folder.rows[0])
    assert folder.problems()[0] == "t0 has epoch 1 2 times"
    del folder.rows[2:]
    assert "its rows are those of [1]" in folder.problems()[0]
    folder.rows.append({**folder.rows[0], "lane": "t9"})
    assert "t9 is no trial and has rows" in folder.problems()
    folder.entries.append(folder.entries[0])
    assert "t0 stands 2 times in trials.json" in folder.problems()
    folder.run.update(state="running")
    folder.run.folder.delete("report.html")
    assert folder.problems()[-2:] == ["the sweep or its winner is not finished", "report.html is missing"]


@pytest.mark.parametrize(("left_at", "is_whole"), [(0, True), (1, False)])
def test_only_epochs_that_a_clone_has_skipped_may_be_missing(folder: Folder, left_at: int, is_whole: bool) -> None:
    folder.entries[0]["clones"] = [{"source": "t1", "epoch": 1, "left_at": left_at}]
    del folder.rows[0]
    assert (folder.problems() == []) is is_whole


def test_what_is_left_over_in_the_folder_of_a_sweep_is_noticed(folder: Folder) -> None:
    folder.run.folder.child("lanes", "t0", "2").write_bytes("info.json", b"{}")
    folder.run.folder.child("winner", "checkpoints", "2").write_bytes("info.json", b"{}")
    folder.run.folder.child("ray").write_bytes(".x.01234567.tmp", b"")
    assert list(left_over(folder.run)) == [
        "ray/.x.01234567.tmp is left",
        "winner/checkpoints/2 is half a checkpoint",
        "the lease is held",
        "ray/ is left",
        "lanes/ is left",
    ]


def test_a_row_that_differs_and_a_clone_of_other_weights_and_a_trial_that_trains_again_are_noticed(
    folder: Folder, tmp_path: Path
) -> None:
    folder.problems()
    clean = Reference.of(folder.run)
    folder.rows[1] = {**folder.rows[1], "loss": 0.6}
    folder.entries[0]["clones"] = [{"source": "t1", "epoch": 1, "left_at": 1, "sha256": "a", "source_sha256": "b"}]
    folder.problems()
    assert list(equal_rows(folder.run, clean)) == ["t1 differs in epoch 1"]
    assert len(list(cloned(folder.run))) == 1
    (tmp_path / TRAINED).write_text('{"at": 10, "lanes": ["t0"], "epoch": 1}\n{"at": 20, "lanes": ["t1"]}\n')
    assert list(trained_again(tmp_path / TRAINED, {"t0": 5, "t1": 21})) == ["t0 was finished and has trained again"]
