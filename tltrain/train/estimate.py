"""Seconds that lanes would take together and one by one: pure arithmetic on measured costs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tltrain.train.calibration import Calibration
from tltrain.train.keeping import Cut, Decision, Demand, Passes, Tier, decide


@dataclass(frozen=True)
class LanePlan:
    """One lane: how many stages are frozen, and for how many epochs it trains."""

    depth: int
    epochs: int


@dataclass(frozen=True)
class Estimate:
    """Seconds of one worker. shared_s: decoding and frozen stages, once for all. own_s: of each lane, in order."""

    shared_s: float
    own_s: tuple[float, ...]
    decision: Decision

    @property
    def total_s(self) -> float:
        """Everything, on one worker."""
        return self.shared_s + sum(self.own_s)


def estimate(costs: Calibration, lanes: Sequence[LanePlan], tiers: Sequence[Tier]) -> Estimate:
    """Return what `lanes` take beside each other, with taps kept in `tiers` where that pays."""
    demands = [_demand(costs, lanes, *split) for split in (("train", costs.num_train), ("val", costs.num_val))]
    demands = [demand for demand in demands if demand.num_images]
    decision = decide(demands, tiers)
    shared_s = sum(_computed_s(demand) + _decoding_s(costs, demand, decision) for demand in demands)
    return Estimate(shared_s - decision.saving_s, tuple(_own_s(costs, lane) for lane in lanes), decision)


def _own_s(costs: Calibration, lane: LanePlan) -> float:
    cost = costs.lanes[lane.depth]
    return lane.epochs * (costs.num_train * cost.step_s + costs.num_val * cost.validation_s)


def _demand(costs: Calibration, lanes: Sequence[LanePlan], split: str, num_images: int) -> Demand:
    depths = {lane.depth for lane in lanes}
    passes, done = [], 0
    for epochs in sorted({lane.epochs for lane in lanes}):
        going_on = frozenset(lane.depth for lane in lanes if lane.epochs >= epochs)
        passes.append(Passes(going_on, epochs - done))
        done = epochs
    # Validation images are never augmented; training images differ between epochs where they are.
    is_constant = costs.keeps_taps or split == "val"
    return Demand(split, num_images, tuple(_cuts(costs, depths, is_constant)), tuple(passes))


def _cuts(costs: Calibration, depths: Collection[int], is_constant: bool) -> list[Cut]:
    """Return the cuts at `depths`, each with the cost of all measured ones since the one before."""
    cuts, seconds = [], 0.0
    for cut in costs.cuts:
        seconds += cut.seconds
        if cut.depth in depths:
            is_keepable = is_constant and cut.depth > 0
            cuts.append(Cut(cut.name, cut.depth, cut.bytes_per_image, seconds, is_keepable=is_keepable))
            seconds = 0.0
    return cuts


def _computed_s(demand: Demand) -> float:
    """Return the seconds of all passes where no tap is kept."""
    per_pass = (
        (passes.count, sum(cut.seconds_per_image for cut in demand.cuts if cut.depth <= max(passes.depths)))
        for passes in demand.passes
    )
    return demand.num_images * sum(count * seconds for count, seconds in per_pass)


def _decoding_s(costs: Calibration, demand: Demand, decision: Decision) -> float:
    has_all_taps = decision.kept(demand.split) >= {cut.depth for cut in demand.cuts}
    is_once = costs.keeps_decoded or has_all_taps
    epochs = sum(passes.count for passes in demand.passes)
    return demand.num_images * costs.decode_s * (1 if is_once else epochs)
