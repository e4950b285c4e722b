"""Axes, ticks, bins and numbers as text."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tltrain.report.scales import (
    Axis,
    bin_edges,
    duration_text,
    fit_axis,
    linear_ticks,
    log_ticks,
    number_text,
    suits_log,
)

NUMBERS = st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=30)
RATES = st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=30)


@given(NUMBERS)
@example([1.0, 2.2250738585e-313, 2.2250738585e-313])
def test_axis_holds_all_values_and_has_ticks_inside(values: list[float]) -> None:
    axis = fit_axis(values)

    assert axis.lo < axis.hi
    assert all(0 <= axis.share(value) <= 1 for value in values)
    assert all(axis.lo - 1e-9 * abs(axis.lo) <= tick <= axis.hi + 1e-9 * abs(axis.hi) for tick in axis.ticks())


@given(RATES, st.integers(4, 12))
def test_bins_are_few_ascending_and_hold_every_value(values: list[float], limit: int) -> None:
    edges = bin_edges(values, limit)

    assert edges == sorted(set(edges))
    assert len(edges) <= limit
    assert edges[0] <= min(values) * (1 + 1e-9) + 1e-9


@pytest.mark.parametrize(
    ("lo", "hi", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.13, 0.87, [0.2, 0.4, 0.6, 0.8]),
        (0, 30, [0, 10, 20, 30]),
        (-2, 2, [-2, -1, 0, 1, 2]),
    ],
)
def test_linear_ticks_are_round(lo: float, hi: float, expected: list[float]) -> None:
    assert linear_ticks(lo, hi) == expected


@pytest.mark.parametrize(
    ("lo", "hi", "expected"),
    [
        (1e-4, 1e-2, [1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2]),
        (1e-4, 1e-1, [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1]),
        (1e-6, 1, [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1]),
    ],
)
def test_log_ticks_get_sparser_with_the_range(lo: float, hi: float, expected: list[float]) -> None:
    assert log_ticks(lo, hi) == expected


def test_forty_decades_have_few_ticks() -> None:
    assert 2 <= len(log_ticks(1e-20, 1e20)) <= 7


def test_log_axis_puts_the_geometric_middle_in_the_middle() -> None:
    assert Axis(1e-4, 1e-2, is_log=True).share(1e-3) == pytest.approx(0.5)


def test_learning_rates_suit_a_log_axis_and_shares_do_not() -> None:
    assert suits_log([0.0003, 0.001, 0.003, 0.01, 0.03])
    assert not suits_log([0.01 + 0.1 * index for index in range(10)])
    assert not suits_log([0.0, 0.1, 10.0])
    assert not suits_log([])


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.003, "0.003"), (1e-5, "1e-5"), (1250.0, "1250"), (3, "3"), (0.0, "0"), (2.5e9, "2.5e9"), (0.123456, "0.1235")],
)
def test_number_is_written_short(value: float, text: str) -> None:
    assert number_text(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.21, "4.2 s"), (59.99, "60.0 s"), (725, "12 min 5 s"), (12_000, "3 h 20 min")]
)
def test_duration_is_written_short(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_axis_of_one_value_has_it_inside() -> None:
    for value in (0.0, 0.5, -3.0, 1e-9, 1e9):
        axis = fit_axis([value])
        assert axis.lo < value < axis.hi
        assert math.isfinite(axis.share(value))
