"""Whether two runs differ by more than chance: on the same images image by image, else from their counts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

Z_95 = NormalDist().inv_cdf(0.975)
EXACT_UP_TO = 1000
"""Images on which two runs differ up to which the binomial distribution is summed; beyond it is normal enough."""


@dataclass(frozen=True)
class Difference:
    """Accuracy of one run less that of another: its value, its 95 % interval, and how likely chance alone gives it."""

    one: str
    other: str
    images: int
    is_paired: bool
    only_one: int
    """Images that `one` alone got right; 0 where the runs saw different images."""
    only_other: int
    value: float
    interval: tuple[float, float]
    p_value: float
    """Two-sided, for this difference alone."""
    p_adjusted: float
    """The same for one of several differences that are looked at (Holm 1979)."""

    @property
    def is_clear(self) -> bool:
        """Whether it is larger than chance at the 5 % level, all differences taken together."""
        return self.p_adjusted < 0.05


def paired_difference(one: str, other: str, hits_one: Sequence[bool], hits_other: Sequence[bool]) -> Difference:
    """Return the difference on the same images, by McNemar's test (1947; exact where few images differ).

    The interval is that of Bonett and Price (2012), which holds for few images too.
    """
    pairs = list(zip(hits_one, hits_other, strict=True))
    n, b, c = len(pairs), pairs.count((True, False)), pairs.count((False, True))
    first, second = (b + 1) / (n + 2), (c + 1) / (n + 2)
    half = Z_95 * math.sqrt((first + second - (first - second) ** 2) / (n + 2))
    interval = (max(-1.0, first - second - half), min(1.0, first - second + half))
    p_value = mcnemar(b, c)
    return Difference(one, other, n, True, b, c, (b - c) / n, interval, p_value, p_value)


def mcnemar(b: int, c: int) -> float:
    """Return the two-sided p-value of `b` and `c` images that only one of two runs got right."""
    n = b + c
    if n > EXACT_UP_TO:
        return math.erfc((abs(b - c) - 1) / math.sqrt(n) / math.sqrt(2))
    tail = sum(math.comb(n, k) for k in range(min(b, c) + 1))
    return min(1.0, 2 * tail / 2**n)


@dataclass(frozen=True)
class Accuracy:
    """Accuracy on a number of images, with its 95 % interval (Wilson)."""

    value: float
    interval: tuple[float, float]
    images: int


def unpaired_difference(one: str, other: str, of_one: Accuracy, of_other: Accuracy) -> Difference:
    """Return the difference of two runs that saw different images.

    The p-value is that of two proportions (normal), the interval Newcombe's of two Wilson intervals (1998, method 10).
    """
    p, q, n, m = of_one.value, of_other.value, of_one.images, of_other.images
    pooled = (p * n + q * m) / (n + m)
    (p_low, p_high), (q_low, q_high) = of_one.interval, of_other.interval
    interval = (
        p - q - math.sqrt((p - p_low) ** 2 + (q_high - q) ** 2),
        p - q + math.sqrt((p_high - p) ** 2 + (q - q_low) ** 2),
    )
    spread = math.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))
    p_value = math.erfc(abs(p - q) / spread / math.sqrt(2)) if spread else 1.0
    return Difference(one, other, min(n, m), False, 0, 0, p - q, interval, p_value, p_value)


def holm(differences: Sequence[Difference]) -> list[Difference]:
    """Return differences with p-values adjusted for being looked at together, in the order they came in."""
    order = sorted(range(len(differences)), key=lambda index: differences[index].p_value)
    adjusted, largest = dict[int, float](), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, differences[index].p_value * (len(order) - rank)))
        adjusted[index] = largest
    return [replace(one, p_adjusted=adjusted[index]) for index, one in enumerate(differences)]


def common_hits(
    one: Mapping[str, tuple[str, bool]], other: Mapping[str, tuple[str, bool]]
) -> tuple[list[bool], list[bool]]:
    """Return whether each of two runs was right, for the images that both saw with the same label.

    Runs are given as image -> (label, whether it was right).
    """
    shared = [image for image, (label, _) in one.items() if image in other and other[image][0] == label]
    return [one[image][1] for image in shared], [other[image][1] for image in shared]
