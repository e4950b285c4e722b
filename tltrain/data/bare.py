"""Batches without images, for epochs in which everything that is needed of the images is kept already."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from tltrain.data.base import Split
from tltrain.data.loader import Batch
from tltrain.data.order import eval_positions, global_order, rank_positions, steps_per_epoch

NO_IMAGES = torch.empty(0, 3, 0, 0, dtype=torch.uint8)


def bare_train_batches(
    split: Split, *, seed: int, batch_size: int, rank: int, world_size: int, epoch: int, start_step: int
) -> Iterator[Batch]:
    """Yield the batches of one epoch that `train_batches` yields without augmentation, with empty `images`."""
    n = len(split)
    order = global_order(n, seed, epoch)
    for step in range(start_step, steps_per_epoch(n, batch_size)):
        positions, weights = rank_positions(order, step, batch_size, rank, world_size)
        yield _batch(split, positions, weights, epoch, step, min(batch_size, n - step * batch_size))


def bare_eval_batches(split: Split, *, batch_size: int, rank: int, world_size: int) -> Iterator[Batch]:
    """Yield the batches that `eval_batches` yields, with empty `images`."""
    n = len(split)
    per_step = -(-batch_size // world_size) * world_size
    for step in range(steps_per_epoch(n, per_step)):
        positions = eval_positions(n, step, batch_size, rank, world_size)
        if len(positions):
            weights = np.ones(len(positions), dtype=np.float32)
            yield _batch(split, positions, weights, 0, step, min(per_step, n - step * per_step))


def _batch(split: Split, positions: np.ndarray, weights: np.ndarray, epoch: int, step: int, count: int) -> Batch:
    labels = torch.from_numpy(split.labels[positions])
    mix = torch.ones(len(positions))
    return Batch(
        NO_IMAGES, labels, labels, mix, torch.from_numpy(weights), torch.from_numpy(positions), epoch, step, count
    )
