"""Which rate is suggested, from curves that are made up."""

from __future__ import annotations

import json
import math

import pytest

from tltrain.train.rate_choice import Curve, DepthResult, RangeTest, has_diverged, recent_loss, suggest


def curve(rate: float, final: float, *, start: float = 2.0, ended: str | None = None) -> Curve:
    return Curve(rate, (start, *[final] * 8), ended)


def test_the_highest_rate_is_taken_that_reaches_nine_tenths_of_the_best() -> None:
    curves = [curve(1e-4, 1.9), curve(1e-3, 1.2), curve(1e-2, 1.0), curve(3e-2, 1.05), curve(1e-1, 1.5)]
    found = suggest(curves)
    assert (found.learning_rate, found.best, found.limit) == (3e-2, 1e-2, None)
    assert found.reason.startswith("95 % of the fall at 0.01")


def test_the_best_itself_is_taken_where_no_higher_one_comes_near() -> None:
    found = suggest([curve(1e-3, 1.05), curve(1e-2, 1.0), curve(1e-1, 9.0, ended="diverged")])
    assert (found.learning_rate, found.limit) == (1e-2, 1e-1)
    assert found.reason == "the lowest loss; the loss shoots up at 0.1"


@pytest.mark.parametrize(
    ("curves", "advice"),
    [
        ([curve(1e-3, 1.9), curve(1e-2, 1.0)], "try higher ones (--to)"),
        ([curve(1e-3, 1.0), curve(1e-2, 1.5)], "try lower ones (--from)"),
        ([curve(1e-3, 1.99), curve(1e-2, 1.98)], "no rate lowers the loss"),
        ([curve(1.0, 7.0, ended="diverged"), curve(10.0, 7.0, ended="diverged")], "every rate diverges"),
    ],
)
def test_what_to_try_is_said_where_the_best_is_at_an_end_or_there_is_none(curves: list[Curve], advice: str) -> None:
    found = suggest(curves)
    assert advice in found.reason
    assert (found.learning_rate is None) == ("no rate" in advice or "every rate" in advice)


@pytest.mark.parametrize(
    ("losses", "diverged"),
    [
        ([2.0, math.nan], True),
        ([2.0, math.inf], True),
        ([2.0, 30.0], False),  # one spike is no divergence
        ([2.0, 9.0, 9.0, 9.0, 9.0], True),
        ([2.0, 9.0, 3.0, 2.0, 1.0], False),
        ([2.0], False),
    ],
)
def test_a_lane_diverges_by_its_last_loss_or_the_recent_ones(losses: list[float], diverged: bool) -> None:
    assert has_diverged(losses) == diverged


def test_a_lane_is_judged_by_its_last_steps() -> None:
    assert recent_loss([9.0] * 30 + [1.0] * 10) == 1.0
    assert recent_loss([3.0, 1.0]) == 2.0


def test_the_result_is_strict_json_also_where_losses_are_not_finite() -> None:
    curves = (curve(1e-3, 1.0), Curve(10.0, (2.0, math.inf), "diverged"))
    found = RangeTest("resnet18", "sgd", 20, 64, 1000, 1.5, (DepthResult("all", 9, 5130, curves),)).to_dict()
    again = json.loads(json.dumps(found, allow_nan=False))
    assert again["depths"][0]["curves"][1] == {
        "rate": 10.0,
        "losses": [2.0, None],
        "ended": "diverged",
        "final_loss": None,
    }
    assert again["depths"][0]["suggestion"]["learning_rate"] == 1e-3
