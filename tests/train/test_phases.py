"""Seconds per phase, and what worker groups measured taken together."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch

from tltrain.data.loader import Batch
from tltrain.train.measured import LaneEpochs, group_record, merged
from tltrain.train.phases import Phases, add_seconds


def batch(images: int) -> Batch:
    numbers = torch.zeros(images)
    return Batch(torch.zeros(images, 3, 1, 1), numbers, numbers, numbers, numbers, numbers, 0, 0, images)


def test_every_moment_counts_once_and_to_the_innermost_phase() -> None:
    phases, began = Phases(torch.device("cpu")), time.perf_counter()
    with phases("validation"):
        time.sleep(0.02)
        with phases("prefix"):
            time.sleep(0.2)
        time.sleep(0.02)
    seconds, total = phases.seconds(), time.perf_counter() - began

    assert seconds["prefix"] >= 0.2
    assert 0.04 <= seconds["validation"] <= total - 0.2 + 0.001  # seconds are rounded to thousandths
    assert sum(seconds.values()) == pytest.approx(total, abs=0.1)


def test_a_phase_ends_with_an_error_in_it() -> None:
    phases = Phases(torch.device("cpu"))
    with pytest.raises(KeyError), phases("lanes"):
        raise KeyError
    time.sleep(0.02)

    assert phases.seconds()["other"] >= 0.02


def test_waiting_for_a_batch_counts_and_using_it_does_not() -> None:
    def slow() -> Iterator[Batch]:
        for images in (3, 2):
            time.sleep(0.03)
            yield batch(images)

    phases = Phases(torch.device("cpu"))
    for _ in phases.images(slow()):
        time.sleep(0.4)

    assert phases.num_decoded == 5
    assert 0.06 <= phases.seconds()["decode"] < 0.8


@pytest.mark.gpu
def test_on_a_gpu_the_time_is_that_of_its_work() -> None:
    device = torch.device("cuda")
    phases, values = Phases(device), torch.rand(4096, 4096, device=device)
    torch.cuda.synchronize()
    began = time.perf_counter()
    with phases("lanes"):
        for _ in range(50):
            values = values @ values / 4096
    asked_s = time.perf_counter() - began
    with phases("prefix"):
        pass
    seconds = phases.seconds()

    assert seconds["lanes"] > asked_s
    assert seconds["prefix"] < seconds["lanes"] / 10


def test_seconds_of_attempts_are_added() -> None:
    assert add_seconds({"a": 1.0, "b": 2.0}, {"b": 0.5}, {}) == {"a": 1.0, "b": 2.5}


def test_groups_on_the_same_images_are_one_bench() -> None:
    first, second = LaneEpochs(), LaneEpochs()
    for lanes, names in ((first, ("t0", "t1")), (second, ("t1",))):
        for name in names:
            lanes.add(name, 7)
    shared = {"images": {"train": 4, "val": 0}, "views": 1, "stages": ["a"]}
    one = {"kept": {"train": [7], "val": []}, "decoded": 3, "decode_s": 0.5, "computed": [[-1, 7, 1.0, 3]]}
    other = {"kept": {"train": [], "val": [7]}, "decoded": 1, "decode_s": 0.25, "computed": [[-1, 7, 0.5, 1]]}
    groups = [
        group_record({"key": {**shared, **one, "lanes": first.to_dict()}}, [{"decode": 0.5}], 1),
        {},
        group_record({"key": {**shared, **other, "lanes": second.to_dict()}}, [{"decode": 0.25}], 1),
    ]

    together = merged(groups)

    bench = together["benches"]["key"]
    assert together["seconds"] == {"decode": 0.75}
    assert bench["lanes"] == {"t0": {"7": 1}, "t1": {"7": 2}}
    assert (bench["decoded"], bench["decode_s"], bench["computed"]) == (4, 0.75, [[-1, 7, 1.5, 4]])
    assert bench["kept"] == {"train": [7], "val": [7]}
