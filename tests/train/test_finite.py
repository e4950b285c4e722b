"""Losses that are no finite numbers: the first step that has one is found, and its images are named."""

from __future__ import annotations

import pytest
import ranks
import torch

from tltrain.data.loader import Batch
from tltrain.train.distributed import Group
from tltrain.train.finite import LossLog, diverged

ALONE = Group(rank=0, world_size=1, local_rank=0, local_world_size=1, device=torch.device("cpu"))
NAN, INF = float("nan"), float("inf")


def batch(ids: list[int], weights: list[float] | None = None) -> Batch:
    count = len(ids)
    nothing = torch.zeros(count, dtype=torch.int64)
    real = torch.tensor(weights or [1.0] * count)
    images = torch.zeros(count, 3, 8, 8, dtype=torch.uint8)
    return Batch(images, nothing, nothing, torch.ones(count), real, torch.tensor(ids), 0, 0, count)


def test_the_first_bad_step_and_its_images_are_found_once() -> None:
    log = LossLog()
    log.add(0, torch.tensor([0.1, 0.2]), batch([7, 3]))
    log.add(1, torch.tensor([0.1, INF, NAN]), batch([5, 9, 4]))
    log.add(2, torch.tensor([NAN, NAN]), batch([1, 2]))
    assert log.take_bad(ALONE) == (1, [4, 9])
    assert log.take_bad(ALONE) is None


def test_losses_whose_sum_is_not_finite_are_bad_too() -> None:
    log = LossLog()
    log.add(0, torch.tensor([3e38, 0.1, 3e38]), batch([7, 3, 5]))
    assert log.take_bad(ALONE) == (0, [5, 7])


def test_padding_does_not_count() -> None:
    log = LossLog()
    log.add(0, torch.tensor([0.1, NAN]), batch([7, 7], weights=[1.0, 0.0]))
    assert log.take_bad(ALONE) is None


def bad_on_one_rank(group: Group) -> tuple[int, list[int]] | None:
    log = LossLog()
    for step in range(3):
        is_bad = (step, group.rank) in ((1, 1), (2, 0))
        log.add(step, torch.tensor([NAN if is_bad else 0.1, 0.2]), batch([10 * group.rank + step, 99]))
    return log.take_bad(group)


def test_all_ranks_learn_of_the_earliest_on_any() -> None:
    assert ranks.run(2, bad_on_one_rank) == [(1, [11]), (1, [11])]


@pytest.mark.parametrize(("count", "ending"), [(2, "0.png, 1.png"), (13, "9.png and 3 more")])
def test_the_error_names_step_rate_and_images(count: int, ending: str) -> None:
    text = str(diverged("lane-0", 4, 0.5, [f"{number}.png" for number in range(count)]))
    assert "the loss of lane-0 is not finite at step 5 (learning rate 0.5), for 0.png, 1.png" in text
    assert f"{ending}. Lower optim.learning_rate" in text
