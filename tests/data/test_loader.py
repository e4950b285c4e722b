"""The loader: the same stream for any number of processes and ranks, and from the middle of an epoch."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_helpers import spec

from tltrain.data.decode import decode
from tltrain.data.decoded import DecodedImages, is_deterministic, plan_decoded_images
from tltrain.data.loader import Batch, eval_batches, resolve_loader_workers, train_batches
from tltrain.data.preprocessing import Preprocessing
from tltrain.data.sources import open_source
from tltrain.data.splits import Split, load_splits
from tltrain.data.transforms import evaluation_transform
from tltrain.errors import DataError

P = Preprocessing(20, 16)
MIXED = {"augment": "randaugment", "mixup": 0.4, "cutmix": 1.0}
Key = tuple[int, int]
Sample = tuple[bytes, int, int, float]


@pytest.fixture(scope="module")
def split(digit_parquet: Path) -> Split:
    """53 of the digits: with batches of 8 the last one has 5."""
    source = open_source(str(digit_parquet), spec(), split="train")
    return Split(source, np.arange(53), source.labels[:53])


def stream(split: Split, settings: dict[str, Any] | None = None, **arguments: Any) -> list[Batch]:
    defaults = {
        "seed": 7, "batch_size": 8, "rank": 0, "world_size": 1, "start_epoch": 0, "start_step": 0, "num_epochs": 2,
        "num_workers": 0, "pin_memory": False,
    }  # fmt: skip
    return list(train_batches(split, P, spec(**settings or {}), **{**defaults, **arguments}))


def samples(batches: Iterable[Batch]) -> dict[Key, Sample]:
    """Return what each sample looked like, by (epoch, id), without padding; each may come once."""
    result: dict[Key, Sample] = {}
    for batch in batches:
        for i in torch.nonzero(batch.weights)[:, 0].tolist():
            key = (batch.epoch, int(batch.ids[i]))
            assert key not in result
            mix = float(batch.mix[i])
            result[key] = (
                batch.images[i].numpy().tobytes(),
                int(batch.labels[i]),
                int(batch.partner_labels[i]),
                mix,
            )
    return result


def equal(first: Batch, second: Batch) -> bool:
    names = ("images", "labels", "partner_labels", "mix", "weights", "ids")
    same = all(torch.equal(getattr(first, name), getattr(second, name)) for name in names)
    return same and (first.epoch, first.step, first.count) == (second.epoch, second.step, second.count)


def all_equal(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("settings", [{}, {"augment": "basic"}, {"augment": "trivialaugment"}, MIXED])
def test_batches_do_not_depend_on_the_number_of_processes(split: Split, settings: dict[str, Any]) -> None:
    alone = stream(split, settings)
    assert all_equal(alone, stream(split, settings, num_workers=2))
    assert [(b.epoch, b.step, b.count) for b in alone[5:9]] == [(0, 5, 8), (0, 6, 5), (1, 0, 8), (1, 1, 8)]


def test_shapes_types_and_labels(split: Split) -> None:
    batch = stream(split)[0]
    assert (batch.images.shape, batch.images.dtype) == ((8, 3, 16, 16), torch.uint8)
    integers = (batch.labels, batch.partner_labels, batch.ids)
    assert all(t.dtype == torch.int64 and t.shape == (8,) for t in integers)
    assert batch.mix.tolist() == batch.weights.tolist() == [1.0] * 8
    assert batch.labels.tolist() == [split.labels[i] for i in batch.ids.tolist()]
    assert torch.equal(batch.labels, batch.partner_labels)
    assert batch.to("cpu").images.shape == batch.images.shape
    moved = batch.to("meta")
    assert [moved.images.device.type, moved.labels.device.type, moved.ids.device.type] == ["meta", "meta", "cpu"]


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("settings", [{}, MIXED])
def test_samples_do_not_depend_on_the_number_of_ranks(split: Split, settings: dict[str, Any], world_size: int) -> None:
    ranks = [stream(split, settings, rank=rank, world_size=world_size) for rank in range(world_size)]
    together = samples(batch for batches in ranks for batch in batches)
    assert together == samples(stream(split, settings))
    assert sorted(together) == [(epoch, i) for epoch in range(2) for i in range(53)]
    assert len({len(batches) for batches in ranks}) == 1


@pytest.mark.parametrize("start", [(0, 3), (0, 7), (1, 4)])
def test_resumed_stream_equals_the_rest_of_the_whole_one(split: Split, start: Key) -> None:
    whole = stream(split, MIXED)
    rest = [batch for batch in whole if (batch.epoch, batch.step) >= start]
    resumed = stream(split, MIXED, start_epoch=start[0], start_step=start[1], num_workers=1)
    assert all_equal(resumed, rest)


@pytest.mark.parametrize("settings", [{"augment": "basic"}, {"mixup": 1.0}, {"cutmix": 1.0}])
def test_augmentation_changes_with_epoch_and_seed(split: Split, settings: dict[str, Any]) -> None:
    first = samples(stream(split, settings))
    other = samples(stream(split, settings, seed=8))
    assert sum(first[0, i] == first[1, i] for i in range(53)) < 5
    assert sum(first[0, i] == other[0, i] for i in range(53)) < 5


def columns(image: bytes) -> list[bytes]:
    """Return the 256 pixels of a sample, three bytes each."""
    return [pixel.tobytes() for pixel in np.frombuffer(image, np.uint8).reshape(3, 256).T]


def test_mixing_takes_the_partner_as_it_looks_in_this_epoch(split: Split) -> None:
    plain = samples(stream(split, {"augment": "basic"}, start_epoch=1))
    mixed = samples(stream(split, {"augment": "basic", "cutmix": 1.0}, start_epoch=1))
    looks = {column for image, *_ in plain.values() for column in enumerate(columns(image))}
    assert all(column in looks for image, *_ in mixed.values() for column in enumerate(columns(image)))
    partners = {(label, partner) for _, label, partner, share in mixed.values() if share < 1}
    assert len(partners) > 3


@pytest.mark.parametrize("num_workers", [0, 2])
def test_global_generator_is_not_drawn_from(split: Split, num_workers: int) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    stream(split, MIXED, num_workers=num_workers, num_epochs=1)
    list(eval_batches(split, P, batch_size=8, rank=0, world_size=1, num_workers=num_workers, pin_memory=False))
    assert torch.equal(torch.get_rng_state(), before)


def test_one_set_of_processes_serves_all_epochs(split: Split) -> None:
    processes: set[int | None] = set()
    arguments: dict[str, Any] = {"seed": 0, "batch_size": 8, "rank": 0, "world_size": 1}
    arguments |= {"start_epoch": 0, "start_step": 0, "num_workers": 2, "pin_memory": False}
    for _ in train_batches(split, P, spec(), num_epochs=4, **arguments):
        processes |= {child.pid for child in multiprocessing.active_children()}
    assert len(processes) == 2


def test_processes_end_when_the_stream_is_left_early(split: Split) -> None:
    batches = eval_batches(split, P, batch_size=8, rank=0, world_size=1, num_workers=2, pin_memory=False)
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    del batches
    assert not multiprocessing.active_children()


def test_kept_batches_hold_one_open_file_each(split: Split) -> None:
    before = len(os.listdir("/proc/self/fd"))
    kept = stream(split, num_workers=1, num_epochs=4)
    assert len(os.listdir("/proc/self/fd")) - before <= len(kept) + 8


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_sees_each_image_once_in_order(split: Split, world_size: int, num_workers: int) -> None:
    transform = evaluation_transform(P)
    counts = {}
    seen: list[int] = []
    for rank in range(world_size):
        arguments = {"rank": rank, "world_size": world_size, "num_workers": num_workers, "pin_memory": False}
        batches = list(eval_batches(split, P, batch_size=12, **arguments))
        ids = [i for batch in batches for i in batch.ids.tolist()]
        assert ids == list(range(rank, 53, world_size))
        seen += ids
        counts.update({batch.step: batch.count for batch in batches})
        for batch in batches:
            expected = [transform(decode(split.read(i), "x")) for i in batch.ids.tolist()]
            assert torch.equal(batch.images, torch.stack(expected))
    assert sorted(seen) == list(range(53))
    assert sum(counts.values()) == 53


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_image_is_named_without_a_traceback(tmp_path: Path, digits: Any, num_workers: int) -> None:
    for i in range(8):
        (tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
        digits[i][0].save(tmp_path / "ab"[i % 2] / f"{i}.png")
    (tmp_path / "b" / "3.png").write_bytes(b"not an image")
    train = load_splits(spec(tmp_path), 0).train
    with pytest.raises(DataError) as caught:
        stream(train, batch_size=2, num_workers=num_workers)
    assert str(caught.value).startswith("b/3.png: cannot be decoded")
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_kept_images_equal_decoded_ones_and_are_decoded_once(
    split: Split, num_workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = plan_decoded_images(split, P)
    assert decoded is not None
    assert all_equal(stream(split, decoded=decoded, num_workers=num_workers), stream(split))
    assert decoded.filled.all()
    # From here on nothing can be read, so what comes is what was kept.
    monkeypatch.setattr(type(split.source), "read", None)
    assert len(stream(split, decoded=decoded, num_workers=num_workers)) == 14
    list(
        eval_batches(
            split,
            P,
            batch_size=8,
            rank=0,
            world_size=1,
            num_workers=num_workers,
            pin_memory=False,
            decoded=decoded,
        )
    )


def test_images_are_kept_only_where_they_fit_and_do_not_change(split: Split, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    assert plan_decoded_images(split, P, budget_bytes=53 * 3 * 256 - 1) is None
    assert "decoded in every epoch" in caplog.text
    assert isinstance(plan_decoded_images(split, P, budget_bytes=53 * 3 * 256), DecodedImages)
    assert is_deterministic(spec())
    assert not any(is_deterministic(spec(**s)) for s in ({"augment": "basic"}, {"mixup": 0.1}, {"cutmix": 1.0}))


@pytest.mark.slow
def test_source_that_may_not_be_forked_is_read_in_fresh_processes(
    split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = stream(split, num_epochs=1)
    monkeypatch.setattr(split.source, "fork_safe", False)
    assert all_equal(stream(split, num_epochs=1, num_workers=1), expected)


PROGRAM = """
import os
from pathlib import Path

class Parents(list):
    def __getitem__(self, _):
        return "libtorch" in Path(f"/proc/{os.getppid()}/maps").read_text()

if __name__ == "__main__":
    from tltrain.data.loader_processes import loaded
    print(*loaded(Parents(), [0, 0], False, seed=0, num_workers=2, pin_memory=False))
"""


def test_fresh_processes_come_from_one_that_has_imported_torch(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    ended = subprocess.run([sys.executable, tmp_path / "program.py"], capture_output=True, text=True, check=False)
    assert ended.stdout == "True True\n", ended.stderr


def test_auto_takes_a_share_of_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)))
    assert resolve_loader_workers(3, cpus_per_worker=1) == 3
    assert resolve_loader_workers(0, cpus_per_worker=1) == 0
    assert resolve_loader_workers("auto", local_world_size=4) == 3
    assert resolve_loader_workers("auto", local_world_size=1) == 8
    assert resolve_loader_workers("auto", local_world_size=16) == 1
    assert resolve_loader_workers("auto", cpus_per_worker=6, local_world_size=16) == 5
