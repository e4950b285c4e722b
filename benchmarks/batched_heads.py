"""Would one batched product for all head-only lanes pay? Times and errors beside the lanes as they are, taken in turn.

    python benchmarks/batched_heads.py

Sixteen heads with learning rates of their own train on the same taps (the shipped images through EfficientNet-Lite0 at
64 px), once as lanes and once as one matrix product with plain SGD. Printed: seconds per epoch of each, the largest
relative difference of a mean loss per epoch, and whether a head in the product equals the same head in a smaller one.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import torch
from sweep_arms.common import LEARNING_RATE
from torch import Tensor
from torch.nn import functional

from tltrain.data.order import global_order
from tltrain.run_folder import RunFolder
from tltrain.spec.load import load_spec
from tltrain.spec.schema import Spec
from tltrain.spec.space import apply, propose
from tltrain.train.distributed import Group
from tltrain.train.lane_group import LaneGroup
from tltrain.train.optim import schedule_factor

SPEC = Path(__file__).resolve().parent / "specs" / "head.yaml"
EPOCHS = 5


def train_lanes(spec: Spec, folder: str) -> tuple[list[float], list[list[float]], Tensor, Tensor, Tensor]:
    """Return seconds and losses [epochs][lanes], the taps [n, D], the labels [n] and the first head's weights."""
    group = Group(0, 1, 0, 1, torch.device("cpu"))
    lanes = LaneGroup(spec, RunFolder.at(folder, "sweep"), group, index=0, passes=2 * spec.train.epochs)
    trials = propose(spec)
    for trial in trials:
        lanes.add(trial.name, apply(spec, trial), None)
    member = lanes._members[trials[0].name]
    weight = torch.cat([p.detach().clone().reshape(p.shape[0], -1) for p in member.lane.suffix.parameters()], 1)
    seconds, losses = [], []
    for epoch in range(EPOCHS):
        began = time.perf_counter()
        rows, _ = lanes.train_epoch([trial.name for trial in trials], epoch)
        seconds.append(time.perf_counter() - began)
        losses.append([row["train_loss"] for row in rows])
    (array,) = member.bench.kept_in(0).arrays().values()
    labels = torch.from_numpy(member.bench.splits.train.labels)
    return seconds, losses, array.read(torch.arange(len(labels))), labels, weight


def train_product(
    spec: Spec, rates: list[float], taps: Tensor, labels: Tensor, weight: Tensor
) -> tuple[list[float], list[list[float]]]:
    """Train all heads with one product per step; return seconds and losses [epochs][heads]."""
    count, size = len(rates), spec.train.images_per_step
    heads = weight.expand(count, *weight.shape).clone()  # [L, C, D + 1], the bias last
    velocity, steps = torch.zeros_like(heads), -(-len(labels) // size)
    inputs = torch.cat([taps, torch.ones(len(taps), 1)], 1)
    rate = torch.tensor(rates)[:, None, None]
    seconds, losses = [], []
    for epoch in range(EPOCHS):
        began, total = time.perf_counter(), torch.zeros(count, dtype=torch.float64)
        order = torch.from_numpy(global_order(len(labels), spec.seed, epoch))
        for step, positions in enumerate(order.split(size)):
            x, y = inputs[positions], labels[positions]
            logits = (x @ heads.flatten(0, 1).T).view(len(x), count, -1)
            total += functional.cross_entropy(
                logits.permute(0, 2, 1), y[:, None].expand(-1, count), reduction="none"
            ).sum(0)
            gradient = (logits.softmax(2) - functional.one_hot(y, heads.shape[1])[:, None]) / len(x)
            gradient = (gradient.flatten(1).T @ x).view_as(heads)
            velocity = gradient if epoch == step == 0 else velocity * spec.optim.momentum + gradient
            factor = schedule_factor(
                epoch * steps + step, spec.optim, total_steps=steps * spec.train.epochs, steps_per_epoch=steps
            )
            heads = heads - rate * factor * velocity
        seconds.append(time.perf_counter() - began)
        losses.append((total / len(labels)).tolist())
    return seconds, losses


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        spec = load_spec(SPEC, [f"storage={folder}"]).spec
        rates = [trial.values[LEARNING_RATE] for trial in propose(spec)]
        lane_s, lane_losses, taps, labels, weight = train_lanes(spec, folder)
    product_s, product_losses = train_product(spec, rates, taps, labels, weight)
    _, few_losses = train_product(spec, rates[:2], taps, labels, weight)
    pairs = [
        (a, b)
        for ours, theirs in zip(lane_losses, product_losses, strict=True)
        for a, b in zip(ours, theirs, strict=True)
    ]
    largest = max(abs(a - b) / abs(a) for a, b in pairs)
    same = all(few == many[:2] for few, many in zip(few_losses, product_losses, strict=True))
    print(f"lanes in turn   {min(lane_s[1:]):.3f} s per epoch of {len(rates)} lanes, validation included")
    print(f"one product     {min(product_s[1:]):.3f} s per epoch of {len(rates)} heads, without validation")
    print(f"largest relative difference of a loss: {largest:.1e}")
    print(f"a head among {len(rates)} equals the same head among 2 to the bit: {same}")


if __name__ == "__main__":
    sys.exit(main())
