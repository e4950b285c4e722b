"""Which learning rate to take: a pure decision from the losses of lanes that differ in their rate alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

DIVERGED_FACTOR = 3.0
"""A lane has diverged once its recent losses are this many times the loss before training."""
RECENT = 4
"""Steps whose mean loss a lane is judged by on the way, and at the end where the last share is less."""
LAST_SHARE = 0.25
"""Share of the steps, the last ones, whose mean loss a lane is judged by at the end."""
REACHED = 0.9
"""The highest rate is suggested that lowers the loss by this share of what the best one does."""
LEARNS = 0.02
"""Smallest share of the first loss that the best rate has to take away for a suggestion."""


@dataclass(frozen=True)
class Curve:
    """A lane at one rate: its training loss per step, each from before that step's update.

    ended: `diverged` or `behind` where the lane was ended before the others, else None.
    """

    rate: float
    losses: tuple[float, ...]
    ended: str | None = None

    @property
    def final_loss(self) -> float | None:
        """The mean loss of the last steps; None where the lane diverged."""
        return None if self.ended == "diverged" else recent_loss(self.losses)


@dataclass(frozen=True)
class Suggestion:
    """The rate to take, None where none can be told, and why. best has the lowest loss, limit diverges."""

    learning_rate: float | None
    reason: str
    best: float | None = None
    limit: float | None = None


@dataclass(frozen=True)
class DepthResult:
    """All rates at one freeze depth, ascending. frozen_stages: what freeze_depth is as a number."""

    freeze_depth: int | str
    frozen_stages: int
    trained_parameters: int
    curves: tuple[Curve, ...]

    @property
    def suggestion(self) -> Suggestion:
        """Which of the rates to take."""
        return suggest(self.curves)


@dataclass(frozen=True)
class RangeTest:
    """What a range test found, in the order of the depths; seconds: for all lanes, from data and weights to the end."""

    model: str
    optimizer: str
    steps: int
    batch_size: int
    num_images: int
    seconds: float
    depths: tuple[DepthResult, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values; a loss that is not finite is None."""
        values = asdict(self)
        for result, depth in zip(self.depths, values["depths"], strict=True):
            depth["suggestion"] = asdict(result.suggestion)
            for curve, row in zip(result.curves, depth["curves"], strict=True):
                row["final_loss"] = curve.final_loss
                row["losses"] = [loss if math.isfinite(loss) else None for loss in curve.losses]
        return values


def recent_loss(losses: Sequence[float]) -> float:
    """Return the mean of the last losses."""
    return statistics.fmean(losses[-max(RECENT, round(LAST_SHARE * len(losses))) :])


def has_diverged(losses: Sequence[float]) -> bool:
    """Whether the last loss is no finite number, or the recent ones together are far above the first."""
    if not math.isfinite(losses[-1]):
        return True
    return len(losses) >= RECENT and statistics.fmean(losses[-RECENT:]) > DIVERGED_FACTOR * losses[0]


def suggest(curves: Sequence[Curve]) -> Suggestion:
    """Return the rate to take of lanes in ascending order of their rates, which all began with the same loss.

    That is the highest rate that reaches nine tenths of what the best one does in the same steps. In few steps the best
    rate comes out too low (Wu et al. 2018, arXiv 1803.02021): what a higher one gains later does not show yet, and a
    schedule lowers it anyway.
    """
    falls = {curve.rate: curve.losses[0] - curve.final_loss for curve in curves if curve.final_loss is not None}
    limit = next((curve.rate for curve in curves if curve.ended == "diverged"), None)
    if not falls:
        return Suggestion(None, "every rate diverges; try lower ones (--from, --to)", limit=limit)
    best, start = max(falls, key=lambda rate: falls[rate]), curves[0].losses[0]
    if falls[best] < LEARNS * start:
        return Suggestion(None, "no rate lowers the loss; try more --steps or higher rates (--to)", best, limit)
    rate = max(rate for rate, fall in falls.items() if fall >= REACHED * falls[best])
    share = "the lowest loss" if rate == best else f"{100 * falls[rate] / falls[best]:.0f} % of the fall at {best:g}"
    reasons = [share, f"the loss shoots up at {limit:g}" if limit is not None else "no rate makes the loss shoot up"]
    if rate == curves[-1].rate:
        reasons.append("it is the highest rate: try higher ones (--to)")
    if rate == curves[0].rate:
        reasons.append("it is the lowest rate: try lower ones (--from)")
    return Suggestion(rate, "; ".join(reasons), best, limit)
