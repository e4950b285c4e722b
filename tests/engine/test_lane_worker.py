"""A worker of a sweep between its lanes and the broker, without either."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tltrain.engine import lane_worker
from tltrain.train.distributed import Group


class Lanes:
    """Lanes that train by saying so."""

    def train_epoch(self, trials: list[str], epoch: int) -> tuple[list[dict[str, Any]], dict[str, str]]:
        return [{"lane": trial, "epoch": epoch + 1, "is_last": trial == "last"} for trial in trials], {}

    def save(self, trials: list[str], epoch: int) -> dict[str, str]:
        return {trial: f"{trial}/{epoch}" for trial in trials}

    def fingerprint(self, trial: str) -> str:
        return f"sha256 of {trial}"

    def measured(self) -> dict[str, Any]:
        return {"seconds": {"lanes": 1.0}}


def test_whatever_a_clone_may_be_built_of_has_a_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[Any, ...]] = []
    worker = object.__new__(lane_worker._LaneWorker)
    worker.__dict__.update(_lanes=Lanes(), _group=Group(0, 1, 0, 1, torch.device("cpu")), _saved_at=0.0, _index=3)
    monkeypatch.setattr(lane_worker._LaneWorker, "_tell", lambda self, *call: told.append(call))
    monkeypatch.setattr(lane_worker, "SAVE_INTERVAL_S", 0.0)
    worker._train(["t0", "last"], 1)
    worker._save(["t0"], 2)
    saved = ("complete_save", {"t0": "t0/2"}, {"t0": "sha256 of t0"})
    assert [call for call in told if call[0] == "complete_save"] == [saved, saved]
    assert [call for call in told if call[0] == "note_measured"] == [("note_measured", 3, {"seconds": {"lanes": 1.0}})]
