"""The decision which taps to keep: exact, never at a loss, never over the budget."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tltrain.train.keeping import IMAGES, Cut, Decision, Demand, Passes, Rates, Step, Tier, decide, describe, plan_pass

RATES = Rates(write=1e9, read=2e9)
MB = 10**6


def demand_of(*cuts: Cut, passes: int, num_images: int = 1000, split: str = "train") -> Demand:
    """Every cut is needed in each of `passes`."""
    return Demand(split, num_images, cuts, (Passes(frozenset(cut.depth for cut in cuts), passes),))


def tier_of(limit_bytes: int, rates: Rates = RATES) -> Tier:
    return Tier("memory", limit_bytes, rates)


def seconds_by_hand(demand: Demand, kept: frozenset[int], rates: Rates) -> float:
    """Walk through every pass one by one, per image, as training would."""
    seconds, ready = 0.0, {cut.depth for cut in demand.cuts if cut.is_stored and cut.depth in kept}
    for passes in demand.passes:
        for _ in range(passes.count):
            at_hand = None  # the cut whose tap was made last in this pass
            for needed in (cut for cut in demand.cuts if cut.depth in passes.depths):
                if needed.depth in ready:
                    seconds += needed.bytes_per_image / rates.read
                else:
                    start = max((at_hand.depth if at_hand else -1, *(d for d in ready if d < needed.depth)))
                    if start in ready and (at_hand is None or start > at_hand.depth):
                        seconds += next(c.bytes_per_image for c in demand.cuts if c.depth == start) / rates.read
                    seconds += sum(c.seconds_per_image for c in demand.cuts if start < c.depth <= needed.depth)
                    if needed.depth in kept:
                        seconds += needed.bytes_per_image / rates.write
                at_hand = needed
            ready |= kept & passes.depths
    return seconds * demand.num_images


@st.composite
def demands(draw: st.DrawFn) -> Demand:
    depths = draw(st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True).map(sorted))
    cuts = tuple(
        Cut(
            f"stage{depth}",
            depth,
            bytes_per_image=draw(st.integers(1, 10**6)),
            seconds_per_image=draw(st.floats(0, 0.01)),
            is_stored=draw(st.integers(0, 4)) == 0,
            is_keepable=draw(st.integers(0, 4)) > 0,
        )
        for depth in depths
    )
    needed = st.sets(st.sampled_from(depths)).map(frozenset)
    passes = draw(st.lists(st.builds(Passes, needed, st.integers(0, 4)), max_size=3))
    return Demand("train", draw(st.integers(1, 1000)), cuts, tuple(passes))


rates = st.builds(Rates, st.floats(1e6, 1e10), st.floats(1e6, 1e10))
limits = st.integers(0, 4 * 10**8)


@settings(deadline=None, max_examples=50)
@given(demands(), rates, limits)
def test_decision_is_the_best_of_all_choices_within_the_limit(demand: Demand, rates: Rates, limit: int) -> None:
    keepable = [cut for cut in demand.cuts if cut.is_keepable]
    choices = itertools.chain.from_iterable(itertools.combinations(keepable, n) for n in range(len(keepable) + 1))
    fitting = [c for c in choices if demand.num_images * sum(cut.bytes_per_image for cut in c) <= limit]
    costs = [seconds_by_hand(demand, frozenset(cut.depth for cut in choice), rates) for choice in fitting]

    decision = decide([demand], [tier_of(limit, rates)])

    without = seconds_by_hand(demand, frozenset(), rates)
    assert decision.saving_s == pytest.approx(without - min(costs), rel=1e-6, abs=1e-9)
    assert without - seconds_by_hand(demand, decision.kept("train"), rates) == pytest.approx(
        decision.saving_s, rel=1e-6, abs=1e-9
    )


@settings(deadline=None, max_examples=50)
@given(st.lists(demands(), min_size=1, max_size=2), rates, limits)
def test_decision_is_never_over_the_limit_and_never_keeps_a_cut_that_loses(
    wanted: list[Demand], rates: Rates, limit: int
) -> None:
    wanted = [replace(demand, split=f"split{i}") for i, demand in enumerate(wanted)]

    decision = decide(wanted, [tier_of(limit, rates)])

    assert decision.num_bytes <= limit
    for choice in decision.choices:
        assert choice.cut.is_keepable
        assert not choice.is_kept or choice.saving_s > 0
    assert describe(decision)


@settings(deadline=None, max_examples=50)
@given(demands(), rates, limits, limits)
def test_a_larger_limit_never_saves_less(demand: Demand, rates: Rates, limit: int, more: int) -> None:
    small, large = (decide([demand], [tier_of(size, rates)]).saving_s for size in (limit, limit + more))

    assert large >= small


@settings(deadline=None, max_examples=50)
@given(demands(), rates)
def test_nothing_is_kept_that_is_needed_once(demand: Demand, rates: Rates) -> None:
    cuts = tuple(replace(cut, is_stored=False) for cut in demand.cuts)
    once = replace(demand, cuts=cuts, passes=(Passes(frozenset(cut.depth for cut in cuts), 1),))

    assert decide([once], [tier_of(2**62, rates)]).kept("train") == frozenset()


@pytest.mark.parametrize(("passes", "is_kept"), [(2, False), (3, False), (4, True)])
def test_a_cut_is_kept_from_where_reading_back_pays_for_writing(passes: int, is_kept: bool) -> None:
    # Per image: 2 ms to compute, 1 ms to read, 2.5 ms to write: (n - 1) * (2 - 1) > 2.5 from n = 4 on.
    cut = Cut("layer3", 3, bytes_per_image=MB, seconds_per_image=2e-3)
    tier = tier_of(10**12, Rates(write=MB / 2.5e-3, read=MB / 1e-3))

    decision = decide([demand_of(cut, passes=passes)], [tier])

    assert decision.kept("train") == (frozenset({3}) if is_kept else frozenset())


def test_what_is_stored_already_is_read_from_the_first_pass_on() -> None:
    cut = Cut("layer3", 3, bytes_per_image=MB, seconds_per_image=2e-3, is_stored=True)

    decision = decide([demand_of(cut, passes=1)], [tier_of(10**12)])

    assert decision.kept("train") == {3}
    assert decision.saving_s == pytest.approx(1000 * (2e-3 - MB / RATES.read))


def test_a_shallow_cut_that_no_lane_needs_any_more_gives_way_to_the_deep_one() -> None:
    shallow = Cut("layer1", 1, bytes_per_image=MB // 2, seconds_per_image=5e-3)
    deep = Cut("layer4", 4, bytes_per_image=MB // 2, seconds_per_image=5e-3)
    demand = Demand("train", 1000, (shallow, deep), (Passes(frozenset({1, 4}), 2), Passes(frozenset({4}), 5)))

    decision = decide([demand], [tier_of(500 * MB)])

    assert decision.kept("train") == {4}


def test_the_budget_is_shared_between_splits_where_it_saves_most() -> None:
    cut = Cut("layer4", 4, bytes_per_image=MB, seconds_per_image=5e-3)
    train = demand_of(cut, passes=3, num_images=1000)
    val = demand_of(cut, passes=3, num_images=200, split="val")

    small, large = (decide([train, val], [tier_of(size * MB)]) for size in (999, 1000))

    assert (small.kept("train"), small.kept("val")) == (frozenset(), {4})
    assert (large.kept("train"), large.kept("val")) == ({4}, frozenset())


def test_a_slow_disk_is_used_only_for_what_is_worth_it_there() -> None:
    cheap = Cut("layer1", 1, bytes_per_image=MB, seconds_per_image=3e-3)
    demand = demand_of(cheap, passes=10)
    cached, disk = tier_of(999 * MB), Tier("disk", 10**12, Rates(write=1e8, read=1e8))

    decision = decide([demand], [cached, disk])

    assert decision.kept("train") == frozenset()
    assert decide([replace(demand, num_images=999)], [cached, disk]).tier == cached


def test_without_a_place_nothing_is_kept_and_the_log_says_so() -> None:
    decision = decide([demand_of(Cut("layer1", 1, MB, 1.0), passes=9)], [])

    assert decision == Decision(decision.choices, None, 0.0)
    assert describe(decision) == [
        "no taps are kept",
        "  train layer1 (953.7 MiB): not kept, for there is no place to keep it",
    ]


def test_description_gives_the_arithmetic_of_each_cut() -> None:
    kept = Cut("layer3", 3, bytes_per_image=MB // 10, seconds_per_image=4e-3)
    slow = Cut("layer4", 4, bytes_per_image=MB, seconds_per_image=1e-4)
    big = Cut("layer5", 5, bytes_per_image=10 * MB, seconds_per_image=1.0)

    lines = describe(decide([demand_of(kept, slow, big, passes=3)], [tier_of(2000 * MB)]))

    assert lines == [
        "taps kept: 95.4 MiB of 1,907.3 MiB in memory (written at 953.7 MiB/s, read at 1,907.3 MiB/s), "
        "saving about 7.8 s",
        "  train layer3 (95.4 MiB): kept, saves about 7.8 s",
        "  train layer4 (953.7 MiB): not kept, it would cost 1.8 s more than it saves: per image 0.5 ms to read and "
        "1 ms to write once, 0.1 ms to compute from the cut before",
        "  train layer5 (9,536.7 MiB): not kept, it would save about 1,980.0 s, but only 1,812.0 MiB of 1,907.3 MiB "
        "are left",
    ]


@pytest.mark.parametrize(
    ("depths", "kept", "steps"),
    [
        ((), (3,), []),
        ((0,), (), [Step(0, IMAGES)]),
        ((2, 5), (), [Step(2, IMAGES), Step(5, 2)]),
        ((2, 5), (5,), [Step(2, IMAGES), Step(5, 5, is_read=True)]),
        ((2, 5), (2,), [Step(2, 2, is_read=True), Step(5, 2)]),
        ((2, 5), (4,), [Step(2, IMAGES), Step(4, 4, is_read=True), Step(5, 4)]),
        ((2, 5), (1, 3, 4, 6), [Step(1, 1, is_read=True), Step(2, 1), Step(4, 4, is_read=True), Step(5, 4)]),
        ((5,), (1, 5), [Step(5, 5, is_read=True)]),
    ],
)
def test_pass_reads_what_is_kept_and_computes_the_rest_from_the_deepest_tap_below(
    depths: tuple[int, ...], kept: tuple[int, ...], steps: list[Step]
) -> None:
    assert plan_pass(depths, kept) == steps


def test_many_cuts_are_decided_in_short_time() -> None:
    cuts = [Cut(f"block{depth}", depth, MB // 10, 1e-3) for depth in range(20)]
    demands = [demand_of(*cuts, passes=5, split=split) for split in ("train", "val")]

    decision = decide(demands, [tier_of(500 * MB)])

    assert 0 < decision.num_bytes <= 500 * MB
