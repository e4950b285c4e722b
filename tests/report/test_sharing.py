"""What sharing saved: the arithmetic on what worker groups measured."""

from __future__ import annotations

from typing import Any

import pytest

from tltrain.report.sharing import Sharing
from tltrain.report.time_page import run_time_card, sharing_card


def record(
    *, kept: bool = True, views: int = 1, workers: int = 1, lanes: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Two trials at each of two depths, three epochs each, on 100 + 10 images whose taps were computed once."""
    depths = [2, 4] if kept else []
    bench = {
        "images": {"train": 100, "val": 10},
        "stages": ["a", "b", "c", "d"],
        "views": views,
        "kept": {"train": depths, "val": depths},
        "decoded": 110,
        "decode_s": 1.1,
        "computed": [[-1, 2, 2.2, 110], [2, 4, 1.1, 110]],
        "lanes": lanes or {"t0": {"2": 3}, "t1": {"2": 3}, "t2": {"4": 3}, "t3": {"4": 3}},
    }
    seconds = {"decode": 1.1, "prefix": 4.0, "lanes": 10.0, "validation": 1.0, "checkpoint": 0.5, "other": 2.0}
    return {"seconds": seconds, "workers": workers, "groups": 1, "benches": {"key": bench}}


def test_trials_by_themselves_each_do_once_what_was_kept() -> None:
    sharing = Sharing.of(record())

    decoding, shallow, deep = sharing.works
    assert (decoding.images_alone, decoding.seconds_alone) == (440, pytest.approx(4.4))
    assert (shallow.images_alone, shallow.seconds_alone) == (220, pytest.approx(220 * 0.02))
    assert (deep.images_alone, deep.seconds_alone) == (220, pytest.approx(220 * 0.03))
    assert sharing.saved_s == pytest.approx(4.4 - 1.1 + 4.4 - 2.2 + 6.6 - 1.1)
    assert (sharing.num_lanes, sharing.num_epochs) == (4, 12)


def test_what_was_not_kept_is_done_in_every_epoch() -> None:
    assert Sharing.of(record(kept=False)).works[0].images_alone == 3 * 440


def test_of_augmented_images_each_kept_view_is_computed_once() -> None:
    lone = Sharing.of(record(views=2)).works[0]

    assert lone.images_alone == 4 * (2 * 100 + 10)


def test_images_are_those_of_one_worker_of_a_group() -> None:
    assert Sharing.of(record(workers=2)).works[0].images_alone == 220


def test_one_trial_saves_nothing() -> None:
    alone = record(lanes={"t0": {"2": 3}})
    alone["benches"]["key"]["computed"] = [[-1, 2, 2.2, 110]]

    assert Sharing.of(alone).saved_s == pytest.approx(0)
    assert "trial by trial" not in (sharing_card(alone) or "")


def test_a_depth_whose_way_was_never_measured_is_left_out() -> None:
    partly = record()
    partly["benches"]["key"]["computed"] = [[2, 4, 1.1, 110]]

    assert [work.name for work in Sharing.of(partly).works] == ["decoding"]


def test_card_shows_factors_and_product() -> None:
    card = sharing_card(record())

    assert card is not None
    assert "Sharing saved 11.0 s of work: 1.7 times less." in card
    for text in ("frozen layers up to b", "frozen layers up to d", ">440<", ">30<", "6.6 s"):
        assert text in card


def test_records_without_times_have_no_card() -> None:
    assert sharing_card(None) is None
    assert sharing_card({"prefix_s": 3.0}) is None
    assert run_time_card(None) is None
    assert run_time_card({"first_step_at": 1.0}) is None


def test_phases_of_a_run_add_up_to_its_time() -> None:
    card = run_time_card({"seconds": {"decode": 1.0, "lanes": 2.5, "other": 0.5}})

    assert card is not None
    assert "First worker: 4.0 s" in card
