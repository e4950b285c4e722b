"""What sharing saved a sweep: the work that was done once, and the same work one trial after another, by arithmetic."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

IMAGES = -1
"""The cut below the first stage, where the images are."""


@dataclass(frozen=True)
class Work:
    """Work that trials share: how often it was done here, and how often trials by themselves would have done it.

    An image costs `seconds_each` where nothing of it has been computed before.
    """

    name: str
    images: int
    seconds: float
    images_alone: float
    seconds_each: float

    @property
    def seconds_alone(self) -> float:
        """What it would have taken trial by trial, at the rate that was measured here."""
        return self.images_alone * self.seconds_each


@dataclass(frozen=True)
class Sharing:
    """The shared work of a sweep, and what its trials did each for itself."""

    works: Sequence[Work]
    num_lanes: int
    num_epochs: int

    @property
    def saved_s(self) -> float:
        """Seconds that sharing saved, over all workers."""
        return sum(work.seconds_alone - work.seconds for work in self.works)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Sharing:
        """The sharing in the contents of sharing.json."""
        benches = list((record.get("benches") or {}).values())
        works = [work for bench in benches for work in _works(bench, record.get("workers") or 1)]
        lanes = {lane for bench in benches for lane in bench["lanes"]}
        epochs = sum(sum(depths.values()) for bench in benches for depths in bench["lanes"].values())
        return cls(works, len(lanes), epochs)


def _works(bench: Mapping[str, Any], workers: int) -> Iterator[Work]:
    """Decoding, and the frozen stages up to each depth; nothing where no rate was measured."""
    needed = _images_alone(bench, workers)
    rates = {(start, stop): seconds / images for start, stop, seconds, images in bench["computed"] if images}
    if bench["decoded"]:
        rate = bench["decode_s"] / bench["decoded"]
        yield Work("decoding", bench["decoded"], bench["decode_s"], sum(needed.values()), rate)
    done: Counter[int] = Counter()
    spent: Counter[int] = Counter()
    for _, stop, seconds, images in bench["computed"]:
        done[stop] += images
        spent[stop] += seconds
    for depth in sorted(done):
        each = _seconds_to(depth, rates)
        if depth > 0 and each is not None:
            name = f"frozen layers up to {bench['stages'][depth - 1]}"
            yield Work(name, done[depth], spent[depth], needed[depth], each)


def _images_alone(bench: Mapping[str, Any], workers: int) -> Counter[int]:
    """Freeze depth -> images that a worker would have decoded and run through the frozen stages trial by trial.

    A trial by itself keeps taps between its epochs too, so where they are kept it needs each image but once.
    """
    needed: Counter[Any] = Counter()
    for depths in bench["lanes"].values():
        for depth, epochs in ((int(text), count) for text, count in depths.items()):
            for split, count in bench["images"].items():
                views = bench["views"] if split == "train" else 1
                passes = min(views, epochs) if depth in bench["kept"][split] else epochs
                needed[depth] += count * passes / workers
    return needed


def _seconds_to(depth: int, rates: Mapping[tuple[int, int], float]) -> float | None:
    """Seconds per image from the images up to `depth`, by the cheapest way of which every part was measured."""
    ways = []
    for (start, stop), rate in rates.items():
        if stop == depth:
            below = 0.0 if start == IMAGES else _seconds_to(start, rates)
            ways += [] if below is None else [below + rate]
    return min(ways, default=None)
