"""Domains: what is drawn lies in them, evenly, and is readable."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tltrain.spec.domains import all_values, bounds, canonical, draw, num_values, samples, settle, share
from tltrain.spec.schema import Domain

SHARES = st.floats(0, 1, exclude_max=True)
ORDERED = st.tuples(st.floats(1e-12, 1e12), st.floats(1.001, 1e6)).map(lambda pair: [pair[0], pair[0] * pair[1]])
WHOLE = st.tuples(st.integers(-1000, 1000), st.integers(1, 1000)).map(lambda pair: [pair[0], pair[0] + pair[1]])
STEPS = st.tuples(st.sampled_from([0.01, 0.1, 0.25, 1.0, 3.0, 16.0]), st.integers(-50, 50), st.integers(0, 50))
LISTS = st.lists(st.none() | st.booleans() | st.integers() | st.text(max_size=3), min_size=1, max_size=5)

DOMAINS = st.one_of(
    ORDERED.map(lambda pair: Domain(uniform=pair)),
    ORDERED.map(lambda pair: Domain(loguniform=pair)),
    WHOLE.map(lambda pair: Domain(randint=pair)),
    STEPS.map(lambda t: Domain(quniform=[t[0] * t[1], t[0] * (t[1] + t[2]), t[0]])),
    LISTS.map(lambda values: Domain(choice=values)),
    LISTS.map(lambda values: Domain(grid=values)),
)

often = settings(max_examples=200, deadline=None)


def is_in(domain: Domain, value: Any) -> bool:
    """Tell whether a domain has a value, from the domain's meaning alone."""
    if domain.kind in ("grid", "choice"):
        return any(type(value) is type(other) and value == other for other in domain.values)
    if domain.kind == "randint":
        return isinstance(value, int) and domain.values[0] <= value < domain.values[1]
    low, high = domain.values[:2]
    slack = 1e-9 * max(abs(low), abs(high)) if domain.kind == "quniform" else 0
    on_step = domain.kind != "quniform" or math.isclose(value / domain.values[2] % 1, 0, abs_tol=1e-6)
    on_step = on_step or math.isclose(value / domain.values[2] % 1, 1, abs_tol=1e-6)
    return low - slack <= value <= high + slack and on_step


@often
@given(DOMAINS, SHARES)
def test_every_drawn_value_lies_in_its_domain_and_survives_json(domain: Domain, at: float) -> None:
    value = draw(domain, at)

    assert is_in(domain, value)
    assert json.loads(json.dumps(value)) == value
    assert settle(domain, value) == value


@often
@given(ORDERED, SHARES)
def test_drawn_numbers_have_6_digits_unless_they_are_a_bound(pair: list[float], at: float) -> None:
    for domain in (Domain(uniform=pair), Domain(loguniform=pair)):
        value = draw(domain, at)
        assert value in pair or float(f"{value:.6g}") == value


@often
@given(DOMAINS, st.floats(-1e13, 1e13))
def test_any_number_settles_in_the_domain(domain: Domain, found: float) -> None:
    if domain.kind not in ("grid", "choice"):
        assert is_in(domain, settle(domain, found))


@often
@given(DOMAINS)
def test_samples_and_all_values_lie_in_the_domain(domain: Domain) -> None:
    assert all(is_in(domain, value) for value in samples(domain))
    if (count := num_values(domain)) is not None:
        values = list(all_values(domain))
        assert len({canonical(value) for value in values}) == len(values) == count
        assert all(is_in(domain, value) for value in values)
    else:
        assert bounds(domain) == domain.values


def test_loguniform_is_even_in_the_logarithm() -> None:
    domain = Domain(loguniform=[1e-4, 1.0])

    decades = Counter(math.floor(math.log10(draw(domain, share("test", index)))) for index in range(4000))

    assert set(decades) == {-4, -3, -2, -1}
    assert all(900 < count < 1100 for count in decades.values())
    assert draw(domain, 0.0) == 1e-4
    assert draw(domain, 0.5) == 0.01


@pytest.mark.parametrize(
    ("domain", "values"),
    [
        (Domain(quniform=[16, 64, 16]), [16, 32, 48, 64]),
        (Domain(quniform=[0.1, 0.3, 0.1]), [0.1, 0.2, 0.3]),
        (Domain(quniform=[0.05, 0.3, 0.1]), [0.1, 0.2, 0.3]),
        (Domain(quniform=[-1, 1, 0.5]), [-1.0, -0.5, 0.0, 0.5, 1.0]),
        (Domain(randint=[2, 5]), [2, 3, 4]),
        (Domain(choice=[1, 1.0, True, "1", None]), [1, True, "1", None]),
    ],
    ids=str,
)
def test_finite_domains_list_their_values_and_draw_each(domain: Domain, values: list[Any]) -> None:
    assert [(type(value), value) for value in all_values(domain)] == [(type(value), value) for value in values]
    count = len(values)
    assert [draw(domain, (index + 0.5) / count) for index in range(count)] == values


def test_quniform_of_whole_numbers_suits_keys_that_count() -> None:
    assert isinstance(draw(Domain(quniform=[16, 64, 16]), 0.3), int)
    assert isinstance(draw(Domain(quniform=[16, 64, 0.5]), 0.3), float)


def test_shares_are_the_same_on_every_machine() -> None:
    shares = [round(share(0, number, 0, "optim.learning_rate"), 12) for number in range(3)]

    assert shares == [0.573370579641, 0.746526311053, 0.639017964237]
