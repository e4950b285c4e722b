"""`train.batch_size: auto`: the largest batch that fits, and no larger than the data or the rules allow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_spec

from tltrain.errors import OutOfMemoryError
from tltrain.spec.load import replace
from tltrain.spec.schema import Spec
from tltrain.train import batch_size
from tltrain.train.batch_size import Tried, find_batch_size, find_here, largest

CPU = torch.device("cpu")
MEGABYTE = 10**6


def spec_with(folder: Path, changes: dict[str, Any] | None = None) -> Spec:
    return tiny_spec(folder, {"train.batch_size": "auto", **(changes or {})}, name="auto")


@pytest.mark.parametrize(
    ("room", "most", "expected"),
    [
        (100, 64, 8),  # 8 take 80, 16 would take 160
        (160, 64, 16),
        (10_000, 64, 64),  # bounded by what is allowed
        (45, 64, 4),  # the last one tried does not fit
        (15, 64, 0),
    ],
)
def test_the_largest_power_of_two_that_fits_is_worked_out_from_those_tried(room: int, most: int, expected: int) -> None:
    tried = [Tried(2, 20), Tried(4, 40), Tried(8, 80)]
    assert largest(tried, room, most) == expected


def test_a_part_for_which_memory_ran_out_bounds_the_batch() -> None:
    assert largest([Tried(2, 20), Tried(4, 40), Tried(8, None)], 10_000, 64) == 4


def test_the_steepest_slope_counts_for_small_parts_may_take_what_was_free() -> None:
    assert largest([Tried(4, 0), Tried(8, 0), Tried(16, 160)], 640, 1024) == 32


def test_more_memory_per_image_means_fewer_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_size, "STEPS_OF_EPOCH", 1)
    monkeypatch.setattr(batch_size, "spare_bytes", lambda device: 10 * MEGABYTE)
    sizes = {}
    for per_image in (1, 2):
        monkeypatch.setattr(batch_size._Trainer, "peak", lambda self, images, each=per_image: images * each * MEGABYTE)
        found = find_batch_size(spec_with(tmp_path), CPU, num_workers=1, processes=1)
        assert found.limited_by == "memory"
        sizes[per_image] = found.batch_size
    assert sizes == {1: 8, 2: 4}


def test_workers_of_one_computer_share_its_memory_and_each_trains_its_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_size, "STEPS_OF_EPOCH", 1)
    monkeypatch.setattr(batch_size, "spare_bytes", lambda device: 10 * MEGABYTE)
    monkeypatch.setattr(batch_size._Trainer, "peak", lambda self, images: images * MEGABYTE)
    spec = spec_with(tmp_path, {"train.accumulation_steps": 2})
    found = find_batch_size(spec, CPU, num_workers=2, processes=2)
    assert (found.images_per_pass, found.batch_size) == (4, 4 * 2 * 2)


def test_an_epoch_keeps_ten_steps_however_much_memory_there_is(tmp_path: Path) -> None:
    spec = spec_with(tmp_path, {"resources.num_workers": 1})
    found = find_here(spec)
    assert found.limited_by == "images"
    assert found.batch_size == 4  # 77 images train: 8 would leave 9 steps


def test_where_no_part_fits_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_size._Trainer, "peak", lambda self, images: None)
    with pytest.raises(OutOfMemoryError, match="Freeze more stages"):
        find_batch_size(spec_with(tmp_path), CPU, num_workers=1, processes=1)


def test_trying_leaves_the_deepest_training_of_a_sweep_room(tmp_path: Path) -> None:
    sweep = {"space": {"model.freeze_depth": {"grid": ["all", 1]}, "optim.learning_rate": {"grid": [0.1, 0.01]}}}
    spec = spec_with(tmp_path, {"sweep": {**sweep, "search": "grid"}})
    trainer = batch_size._Trainer(spec, batch_size.check(spec)[1], CPU)
    assert trainer._depth == 1


def test_the_peak_of_a_part_is_what_it_allocates() -> None:
    held: list[torch.Tensor] = []

    def train() -> None:
        held.append(torch.ones(64 * MEGABYTE // 4))
        held.clear()

    assert 50 * MEGABYTE < batch_size._peak_of_process(train) < 200 * MEGABYTE


def test_auto_is_a_number_before_anything_counts_steps(tmp_path: Path) -> None:
    spec = spec_with(tmp_path)
    with pytest.raises(Exception, match="auto"):
        _ = spec.train.images_per_step
    assert replace(spec, {"train.batch_size": 8}).train.images_per_step == 8
