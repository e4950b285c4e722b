"""Arm D: one plain PyTorch loop over the grid, without Ray; the reference for every loss curve.

python benchmarks/sweep_arms/plain.py SPEC
"""

from __future__ import annotations

import sys

import torch

from .common import (
    FREEZE_DEPTH,
    LEARNING_RATE,
    Images,
    Row,
    Sweep,
    Values,
    build,
    decode_all,
    evaluate,
    freeze,
    make_optimizer,
    make_row,
    make_schedule,
    normalised,
    prepare,
    read_sweep,
    set_train_mode,
    train_batches,
    train_epoch,
    val_batches,
    write_table,
)


def train_trial(values: Values, sweep: Sweep, images: Images) -> list[Row]:
    """Train one trial from the pretrained weights and return its curve."""
    preprocessing = prepare(sweep)
    network = build(images.num_classes, sweep.seed).to(memory_format=torch.channels_last)
    frozen = freeze(network, values[FREEZE_DEPTH])
    optimizer = make_optimizer(network, values[LEARNING_RATE], sweep)
    schedule = make_schedule(optimizer, len(images.train_labels), sweep)
    curve = []
    for epoch in range(sweep.epochs):
        set_train_mode(network, frozen)
        batches = normalised(train_batches(images, sweep, epoch), preprocessing)
        train_loss = train_epoch(network, batches, schedule, seed=sweep.seed, epoch=epoch)
        network.eval()
        validation = evaluate(network, normalised(val_batches(images, sweep), preprocessing))
        curve.append(make_row(epoch + 1, train_loss, validation))
    return curve


def main() -> None:
    """Train the trials one after the other."""
    sweep = read_sweep(sys.argv[1])
    images = decode_all(sweep)
    write_table(sweep, [(values, train_trial(values, sweep, images)) for values in sweep.trials()])


if __name__ == "__main__":
    main()
