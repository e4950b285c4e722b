"""Numbers on an axis: linear and logarithmic scales, round ticks, bins, and numbers as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

_LOG_STEPS = ((1, 2, 5), (1, 3), (1,))


@dataclass(frozen=True)
class Axis:
    """The numbers from `lo` to `hi` (lo < hi), spread evenly or, where `is_log`, by their logarithms."""

    lo: float
    hi: float
    is_log: bool = False
    step: float | None = None
    """Distance of the ticks of a linear axis; None chooses one."""

    def share(self, value: float) -> float:
        """Where `value` stands: 0 at `lo`, 1 at `hi`; values outside are moved to the nearer end."""
        value = min(max(value, self.lo), self.hi)
        if self.is_log:
            # Differences of logarithms: a quotient of the ends may be too large for a float.
            return (math.log(value) - math.log(self.lo)) / (math.log(self.hi) - math.log(self.lo))
        return (value - self.lo) / (self.hi - self.lo)

    def ticks(self, count: int = 5) -> list[float]:
        """About `count` round numbers on the axis, ascending."""
        ticks = log_ticks(self.lo, self.hi, count + 2) if self.is_log else []
        return ticks if len(ticks) > 1 else linear_ticks(self.lo, self.hi, count, self.step)


def fit_axis(values: Sequence[float], *, is_log: bool | None = None, is_tight: bool = False) -> Axis:
    """Return an axis that holds all `values` (finite); by default logarithmic where that spreads them better.

    The ends of a linear axis are round numbers unless `is_tight`. Without values it goes from 0 to 1.
    """
    if not values:
        return Axis(0.0, 1.0)
    lo, hi = min(values), max(values)
    log = suits_log(values) if is_log is None else is_log and lo > 0
    if lo == hi:
        return Axis(lo / 2, lo * 2, True) if log else Axis(lo - abs(lo) / 4 - 0.01, hi + abs(hi) / 4 + 0.01)
    if log or is_tight:
        return Axis(lo, hi, log)
    step = _step((hi - lo) / 5)
    return Axis(math.floor(lo / step + 1e-9) * step, math.ceil(hi / step - 1e-9) * step, step=step)


def suits_log(values: Sequence[float]) -> bool:
    """Whether the middle of positive, widely spread `values` is nearer to that of their logarithms."""
    if not values or min(values) <= 0 or max(values) / min(values) < 8:
        return False
    lo, hi = min(values), max(values)
    return math.log(median(values)) < (math.log(math.sqrt(lo) * math.sqrt(hi)) + math.log(lo / 2 + hi / 2)) / 2


def linear_ticks(lo: float, hi: float, count: int = 5, step: float | None = None) -> list[float]:
    """Return the multiples of `step` in lo..hi; by default of 1, 2, 2.5 or 5 times a power of ten, about `count`."""
    step = step or _step((hi - lo) / count)
    first, last = math.ceil(lo / step - 1e-9), math.floor(hi / step + 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def log_ticks(lo: float, hi: float, limit: int = 7) -> list[float]:
    """Return round numbers in lo..hi (both positive): the densest of three series with at most `limit` in it."""
    ticks: list[float] = []
    for steps in _LOG_STEPS:
        series = _log_series(lo, hi, steps)
        ticks = [tick for tick in series if lo * (1 - 1e-9) <= tick <= hi * (1 + 1e-9)]
        if len(ticks) <= limit:
            return ticks
    return ticks[:: math.ceil(len(ticks) / limit)]


def bin_edges(values: Sequence[float], limit: int) -> list[float]:
    """Return the ascending lower edges of at most `limit` bins that hold all `values`, at round numbers."""
    lo, hi = min(values), max(values)
    if suits_log(values):
        edges: list[float] = []
        for steps in _LOG_STEPS:
            edges = _from_below(_log_series(lo, hi, steps), lo, hi)
            if len(edges) <= limit:
                break
        return edges[:: math.ceil(len(edges) / limit)]
    step = _step((hi - lo or 1.0) / max(1, limit - 1))
    first, last = math.floor(lo / step), math.floor(hi / step)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def _from_below(series: Sequence[float], lo: float, hi: float) -> list[float]:
    """The part of an ascending series from the last one that is at most `lo` to the last that is at most `hi`."""
    below = max((number for number in series if number <= lo), default=lo)
    return [number for number in series if below <= number <= hi]


def _log_series(lo: float, hi: float, steps: Sequence[int]) -> list[float]:
    decades = range(math.floor(math.log10(lo)), math.ceil(math.log10(hi)) + 1)
    return [float(f"{step}e{decade}") for decade in decades for step in steps]


def number_text(value: float, digits: int = 4) -> str:
    """Return a number with at most `digits` significant digits, such as `0.003`, `1250`, `1e-5`."""
    if isinstance(value, int):
        return str(value)
    mantissa, mark, exponent = f"{value:.{digits}g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if mark else mantissa


def duration_text(seconds: float) -> str:
    """Return a duration such as `4.2 s`, `12 min 5 s` or `3 h 20 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _step(raw: float) -> float:
    """The round step (1, 2, 2.5 or 5 times a power of ten) at or above `raw`."""
    power = 10.0 ** math.floor(math.log10(raw))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if raw <= step * power * (1 + 1e-9))
