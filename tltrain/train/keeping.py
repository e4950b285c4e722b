"""Which taps are worth keeping: a pure decision from measured times, sizes and rates."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

IMAGES = -1
"""Where a pass starts when no tap helps: from the images as they are stored."""
MAX_CUTS = 10
"""Cuts per split between which every choice is tried."""


@dataclass(frozen=True)
class Rates:
    """Measured bytes per second of keeping a tap (its check included) and of reading it back."""

    write: float
    read: float


@dataclass(frozen=True)
class Tier:
    """A place for taps: as long as they take no more than `limit_bytes` in all, these are its rates."""

    name: str
    limit_bytes: int
    rates: Rates


@dataclass(frozen=True)
class Cut:
    """A place in the network where some lane needs the tap.

    seconds_per_image: to compute it from the cut before it in the list, or from the stored images, decoding
    included. is_stored: all of it is kept already. is_keepable: False where it can only be computed.
    """

    name: str
    depth: int
    bytes_per_image: int
    seconds_per_image: float
    is_stored: bool = False
    is_keepable: bool = True


@dataclass(frozen=True)
class Passes:
    """How often the images of a split are gone through with taps needed at `depths`."""

    depths: frozenset[int]
    count: int


@dataclass(frozen=True)
class Demand:
    """What is still to be done with one split: its cuts by ascending depth, and all passes in their order."""

    split: str
    num_images: int
    cuts: tuple[Cut, ...]
    passes: tuple[Passes, ...]


@dataclass(frozen=True)
class Step:
    """One step of a pass: read the tap at `depth`, or compute it from the one at `source`."""

    depth: int
    source: int
    is_read: bool = False


def plan_pass(depths: Iterable[int], kept: Collection[int]) -> list[Step]:
    """Return how one pass comes to the taps at `depths`, when those at `kept` can be read.

    What is kept is read. The rest is computed from the deepest tap below that is at hand or kept.
    """
    steps: list[Step] = []
    reached = IMAGES
    for depth in sorted(depths):
        below = max((other for other in kept if other < depth), default=IMAGES)
        if depth in kept:
            steps.append(Step(depth, depth, is_read=True))
        else:
            if below > reached:
                steps.append(Step(below, below, is_read=True))
            steps.append(Step(depth, max(below, reached)))
        reached = depth
    return steps


@dataclass(frozen=True)
class Choice:
    """What was decided about one cut of one split; saving_s is what keeping it saves beside the other kept cuts."""

    split: str
    num_images: int
    cut: Cut
    is_kept: bool
    saving_s: float
    why: str

    @property
    def num_bytes(self) -> int:
        """Bytes of all its taps."""
        return self.num_images * self.cut.bytes_per_image


@dataclass(frozen=True)
class Decision:
    """Which cuts to keep in which tier (None where none is kept), and the seconds that saves against keeping none."""

    choices: tuple[Choice, ...]
    tier: Tier | None
    saving_s: float

    @property
    def num_bytes(self) -> int:
        """Bytes of all that is kept."""
        return sum(choice.num_bytes for choice in self.choices if choice.is_kept)

    def kept(self, split: str) -> frozenset[int]:
        """Return the depths of the cuts of `split` that are kept."""
        return frozenset(choice.cut.depth for choice in self.choices if choice.is_kept and choice.split == split)


def decide(demands: Sequence[Demand], tiers: Sequence[Tier]) -> Decision:
    """Return what to keep so that the most time is saved, by trying every choice within each tier's limit.

    A cut that is needed in n passes is computed and written in the first and read in the others: it saves
    (n - 1) * (compute - read) - write, so nothing is kept at n = 1. Where it is stored already, all n are read.
    Without a tier nothing is kept.
    """
    best, best_tier = _nothing(demands), None
    for tier in tiers:
        option = _best_option(demands, tier)
        if option.saving_s > best.saving_s:
            best, best_tier = option, tier
    compared = best_tier or max(tiers, key=lambda tier: tier.limit_bytes, default=None)
    choices = [
        _choice(demand, cut, kept, compared, best.num_bytes)
        for demand, kept in zip(demands, best.kept, strict=True)
        for cut in _keepable(demand)
    ]
    return Decision(tuple(choices), best_tier, best.saving_s)


def describe(decision: Decision) -> list[str]:
    """Return lines for the log: what is kept, what is not, and why."""
    lines = [
        f"  {choice.split} {choice.cut.name} ({_size(choice.num_bytes)}): "
        f"{'kept' if choice.is_kept else 'not kept'}, {choice.why}"
        for choice in decision.choices
    ]
    if decision.tier is None:
        return ["no taps are kept", *lines]
    tier, rates = decision.tier, decision.tier.rates
    place = f"{_size(decision.num_bytes)} of {_size(tier.limit_bytes)} in {tier.name}"
    speed = f"written at {_size(rates.write)}/s, read at {_size(rates.read)}/s"
    return [f"taps kept: {place} ({speed}), saving about {decision.saving_s:,.1f} s", *lines]


@dataclass(frozen=True)
class _Option:
    """Kept depths per demand, with the bytes they take and the seconds they save."""

    num_bytes: int
    saving_s: float
    kept: tuple[frozenset[int], ...]


def _nothing(demands: Sequence[Demand]) -> _Option:
    return _Option(0, 0.0, tuple(frozenset[int]() for _ in demands))


def _best_option(demands: Sequence[Demand], tier: Tier) -> _Option:
    options = [_nothing([])]
    for demand in demands:
        own = _undominated(_options(demand, tier.rates), tier.limit_bytes)
        pairs = itertools.product(options, own)
        joined = (_Option(a.num_bytes + b.num_bytes, a.saving_s + b.saving_s, a.kept + b.kept) for a, b in pairs)
        options = _undominated(joined, tier.limit_bytes)
    return options[-1]


def _undominated(options: Iterable[_Option], limit_bytes: int) -> list[_Option]:
    """Return the options within the limit that save more than all that take no more bytes, by ascending saving."""
    front: list[_Option] = []
    for option in sorted(options, key=lambda option: (option.num_bytes, -option.saving_s)):
        if option.num_bytes <= limit_bytes and (not front or option.saving_s > front[-1].saving_s):
            front.append(option)
    return front


def _options(demand: Demand, rates: Rates) -> Iterator[_Option]:
    """Yield every choice between the cuts of a split; of very many cuts, between those that save most alone."""
    costs = _Costs(demand, rates)
    cuts = sorted(_keepable(demand), key=lambda cut: costs.seconds(frozenset({cut.depth})))[:MAX_CUTS]
    without_s = costs.seconds(frozenset())
    for count in range(len(cuts) + 1):
        for chosen in itertools.combinations(cuts, count):
            kept = frozenset(cut.depth for cut in chosen)
            num_bytes = demand.num_images * sum(cut.bytes_per_image for cut in chosen)
            yield _Option(num_bytes, without_s - costs.seconds(kept), (kept,))


def _keepable(demand: Demand) -> list[Cut]:
    return [cut for cut in demand.cuts if cut.is_keepable]


class _Costs:
    """The seconds that the passes over one split take."""

    def __init__(self, demand: Demand, rates: Rates) -> None:
        self._demand, self._rates = demand, rates
        self._bytes = {cut.depth: cut.bytes_per_image for cut in demand.cuts}
        self._stored = {cut.depth for cut in demand.cuts if cut.is_stored}
        sums = itertools.accumulate((cut.seconds_per_image for cut in demand.cuts), initial=0.0)
        self._computed_s = dict(zip([IMAGES, *self._bytes], sums, strict=True))

    def seconds(self, kept: frozenset[int]) -> float:
        """Return the seconds of all passes, with the taps at `kept` kept from when they are first computed."""
        ready, seconds = kept & self._stored, 0.0
        for passes in self._demand.passes:
            if passes.count == 0:
                continue
            first = plan_pass(passes.depths, ready)
            written = kept.intersection(step.depth for step in first if not step.is_read)
            seconds += self._steps_s(first) + sum(self._bytes[depth] for depth in written) / self._rates.write
            ready |= written
            seconds += (passes.count - 1) * self._steps_s(plan_pass(passes.depths, ready))
        return seconds * self._demand.num_images

    def _steps_s(self, steps: list[Step]) -> float:
        return sum(
            self._bytes[step.depth] / self._rates.read
            if step.is_read
            else self._computed_s[step.depth] - self._computed_s[step.source]
            for step in steps
        )


def _choice(demand: Demand, cut: Cut, kept: frozenset[int], tier: Tier | None, taken_bytes: int) -> Choice:
    """Explain what was decided about a cut, where `kept` are the kept depths and `taken_bytes` what all take."""
    is_kept, saving_s = cut.depth in kept, 0.0
    if tier is None:
        why = "for there is no place to keep it"
    else:
        costs = _Costs(demand, tier.rates)
        saving_s = costs.seconds(kept - {cut.depth}) - costs.seconds(kept | {cut.depth})
        why = f"saves about {saving_s:,.1f} s" if is_kept else _why_not(demand, cut, tier, taken_bytes, saving_s)
    return Choice(demand.split, demand.num_images, cut, is_kept, saving_s, why)


def _why_not(demand: Demand, cut: Cut, tier: Tier, taken_bytes: int, saving_s: float) -> str:
    if saving_s > 0:
        left = f"{_size(tier.limit_bytes - taken_bytes)} of {_size(tier.limit_bytes)}"
        return f"it would save about {saving_s:,.1f} s, but only {left} are left"
    uses = sum(passes.count for passes in demand.passes if cut.depth in passes.depths)
    if uses <= 1:
        return "it is needed once only" if uses else "no lane needs it"
    write_s, read_s = cut.bytes_per_image / tier.rates.write, cut.bytes_per_image / tier.rates.read
    return (
        f"it would cost {-saving_s:,.1f} s more than it saves: per image {read_s * 1000:.3g} ms to read and "
        f"{write_s * 1000:.3g} ms to write once, {cut.seconds_per_image * 1000:.3g} ms to compute from the cut before"
    )


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 2**20:,.1f} MiB"
