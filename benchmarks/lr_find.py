"""How long does a range test of 20 rates at 3 freeze depths take beside one rate at one depth trained the plain way?

    python benchmarks/lr_find.py

On jobs/fashion-lite0.yaml, in one process, taken in turn: the range test as `tltrain lr-find` runs it, and one training
of the spec's own rate and depth for its own epochs, with nothing kept between epochs. Both times go from the data and
the weights to the last step; neither has imports, nor a test set. Printed: seconds of each, their ratio, and the rates.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch

from tltrain.spec.load import load_spec, replace
from tltrain.spec.schema import Spec
from tltrain.train.distributed import Group
from tltrain.train.lr_find import find_here, rates_between
from tltrain.train.rate_choice import RangeTest
from tltrain.train.session import configure_torch
from tltrain.train.workbench import Workbench

SPEC = Path(__file__).resolve().parents[1] / "jobs" / "fashion-lite0.yaml"
DEPTHS = ("all", "block6", "block5")


def train_plainly(spec: Spec) -> float:
    """Return the seconds of one training with its validation; decoded images are kept, taps are not."""
    spec = replace(spec, {"cache.budget_gb": 0.0, "resources.num_workers": 1, "data.test": None})
    began = time.perf_counter()
    configure_torch(spec)
    bench = Workbench(spec, None, Group(0, 1, 0, 1, torch.device("cpu")), passes=1)
    lane = bench.make_lane("plain", spec)
    for epoch in range(spec.train.epochs):
        batches = bench.epoch_batches(epoch, 0, {lane.depth}, num_epochs=spec.train.epochs)
        bench.cohort.train_epoch([lane], epoch, batches, bench.kept_in(epoch), lambda _: None)
        bench.cohort.end_epoch([lane], epoch, bench.validation)
    bench.close()
    return time.perf_counter() - began


def try_rates(spec: Spec, steps: int) -> RangeTest:
    """Return the range test of all rates at all depths."""
    return find_here(spec, rates_between(1e-5, 1.0, 20), DEPTHS, steps=steps, tell=lambda _: None)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Time a range test beside one training.")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--steps", type=int, default=16)
    options = parser.parse_args()
    spec = load_spec(SPEC, []).spec
    train_plainly(replace(spec, {"train.epochs": 1}))  # warms up
    plain_s, tests = [], list[RangeTest]()
    for _ in range(options.repetitions):
        plain_s.append(train_plainly(spec))
        tests.append(try_rates(spec, options.steps))
        ratio = tests[-1].seconds / plain_s[-1]
        print(f"plain {plain_s[-1]:.2f} s, 60 lanes {tests[-1].seconds:.2f} s, ratio {ratio:.2f}", flush=True)
    ratio = statistics.median(test.seconds / plain for test, plain in zip(tests, plain_s, strict=True))
    print(f"median ratio {ratio:.2f}, {options.steps} steps, {torch.get_num_threads()} threads")
    for depth in tests[-1].depths:
        taken = depth.suggestion
        print(f"freeze_depth {depth.freeze_depth}: {taken.learning_rate}, {taken.reason}")


if __name__ == "__main__":
    sys.exit(main())
