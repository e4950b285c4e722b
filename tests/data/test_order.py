"""The order of samples: torch's own sampler is the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler

from tltrain.data.order import eval_positions, global_order, rank_positions, sample_seed, steps_per_epoch


def torch_batches(n: int, seed: int, epoch: int, batch_size: int, rank: int, world_size: int) -> list[list[int]]:
    """Return one rank's batches as DistributedSampler and DataLoader make them."""
    dataset = torch.arange(n)
    sampler = DistributedSampler(dataset, world_size, rank, shuffle=True, seed=seed)  # pyright: ignore[reportArgumentType]
    sampler.set_epoch(epoch)
    loader = DataLoader(dataset, batch_size=batch_size // world_size, sampler=sampler)  # pyright: ignore[reportArgumentType]
    return [batch.tolist() for batch in loader]


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("n", [64, 61, 50, 7])
def test_batches_equal_distributed_sampler_and_data_loader(n: int, world_size: int) -> None:
    seed, epoch, batch_size = 3, 5, 8
    order = global_order(n, seed, epoch)
    for rank in range(world_size):
        expected = torch_batches(n, seed, epoch, batch_size, rank, world_size)
        ours = [rank_positions(order, k, batch_size, rank, world_size)[0].tolist() for k in range(len(expected))]
        assert len(expected) == steps_per_epoch(n, batch_size)
        # The last batch may be longer than torch's, with padding, so that BatchNorm can train on it.
        assert ours[:-1] == expected[:-1]
        assert ours[-1][: len(expected[-1])] == expected[-1]
        assert len(ours[-1]) == max(len(expected[-1]), 2)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("batch_size", [1, 4, 6, 10, 100])
@pytest.mark.parametrize("n", [1, 2, 13, 40])
def test_each_sample_counts_once_and_ranks_are_equally_long(n: int, batch_size: int, world_size: int) -> None:
    order = global_order(n, 0, 0)
    seen: list[int] = []
    for step in range(steps_per_epoch(n, batch_size)):
        parts = [rank_positions(order, step, batch_size, rank, world_size) for rank in range(world_size)]
        assert len({len(positions) for positions, _ in parts}) == 1
        assert all(len(weights) == len(positions) and weights.dtype == np.float32 for positions, weights in parts)
        usual = -(-min(batch_size, n) // world_size)
        assert len(parts[0][0]) >= min(usual, 2)
        seen += [p for positions, weights in parts for p, w in zip(positions, weights, strict=True) if w]
    assert sorted(seen) == list(range(n))


def test_last_batch_has_two_samples_per_rank_unless_one_is_usual() -> None:
    order = global_order(9, 0, 0)
    positions, weights = rank_positions(order, 1, 8, 0, 1)
    assert positions.tolist() == [order[8], order[0]]
    assert weights.tolist() == [1, 0]
    assert len(rank_positions(order, 8, 1, 0, 1)[0]) == 1


@pytest.mark.parametrize("world_size", [1, 2, 4, 5])
@pytest.mark.parametrize("n", [3, 10, 17])
def test_evaluation_takes_each_sample_once(n: int, world_size: int) -> None:
    parts = [eval_positions(n, step, 4, rank, world_size) for rank in range(world_size) for step in range(n)]
    assert sorted(np.concatenate(parts).tolist()) == list(range(n))
    rank_1 = [eval_positions(n, step, 4, 1 % world_size, world_size) for step in range(n)]
    assert np.concatenate(rank_1).tolist() == list(range(1 % world_size, n, world_size))


def test_sample_seeds_do_not_collide() -> None:
    seeds = {
        sample_seed(s, position, epoch, purpose)
        for s in (0, 1) for position in range(100) for epoch in range(10) for purpose in (0, 1)
    }  # fmt: skip
    assert len({seed % 2**32 for seed in seeds}) == len(seeds) == 4000
