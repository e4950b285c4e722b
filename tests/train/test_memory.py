"""How much memory a lane takes, and when there is none for another."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_lane_group import ALONE, lane_spec

from tltrain.run_folder import RunFolder
from tltrain.train import memory
from tltrain.train.lane_group import LaneGroup


@pytest.mark.parametrize("lane", ["head-smooth", "upper", "upper-ema"])
def test_a_lane_holds_no_more_than_was_foreseen_and_not_much_less(tmp_path: Path, lane: str) -> None:
    spec = lane_spec(tmp_path, lane, {}, lane)
    lanes = LaneGroup(spec, RunFolder.at(spec.storage, "sweep"), ALONE, index=0, passes=2)
    lanes.add("t0", spec, None)
    member = lanes._members["t0"].lane
    foreseen = memory.lane_bytes(member)
    lanes.train_epoch(["t0"], 0)
    modules = [member.suffix, *([member.ema.module] if member.ema else [])]
    tensors = [t for module in modules for t in module.state_dict().values()]
    tensors += [p for p in member.suffix.parameters() if p.requires_grad]  # their gradients have the same size
    tensors += [t for state in member.optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor)]
    held = sum(t.numel() * t.element_size() for t in tensors)
    assert held <= foreseen + 1024  # counters of steps
    assert held >= 0.7 * foreseen


def test_a_group_without_room_builds_no_second_lane(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = lane_spec(tmp_path, "upper", {}, "upper")
    lanes = LaneGroup(spec, RunFolder.at(spec.storage, "sweep"), ALONE, index=0, passes=2)
    assert lanes.has_room()  # the first one always has
    lanes.add("t0", spec, None)
    needed = memory.lane_bytes(lanes._members["t0"].lane)
    for spare, expected in ((needed, False), (2 * needed, True)):
        monkeypatch.setattr(memory, "spare_memory_bytes", lambda spare=spare: spare)
        assert lanes.has_room() is expected
    lanes.drop("t0")
    monkeypatch.setattr(memory, "spare_memory_bytes", lambda: 0)
    assert lanes.has_room()
