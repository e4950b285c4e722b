"""Whether runs differ by more than chance."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tltrain.report.chance import (
    Accuracy,
    common_hits,
    holm,
    mcnemar,
    paired_difference,
    unpaired_difference,
)

HITS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


@pytest.mark.parametrize(
    ("b", "c", "expected"),
    [(0, 0, 1.0), (1, 0, 1.0), (5, 0, 0.0625), (0, 5, 0.0625), (10, 2, 0.03857421875), (7, 7, 1.0)],
)
def test_exact_test_is_that_of_a_fair_coin(b: int, c: int, expected: float) -> None:
    assert mcnemar(b, c) == pytest.approx(expected)


def test_large_counts_agree_with_the_exact_test() -> None:
    exact = min(1.0, 2 * sum(math.comb(1002, k) for k in range(461)) / 2**1002)

    assert mcnemar(542, 460) == pytest.approx(exact, rel=0.02)


@given(HITS)
def test_difference_turns_its_sign_with_the_order(hits: list[tuple[bool, bool]]) -> None:
    first, second = [a for a, _ in hits], [b for _, b in hits]
    one, other = paired_difference("a", "b", first, second), paired_difference("b", "a", second, first)

    assert one.value == pytest.approx((sum(first) - sum(second)) / len(hits))
    assert one.value == -other.value
    assert one.p_value == other.p_value
    assert one.interval == pytest.approx((-other.interval[1], -other.interval[0]))
    assert -1 <= one.interval[0] <= one.interval[1] <= 1


def test_pairing_sees_what_counts_alone_do_not() -> None:
    hits = [True] * 900 + [False] * 100
    worse = [True] * 885 + [False] * 115
    paired = paired_difference("a", "b", hits, worse)
    apart = unpaired_difference("a", "b", Accuracy(0.9, (0.88, 0.917), 1000), Accuracy(0.885, (0.864, 0.903), 1000))

    assert paired.value == pytest.approx(apart.value)
    assert paired.is_clear
    assert not apart.is_clear
    assert paired.interval[0] > 0 > apart.interval[0]


def test_unpaired_equals_the_published_example() -> None:
    # Newcombe 1998, table II (a): 56/70 less 48/80, method 10.
    one = Accuracy(56 / 70, (0.6918, 0.8773), 70)
    other = Accuracy(48 / 80, (0.4903, 0.7005), 80)

    assert unpaired_difference("a", "b", one, other).interval == pytest.approx((0.0524, 0.3339), abs=2e-3)


def test_holm_multiplies_by_what_is_left_and_keeps_the_order() -> None:
    base = paired_difference("a", "b", [True], [False])
    raw = [base.__class__(**{**vars(base), "p_value": p}) for p in (0.03, 0.01, 0.04)]

    assert [one.p_adjusted for one in holm(raw)] == pytest.approx([0.06, 0.03, 0.06])


def test_only_images_with_the_same_label_are_common() -> None:
    one = {"1": ("cat", True), "2": ("dog", False), "3": ("cat", True)}
    other = {"1": ("cat", False), "2": ("cat", True), "4": ("cat", True)}

    assert common_hits(one, other) == ([True], [False])
