"""The range test: every lane trains as it would alone, and nothing but training images is looked at."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import tiny_spec

from tltrain.data.splits import load_splits
from tltrain.errors import SpecError
from tltrain.spec.schema import FreezeDepth, Spec
from tltrain.train import lr_find
from tltrain.train.distributed import Group
from tltrain.train.lr_find import find_learning_rate, rates_between, searched_depths
from tltrain.train.rate_choice import Curve, RangeTest

ALONE = Group(rank=0, world_size=1, local_rank=0, local_world_size=1, device=torch.device("cpu"))


def find(spec: Spec, rates: list[float], depths: list[FreezeDepth], steps: int = 5) -> RangeTest:
    return find_learning_rate(spec, rates, depths, ALONE, steps=steps)


def curve_of(found: RangeTest, depth: FreezeDepth, rate: float) -> Curve:
    (result,) = (result for result in found.depths if result.freeze_depth == depth)
    (curve,) = (curve for curve in result.curves if curve.rate == rate)
    return curve


def test_a_lane_among_many_has_the_losses_that_it_has_alone(tmp_path: Path) -> None:
    spec = tiny_spec(tmp_path, {"data.augment": "basic"})
    together = find(spec, [1e-3, 1e-2, 1e-1], [2, "all"])
    for depth, rate in ((2, 1e-2), ("all", 1e-1)):
        alone = curve_of(find(spec, [rate], [depth]), depth, rate)
        assert curve_of(together, depth, rate) == alone
        assert len(alone.losses) == 5


def test_all_lanes_of_a_depth_begin_with_the_same_loss_whatever_their_rate(tmp_path: Path) -> None:
    for result in find(tiny_spec(tmp_path), [1e-4, 1e-2, 1.0], [2, "all"], steps=4).depths:
        assert len({curve.losses[0] for curve in result.curves}) == 1
        assert len({curve.losses[-1] for curve in result.curves}) == 3


def test_a_lane_that_diverges_ends_alone(tmp_path: Path) -> None:
    spec = tiny_spec(tmp_path)
    found = find(spec, [1e-2, 1e30], ["all"])
    wild, good = curve_of(found, "all", 1e30), curve_of(found, "all", 1e-2)
    assert wild.ended == "diverged"
    assert len(wild.losses) < len(good.losses) == 5
    assert good == curve_of(find(spec, [1e-2], ["all"]), "all", 1e-2)
    assert found.depths[0].suggestion.limit == 1e30


def test_those_with_the_highest_losses_end_first(tmp_path: Path) -> None:
    found = find(tiny_spec(tmp_path), rates_between(1e-5, 1.0, 15), ["all"], steps=10).depths[0].curves
    lengths = [len(curve.losses) for curve in found]
    assert sorted(lengths) == [2] * 10 + [5] + [10] * 4
    first = sorted(found, key=lambda curve: sum(curve.losses[:2]))
    assert all(len(curve.losses) == 2 for curve in first[5:])


def test_the_test_images_are_never_opened_and_nothing_is_written(tmp_path: Path) -> None:
    spec = tiny_spec(tmp_path, {"data.test": str(tmp_path / "missing.parquet"), "data.val": None})
    before = sorted(tmp_path.rglob("*"))
    found = find(spec, [1e-3, 1e-2], ["all"], steps=4)
    assert found.num_images == 96
    assert sorted(tmp_path.rglob("*")) == before


def test_images_that_are_set_aside_for_the_test_are_not_trained_on(tmp_path: Path) -> None:
    spec = tiny_spec(tmp_path, {"data.test": 0.25, "data.val": 0.25})
    found = find(spec, [1e-3, 1e-2], ["all"], steps=4)
    assert found.num_images == len(load_splits(spec.data, spec.seed).train) < 60


def test_small_data_is_gone_through_more_than_once(tmp_path: Path) -> None:
    found = find(tiny_spec(tmp_path, {"train.batch_size": 40}), [1e-3, 1e-2], ["all"], steps=7)  # 2 steps per epoch
    assert {len(curve.losses) for curve in found.depths[0].curves} == {7}


def test_lanes_that_memory_does_not_hold_train_one_group_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, rates = tiny_spec(tmp_path), [1e-3, 1e-2, 1e-1]
    expected = find(spec, rates, [2, "all"])
    monkeypatch.setattr(lr_find, "has_room", lambda lane, processes: False)
    told: list[str] = []
    found = find_learning_rate(spec, rates, [2, "all"], ALONE, steps=5, tell=told.append)
    assert found.depths == expected.depths
    assert len(told) == 6
    assert told[0] == "1 lanes train side by side, 5 more wait for memory"


def test_schedules_phases_and_stopping_of_the_spec_do_not_change_a_lane(tmp_path: Path) -> None:
    changes = {
        "optim.schedule": "one_cycle",
        "optim.warmup_epochs": 1.0,
        "train.unfreeze": {"at_epoch": 1, "freeze_depth": 1},
        "train.early_stopping": {"patience": 1},
        "resources.num_workers": 2,
        "sweep": {"space": {"optim.momentum": {"grid": [0.0, 0.9]}}},
    }
    plain, changed = tiny_spec(tmp_path), tiny_spec(tmp_path, changes)
    assert find(plain, [1e-3, 1e-2], [2]).depths == find(changed, [1e-3, 1e-2], [2]).depths


def test_rates_are_the_same_factor_apart() -> None:
    assert rates_between(1e-5, 1.0, 6) == [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0]
    assert rates_between(1e-3, 1e-2, 3) == [1e-3, 3.16e-3, 1e-2]


@pytest.mark.parametrize(
    ("lowest", "highest", "count"), [(0, 1, 5), (1, 1, 5), (1, 0.1, 5), (1, float("inf"), 5), (0.1, 1, 1)]
)
def test_bounds_that_leave_no_rates_are_refused(lowest: float, highest: float, count: int) -> None:
    with pytest.raises(SpecError, match=r"--from|--rates"):
        rates_between(lowest, highest, count)


def test_an_unknown_depth_is_refused_with_the_stages(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="freeze_depth"):
        find(tiny_spec(tmp_path), [1e-3, 1e-2], ["layer9"])


def test_depths_are_those_that_the_sweep_searches_else_the_specs_own(tmp_path: Path) -> None:
    assert searched_depths(tiny_spec(tmp_path)) == [2]
    sweep = {"space": {"model.freeze_depth": {"grid": ["all", 3]}}}
    assert searched_depths(tiny_spec(tmp_path, {"sweep": sweep})) == ["all", 3]
