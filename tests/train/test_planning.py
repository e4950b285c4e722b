"""A plan's arithmetic on made-up costs, and a whole plan on real images; nothing is trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny import tiny_spec

import tltrain.run as far_side
from tltrain.errors import ResourceError
from tltrain.report.plan_lines import plan_lines, with_cost
from tltrain.spec.load import dump_yaml, load_spec
from tltrain.train.calibration import Calibration, CutCost, LaneCost
from tltrain.train.estimate import LanePlan, estimate
from tltrain.train.keeping import Rates, Tier
from tltrain.train.planning import plan

FAST = (Tier("memory", 10**9, Rates(1e12, 1e12)),)


def costs(*, keeps_decoded: bool = False, keeps_taps: bool = False) -> Calibration:
    """100 images; 1 s to decode one, 2 s to the first cut, 3 s more to the second; steps of 10 s and 1 s."""
    cuts = (CutCost("low", 1, 2.0, 4), CutCost("high", 2, 3.0, 4))
    lanes = {1: LaneCost(10.0, 4.0), 2: LaneCost(1.0, 0.5)}
    return Calibration(100, 0, 10, 4, 1.0, cuts, lanes, keeps_decoded, keeps_taps)


def test_lanes_share_decoding_and_frozen_stages_once_per_epoch_where_nothing_is_kept() -> None:
    found = estimate(costs(), [LanePlan(1, 3), LanePlan(2, 3), LanePlan(2, 3)], ())
    assert found.shared_s == 3 * 100 * (1 + 2 + 3)
    assert found.own_s == (3 * 100 * 10, 3 * 100 * 1, 3 * 100 * 1)


def test_a_lane_alone_pays_only_up_to_its_own_cut() -> None:
    assert estimate(costs(), [LanePlan(1, 1)], ()).shared_s == 100 * (1 + 2)
    assert estimate(costs(), [LanePlan(2, 1)], ()).shared_s == 100 * (1 + 5)


def test_kept_taps_cost_one_pass_whatever_the_epochs() -> None:
    found = estimate(costs(keeps_taps=True), [LanePlan(1, 5), LanePlan(2, 5)], FAST)
    assert found.shared_s == pytest.approx(100 * (1 + 2 + 3), rel=1e-6)


def test_the_deeper_cut_is_left_out_of_epochs_that_no_lane_needs_it_in() -> None:
    found = estimate(costs(keeps_decoded=True), [LanePlan(1, 4), LanePlan(2, 1)], ())
    assert found.shared_s == 100 * 1 + 1 * 100 * 5 + 3 * 100 * 2


def test_a_plan_counts_trials_and_measures_without_leaving_anything(tmp_path: Path) -> None:
    space = {"optim.learning_rate": {"grid": [0.01, 0.05, 0.1]}, "model.freeze_depth": {"grid": [0, 2]}}
    spec = tiny_spec(tmp_path, {"sweep": {"space": space, "scheduler": "asha"}})
    before = sorted(tmp_path.rglob("*"))
    found = plan(spec, groups=2, workers=1, device=torch.device("cpu"))
    assert sorted(tmp_path.rglob("*")) == before
    assert (found.trials, found.epochs, found.steps) == (6, 12, 12 * 5)
    assert next((depth.depth, depth.trials, depth.frozen_up_to) for depth in found.depths) == (0, 3, "nothing")
    assert found.depths[0].forward_shared == 0 < found.depths[1].forward_shared < 1
    assert found.hours_in_lanes > 0 < found.hours_trial_by_trial
    assert any("asha" in note for note in found.notes)
    assert json.loads(json.dumps(found.to_dict()))["trials"] == 6
    assert all(len(line) <= 80 for line in plan_lines(found.to_dict(), "this machine"))

    priced = with_cost(found.to_dict(), 2.5, "EUR")
    assert priced["cost"]["in_lanes"] == pytest.approx(2 * 2.5 * found.hours_in_lanes)
    lines = plan_lines(priced, "this machine")
    assert all(len(line) <= 80 for line in lines)
    assert sum("EUR" in line for line in lines) == 2
    assert any("price_per_worker_hour" in note for note in with_cost(found.to_dict(), None, "EUR")["notes"])


def test_what_fits_no_machine_is_refused_with_the_arithmetic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    path = tmp_path / "tiny.yaml"
    path.write_text(dump_yaml(tiny_spec(tmp_path, {"resources.cpus_per_worker": 5000})))
    with pytest.raises(ResourceError, match="of 5000 CPU are asked for and the cluster holds 0"):
        far_side.plan(load_spec(path), None, as_json=True)
