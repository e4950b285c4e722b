"""A worker of a sweep between its lanes and the broker, without either."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_spec

from tltrain.engine import lane_worker
from tltrain.engine.work import Ticket
from tltrain.train.distributed import Group


class Lanes:
    """Lanes that train by saying so."""

    def __init__(self) -> None:
        self.homes: dict[str, str] = {}
        self.deleted: list[str] = []

    def has_room(self) -> bool:
        return True

    def add(self, trial: str, spec: Any, start: str | None, *, home: str) -> None:
        self.homes[trial] = home

    def delete_states(self, home: str) -> None:
        self.deleted.append(home)

    def train_epoch(self, trials: list[str], epoch: int) -> tuple[list[dict[str, Any]], dict[str, str]]:
        return [{"lane": trial, "epoch": epoch + 1, "is_last": trial == "last"} for trial in trials], {}

    def save(self, trials: list[str], epoch: int) -> dict[str, str]:
        return {trial: f"{self.homes.get(trial, trial)}/{epoch}" for trial in trials}

    def fingerprint(self, trial: str) -> str:
        return f"sha256 of {trial}"

    def measured(self) -> dict[str, Any]:
        return {"seconds": {"lanes": 1.0}}


def make_worker(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[tuple[Any, ...]]]:
    """A worker, and what it tells the broker."""
    told: list[tuple[Any, ...]] = []
    worker = object.__new__(lane_worker._LaneWorker)
    worker.__dict__.update(_lanes=Lanes(), _group=Group(0, 1, 0, 1, torch.device("cpu")), _saved_at=0.0)
    monkeypatch.setattr(lane_worker._LaneWorker, "_tell", lambda self, *call: told.append(call))
    monkeypatch.setattr(lane_worker, "SAVE_INTERVAL_S", 0.0)
    return worker, told


def test_a_clone_is_saved_under_its_own_name_before_it_trains(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    worker, told = make_worker(monkeypatch)
    worker._spec = tiny_spec(tmp_path)
    worker._build([Ticket("t0", {}, "a", 4), Ticket("t1", {}, "a", 4, start_epoch=2, start="t0/2")])
    worker._build([Ticket("t2", {}, "a", 4, start_epoch=2, start="t2/2")])
    assert told == [("note_clone", "t1", "t0/2", "sha256 of t1", "t1/2")]
    assert worker._lanes.deleted == []
    worker._build([Ticket("t1", {}, "a", 4, start_epoch=3, start="t2/3", generation=2)])
    assert told[1:] == [("note_clone", "t1", "t2/3", "sha256 of t1", "t1.2/3")]
    assert worker._lanes.deleted == ["t1"], "the generation before the last one"


def test_whatever_a_clone_may_be_built_of_has_a_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    worker, told = make_worker(monkeypatch)
    worker._train(["t0", "last"], 1)
    worker._save(["t0"], 2)
    saved = ("complete_save", {"t0": "t0/2"}, {"t0": "sha256 of t0"})
    assert [call for call in told if call[0] == "complete_save"] == [saved, saved]
    assert [call for call in told if call[0] == "note_measured"] == [("note_measured", {"seconds": {"lanes": 1.0}})]
