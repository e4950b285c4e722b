"""A range test as text and as a page, from results that are made up."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tltrain.report.rate_lines import rate_lines
from tltrain.report.rate_page import rate_page
from tltrain.train.rate_choice import Curve, DepthResult, RangeTest


def found(num_depths: int = 2, name: str = "all", model: str = "resnet18") -> dict[str, Any]:
    """Twelve rates from 1e-5 up, of which the ninth is the best and the last two shoot up."""
    curves = []
    for index in range(12):
        loss = 2.3 - 0.2 * min(index, 16 - index)
        ended = "diverged" if index > 9 else "behind" if index < 4 else None
        curves.append(Curve(float(f"{1e-5 * 3**index:.3g}"), (2.3, *[loss] * (4 if ended else 19)), ended))
    depths = tuple(DepthResult(f"{name}{depth}", depth, 1000 * depth, tuple(curves)) for depth in range(num_depths))
    return RangeTest(model, "adamw", 20, 64, 1800, 12.3, depths).to_dict()


@pytest.mark.parametrize("name", ["all", "layer-with-quite-a-long-name-of-some-network-of-the-users-own-"])
def test_lines_fit_80_columns(name: str) -> None:
    assert max(map(len, rate_lines(found(3, name, "package.module:" + "a_long_function_name" * 3)))) <= 80


def test_the_suggested_rate_is_marked_and_named_with_its_reason() -> None:
    lines = rate_lines(found(1))
    (marked,) = (line for line in lines if line.startswith("*"))
    assert float(marked[1:].split()[0]) == pytest.approx(0.0656, rel=1e-2)
    assert "Suggestion  optim.learning_rate=0.0656" in lines
    assert "the loss shoots up at 0.59" in lines[-1]


def test_a_lane_that_ran_away_has_no_loss_but_its_steps() -> None:
    rows = [line for line in rate_lines(found(1)) if "shoots up" in line and not line.startswith(" " * 12)]
    assert [row.split()[1:3] for row in rows] == [["5", "-"]] * 2


def test_without_a_suggestion_the_text_and_the_page_say_so() -> None:
    curves = tuple(Curve(rate, (2.0, 50.0), "diverged") for rate in (1.0, 10.0))
    numbers = RangeTest("resnet18", "sgd", 20, 64, 1800, 1.0, (DepthResult("all", 9, 10, curves),)).to_dict()
    assert "Suggestion  none" in rate_lines(numbers)
    assert "every rate diverges" in rate_page("flowers", numbers)


def test_the_page_needs_no_other_file_and_shows_every_lane() -> None:
    page = rate_page("<flowers>", found(2))
    assert not re.search(r"(src|href)=", page)
    assert "&lt;flowers&gt;" in page
    assert len(re.findall("<circle", page)) == 2 * 10  # a dot for each lane that did not shoot up
    assert len(re.findall(r"<circle[^>]*dot best", page)) == 2
    assert page.count("shot up</td>") == 2 * 2
