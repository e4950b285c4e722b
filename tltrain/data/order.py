"""Which samples stand in which batch on which rank: functions of (seed, epoch) and the world size alone."""

from __future__ import annotations

import hashlib
import struct

import numpy as np
import torch


def global_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order of an epoch, int64 [n]: the shuffle of torch's DistributedSampler."""
    generator = torch.Generator().manual_seed(seed + epoch)
    return torch.randperm(n, generator=generator).numpy()


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Return the number of global batches of n samples; the last one may be smaller."""
    return -(-n // batch_size)


def rank_positions(
    order: np.ndarray, step: int, batch_size: int, rank: int, world_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return one rank's share of a global batch: positions int64 [b], and weights float32 [b].

    Global batch k is order[k * batch_size : (k + 1) * batch_size], and rank r takes every world_size-th of it
    from r on, so that without padding each rank sees what DistributedSampler and DataLoader(batch_size /
    world_size) give. All ranks get the same b. Shorter ones are padded with samples from the start of the
    order, as DistributedSampler pads, but with weight 0. If the usual b is 2 or more, so is the last one:
    BatchNorm cannot train on one sample.
    """
    batch = order[step * batch_size : (step + 1) * batch_size]
    usual = -(-min(batch_size, len(order)) // world_size)
    count = max(-(-len(batch) // world_size), min(usual, 2))
    padding = np.resize(order, world_size * count - len(batch))
    positions = np.concatenate([batch, padding])[rank::world_size]
    weights = np.arange(world_size * count)[rank::world_size] < len(batch)
    return positions, weights.astype(np.float32)


def eval_positions(n: int, step: int, batch_size: int, rank: int, world_size: int) -> np.ndarray:
    """Return the positions that a rank evaluates in one step, int64 [b]: every world_size-th, unpadded."""
    local = -(-batch_size // world_size)
    start = step * local * world_size
    return np.arange(start + rank, min(start + local * world_size, n), world_size, dtype=np.int64)


def sample_seed(seed: int, position: int, epoch: int, purpose: int) -> int:
    """Return a well-mixed 64-bit seed of a sample in an epoch; `purpose` parts augmentation and mixing."""
    key = hashlib.blake2b(struct.pack("<4Q", seed, position, epoch, purpose), digest_size=8).digest()
    return int.from_bytes(key, "little")
