"""Measures what the parts of a trial cost on one core, and how fast a sweep can be at best.

python benchmarks/sweep_arms/rates.py SPEC      # one line of JSON; as many copies at once as there are cores
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from tltrain.data.decode import decode
from tltrain.data.transforms import evaluation_transform

from .common import (
    FREEZE_DEPTH,
    LEARNING_RATE,
    Sweep,
    build,
    evaluate,
    freeze,
    make_optimizer,
    make_schedule,
    normalised,
    open_data,
    prepare,
    read_sweep,
    stages,
    train_epoch,
)

NUM_DECODED, NUM_STEPS, NUM_ROUNDS = 300, 4, 5


@dataclass(frozen=True)
class Rates:
    """Seconds per image on one core."""

    decode: float
    prefix: dict[str, float]
    """By freeze depth: the frozen stages forward."""
    train: dict[str, float]
    """By freeze depth: forward, backward and optimiser step of the trained stages."""
    validate: dict[str, float]
    """By freeze depth: the trained stages forward."""


def shared_bound(sweep: Sweep, rates: Rates, num_train: int, num_val: int, num_cores: int) -> float:
    """Return the seconds of a sweep that does all shared work once, on all cores, without any start-up."""
    once = max(rates.prefix[str(depth)] for depth in sweep.space[FREEZE_DEPTH]) + rates.decode
    epochs = _epochs(sweep, rates, num_train, num_val, frozen=False)
    return (once * (num_train + num_val) + epochs) / num_cores


def alone_bound(sweep: Sweep, rates: Rates, num_train: int, num_val: int, num_cores: int) -> float:
    """Return the seconds of a sweep that shares nothing but decoded images, without any start-up."""
    epochs = _epochs(sweep, rates, num_train, num_val, frozen=True)
    return (rates.decode * (num_train + num_val) + epochs) / num_cores


def _epochs(sweep: Sweep, rates: Rates, num_train: int, num_val: int, *, frozen: bool) -> float:
    total = 0.0
    for trial in sweep.trials():
        depth = str(trial[FREEZE_DEPTH])
        prefix = rates.prefix[depth] if frozen else 0.0
        total += num_train * (prefix + rates.train[depth]) + num_val * (prefix + rates.validate[depth])
    return total * sweep.epochs


def average(measured: list[Rates]) -> Rates:
    """Return the mean of what several cores measured at the same time."""

    def mean(name: str) -> dict[str, float]:
        return {
            depth: statistics.mean(getattr(rates, name)[depth] for rates in measured)
            for depth in getattr(measured[0], name)
        }

    decoding = statistics.mean(rates.decode for rates in measured)
    return Rates(decoding, mean("prefix"), mean("train"), mean("validate"))


def _per_image(work: Callable[[], object], num_images: int) -> float:
    """Return the seconds per image of the fastest of a few rounds: a bound should not contain disturbances."""
    work()
    rounds = []
    for _ in range(NUM_ROUNDS):
        started = time.perf_counter()
        work()
        rounds.append(time.perf_counter() - started)
    return min(rounds) / num_images


def measure(sweep: Sweep) -> Rates:
    """Measure every freeze depth of the grid."""
    split, _, num_classes = open_data(sweep)
    transform = evaluation_transform(prepare(sweep))

    def read() -> list[Tensor]:
        return [transform(decode(split.read(i), "")) for i in range(min(NUM_DECODED, len(split)))]

    images, size = read(), sweep.batch_size
    chosen = list(itertools.islice(itertools.cycle(range(len(images))), NUM_STEPS * size))
    raw = [
        (torch.stack([images[i] for i in part]), torch.from_numpy(split.labels[part]))
        for part in (chosen[start : start + size] for start in range(0, len(chosen), size))
    ]
    batches = list(normalised(raw, prepare(sweep)))
    depths = {str(depth): _measure_depth(depth, batches, sweep, num_classes) for depth in sweep.space[FREEZE_DEPTH]}
    prefix, train, validate = ({depth: costs[i] for depth, costs in depths.items()} for i in range(3))
    return Rates(_per_image(read, len(images)), prefix, train, validate)


def _measure_depth(
    depth: int | str, batches: list[tuple[Tensor, Tensor]], sweep: Sweep, num_classes: int
) -> tuple[float, float, float]:
    """Return the seconds per image of the frozen stages, of training and of validating the others."""
    network = build(num_classes, sweep.seed).to(memory_format=torch.channels_last)
    frozen = freeze(network, depth)
    prefix = nn.Sequential(*frozen).eval()
    suffix = nn.Sequential(*stages(network)[len(frozen) :])
    count = sum(len(labels) for _, labels in batches)

    @torch.no_grad()
    def run_prefix() -> list[tuple[Tensor, Tensor]]:
        return [(prefix(images), labels) for images, labels in batches]

    taps = run_prefix()
    schedule = make_schedule(make_optimizer(network, min(sweep.space[LEARNING_RATE]), sweep), count, sweep)

    def run_training() -> None:
        suffix.train()
        train_epoch(suffix, taps, schedule, seed=0, epoch=0)

    training = _per_image(run_training, count)
    suffix.eval()
    return _per_image(run_prefix, count), training, _per_image(lambda: evaluate(suffix, taps), count)


def main() -> None:
    """Print what this core measures."""
    torch.set_num_threads(1)
    print(json.dumps(asdict(measure(read_sweep(Path(sys.argv[1]))))))


if __name__ == "__main__":
    main()
