"""The activation store: what is read is what was written, whoever wrote it and however that ended."""

from __future__ import annotations

import logging
import os
import signal
import stat
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ranks
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from torch import Tensor

from tltrain.train import tap_arrays, tap_rates
from tltrain.train.activations import ActivationStore, TapKey, device_kind
from tltrain.train.distributed import Group
from tltrain.train.tap_arrays import TapArray
from tltrain.train.tap_files import Layout, file_bytes
from tltrain.train.tap_rates import measure_tiers, spare_memory_bytes

CPU = torch.device("cpu")
NUM_IMAGES = 20
MIB = 2**20
KEY = TapKey(
    weights="0" * 64,
    cut="layer3",
    depth=4,
    preprocessing={"crop_size": 64, "mean": (0.5, 0.5, 0.5)},
    data="f" * 64,
    split="train",
    dtype="float32",
    precision="fp32",
    channels_last=True,
    batch_size=8,
    device=device_kind(CPU),
)


def taps_of(shape: tuple[int, ...] = (6, 2, 3), dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Random values for all images."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((NUM_IMAGES, *shape), generator=generator).to(dtype)


def is_same(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors agree in bits, also in those of a NaN, and in how they lie in memory."""
    bits = [value.contiguous().view(torch.uint8) for value in (left, right)]
    return left.dtype == right.dtype and left.stride() == right.stride() and torch.equal(*bits)


def opened(store: ActivationStore, tap: Tensor, key: TapKey = KEY) -> TapArray:
    array = store.open(key, NUM_IMAGES, Layout.of(tap))
    assert array is not None
    return array


def kept(store: ActivationStore, tap: Tensor, key: TapKey = KEY) -> TapArray:
    """Keep `tap` of all images."""
    array = opened(store, tap, key)
    array.write(torch.arange(NUM_IMAGES), tap)
    array.commit()
    array.wait()
    return array


@pytest.fixture(params=["memory", "files"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ActivationStore:
    return ActivationStore(tmp_path / "taps" if request.param == "files" else None, 64 * MIB)


@pytest.fixture
def files(tmp_path: Path) -> ActivationStore:
    return ActivationStore(tmp_path / "taps", 64 * MIB)


LAYOUTS = {
    "pooled": taps_of((7,)),
    "images": taps_of(),
    "channels_last": taps_of().contiguous(memory_format=torch.channels_last),
    "channels_last of one pixel": taps_of((6, 1, 1)).contiguous(memory_format=torch.channels_last),
    "tokens": taps_of((5, 4)).transpose(1, 2),
    "bfloat16": taps_of(dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last),
    "float16": taps_of(dtype=torch.float16),
    "float64": taps_of(dtype=torch.float64),
    "uint8": taps_of(dtype=torch.uint8),
    "bool": taps_of(dtype=torch.bool),
    "special values": torch.tensor([-0.0, float("nan"), float("inf"), 1e-45]).expand(NUM_IMAGES, 4).clone(),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_is_read_is_what_was_written_to_the_bit_and_in_its_layout(
    store: ActivationStore, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    tap = LAYOUTS[name]
    array = opened(store, tap)
    order = torch.randperm(NUM_IMAGES, generator=torch.Generator().manual_seed(1))
    for ids in order.split(8):
        assert not array.has(ids)
        array.write(ids, torch.empty_like(tap[: len(ids)]).copy_(tap[ids]))

    ids = torch.tensor([3, 19, 0, 3])
    assert array.is_complete()
    assert array.has(ids)
    assert is_same(array.read(ids), torch.empty_like(tap[:4]).copy_(tap[ids]))
    assert array.read(torch.tensor([], dtype=torch.int64)).shape == (0, *tap.shape[1:])
    assert not caplog.records, "a tap that is not there yet is nothing to warn of"


@settings(deadline=None, max_examples=40)
@given(st_numpy.array_shapes(min_dims=2, max_dims=5, max_side=4), st.data())
def test_layout_unpacks_what_it_packed_whatever_the_strides(shape: tuple[int, ...], data: st.DataObject) -> None:
    axes = data.draw(st.permutations(range(1, len(shape))))
    tap = torch.arange(float(np.prod(shape))).view(shape).permute(0, *axes)
    stepped = data.draw(st.sampled_from([tap, tap[:, ::2], tap[:, :1].expand(tap.shape)]))
    layout = Layout.of(stepped)

    rows = layout.pack(stepped)

    assert rows.shape == (len(stepped), layout.numel)
    assert torch.equal(layout.unpack(rows), stepped)
    assert torch.equal(layout.unpack(rows.clone()), stepped)


def test_read_gives_a_copy(store: ActivationStore) -> None:
    tap = taps_of()
    array = kept(store, tap)
    array.read(torch.arange(4)).zero_()

    assert is_same(array.read(torch.arange(4)), tap[:4])


def test_what_is_there_stays_when_it_is_written_again(store: ActivationStore) -> None:
    tap = taps_of()
    array = opened(store, tap)
    array.write(torch.arange(3), tap[:3])
    array.write(torch.arange(6), torch.cat([torch.zeros_like(tap[:3]), tap[3:6]]))

    assert is_same(array.read(torch.arange(6)), tap[:6])


def test_reading_what_is_not_there_is_our_own_mistake(store: ActivationStore) -> None:
    array = opened(store, taps_of())
    with pytest.raises(AssertionError):
        array.read(torch.tensor([0]))


def test_array_is_found_again_and_only_under_its_own_key(store: ActivationStore) -> None:
    tap = taps_of()
    assert store.find(KEY, NUM_IMAGES) is None
    kept(store, tap).close()

    found = store.find(KEY, NUM_IMAGES)

    assert found is not None
    assert found.is_complete()
    assert is_same(found.read(torch.arange(NUM_IMAGES)), tap)
    changes: list[dict[str, Any]] = [
        {"weights": "1"}, {"depth": 3}, {"preprocessing": {"crop_size": 32}}, {"split": "val"}, {"batch_size": 4},
        {"precision": "bf16"}, {"channels_last": False}, {"torch": "2.0"}, {"device": "cuda A100"}, {"data": "e"},
    ]  # fmt: skip
    for change in changes:
        assert store.find(replace(KEY, **change), NUM_IMAGES) is None


def test_file_is_an_arrow_file_that_others_can_read(files: ActivationStore) -> None:
    tap = taps_of().contiguous(memory_format=torch.channels_last)
    array = kept(files, tap)
    assert files.directory is not None

    (path,) = files.directory.glob("*.arrow")
    with pa.memory_map(os.fspath(path)) as source:
        table = pa.ipc.open_file(source).read_all()
        values = table.column("tap").combine_chunks().to_numpy_ndarray()
        assert np.array_equal(values, tap.permute(0, 2, 3, 1).numpy())
        assert min(table.column("check").to_pylist()) >= 2**32
        del table, values
    assert path.stat().st_size <= file_bytes(NUM_IMAGES, array.layout)


def test_files_are_private_from_the_start(files: ActivationStore) -> None:
    before = os.umask(0)
    try:
        opened(files, taps_of())
    finally:
        os.umask(before)
    assert files.directory is not None
    assert stat.S_IMODE(files.directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in files.directory.iterdir()} == {0o600}


def names(files: ActivationStore) -> set[str]:
    assert files.directory is not None
    return {path.name.removeprefix(KEY.digest()) for path in files.directory.iterdir()} - {".lock"}


def test_only_a_complete_file_gets_its_final_name(files: ActivationStore) -> None:
    tap = taps_of()
    array = opened(files, tap)
    for ids in torch.arange(NUM_IMAGES).split(15):
        array.commit()
        array.wait()
        assert names(files) == {".arrow.partial"}
        array.write(ids, tap[ids])
    array.commit()
    array.wait()

    assert names(files) == {".arrow"}


def test_commit_does_not_name_a_file_that_has_taken_its_place(files: ActivationStore) -> None:
    tap = taps_of()
    array = opened(files, tap)
    array.write(torch.arange(NUM_IMAGES), tap)
    assert files.directory is not None
    next(files.directory.glob("*.partial")).unlink()
    opened(files, tap)
    array.commit()
    array.wait()

    assert names(files) == {".arrow.partial"}


# Several processes


def test_users_of_one_file_see_each_others_taps_and_do_not_overwrite_them(files: ActivationStore) -> None:
    tap = taps_of()
    first, second = opened(files, tap), opened(files, tap)
    first.write(torch.arange(4), tap[:4])
    second.write(torch.arange(8), torch.cat([torch.zeros_like(tap[:4]), tap[4:8]]))

    for array in (first, second):
        assert array.has(torch.arange(8))
        assert is_same(array.read(torch.arange(8)), tap[:8])


def fill_half_and_read_all(group: Group, directory: Path) -> bool:
    """Write every second tap; when all ranks have, read them all."""
    tap = taps_of()
    array = opened(ActivationStore(directory, 64 * MIB), tap)
    mine = torch.arange(group.rank, NUM_IMAGES, group.world_size)
    array.write(mine, tap[mine])
    group.barrier()
    array.commit()
    array.wait()
    everything = torch.arange(NUM_IMAGES)
    return array.has(everything) and is_same(array.read(everything), tap)


def test_two_processes_fill_and_read_one_array(tmp_path: Path) -> None:
    assert ranks.run(2, fill_half_and_read_all, tmp_path) == [True, True]
    assert [path.suffix for path in tmp_path.iterdir() if path.name != ".lock"] == [".arrow"]


def fill_until_killed(group: Group, directory: Path) -> None:
    """Write taps one by one, and die while the eleventh is half written."""
    tap = taps_of()
    array = opened(ActivationStore(directory, 64 * MIB), tap)
    for position in range(10):
        array.write(torch.tensor([position]), tap[position : position + 1])

    def write_half(descriptor: int, data: memoryview, offset: int) -> None:
        os.pwrite(descriptor, data[: len(data) // 2], offset)
        os.kill(os.getpid(), signal.SIGKILL)

    tap_arrays.write_at = write_half
    array.write(torch.tensor([10]), tap[10:11])


def test_after_a_kill_in_mid_write_the_whole_taps_are_used_and_the_others_made(tmp_path: Path) -> None:
    tap = taps_of()
    assert ranks.run_until_death(1, fill_until_killed, tmp_path) == [-signal.SIGKILL]
    assert not list(tmp_path.glob("*.arrow"))

    array = opened(ActivationStore(tmp_path, 64 * MIB), tap)

    assert not array.is_complete()
    assert [array.has(torch.tensor([position])) for position in range(12)] == [True] * 10 + [False] * 2
    assert is_same(array.read(torch.arange(10)), tap[:10])
    array.write(torch.arange(NUM_IMAGES), tap)
    assert is_same(array.read(torch.arange(NUM_IMAGES)), tap)


def hold_open(group: Group, directory: Path, release: Path) -> None:
    """Use an array until `release` exists."""
    array = opened(ActivationStore(directory, MIB), taps_of())
    (directory / "is-open").touch()
    deadline = time.monotonic() + 30
    while not release.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    array.close()


def test_array_that_another_process_uses_is_not_evicted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tap, release = taps_of(), tmp_path / "release"
    room = file_bytes(NUM_IMAGES, Layout.of(tap)) + 1000
    processes, _ = ranks.start(1, hold_open, tmp_path, release)
    deadline = time.monotonic() + 60
    while not (tmp_path / "is-open").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    other = replace(KEY, split="val")
    with caplog.at_level(logging.INFO):
        assert ActivationStore(tmp_path, room).open(other, NUM_IMAGES, Layout.of(tap)) is None
    assert "MiB are in use" in caplog.text
    release.touch()
    ranks.stop(processes)

    assert ActivationStore(tmp_path, room).open(other, NUM_IMAGES, Layout.of(tap)) is not None
    assert len(list(tmp_path.glob("*.partial"))) == 1


# Damaged files


def damaged(files: ActivationStore, tap: Tensor) -> Path:
    """Return the path of a complete file that is not in use."""
    kept(files, tap).close()
    assert files.directory is not None
    (path,) = files.directory.glob("*.arrow")
    return path


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 100)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def overwrite_footer(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-200:-10] = b"tltrain..." * 19
    path.write_bytes(data)


def swap_for_another(path: Path) -> None:
    """Put a good file with another key under this name."""
    other = replace(KEY, split="val")
    kept(ActivationStore(path.parent, 64 * MIB), taps_of(), other).close()
    (path.parent / f"{other.digest()}.arrow").replace(path)


@pytest.mark.parametrize("damage", [truncate, empty, overwrite_footer, swap_for_another], ids=lambda f: f.__name__)
def test_damaged_file_is_not_used_but_made_anew(
    files: ActivationStore, damage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    tap = taps_of()
    path = damaged(files, tap)
    damage(path)

    array = opened(files, tap)

    assert f"{path} is not used and made anew" in caplog.text
    assert not array.is_complete()
    array.write(torch.arange(NUM_IMAGES), tap)
    assert is_same(array.read(torch.arange(NUM_IMAGES)), tap)


def test_tap_with_a_flipped_bit_is_missing_and_the_others_are_not(
    files: ActivationStore, caplog: pytest.LogCaptureFixture
) -> None:
    tap = taps_of()
    path = damaged(files, tap)
    data = bytearray(path.read_bytes())
    data[data.index(tap[5].contiguous().numpy().tobytes()) + 7] ^= 1
    path.write_bytes(data)

    array = opened(files, tap)

    assert array.has(torch.tensor([4, 6]))
    assert not array.has(torch.tensor([4, 5, 6]))
    assert not array.is_complete()
    assert caplog.text.count("is damaged") == 1
    array.write(torch.arange(4, 7), tap[4:7])
    assert array.is_complete()
    assert is_same(array.read(torch.arange(NUM_IMAGES)), tap)


# Budget and disk


def test_arrays_not_used_for_the_longest_time_are_evicted_to_stay_within_the_budget(store: ActivationStore) -> None:
    tap = taps_of((256, 16, 16))
    store.budget_bytes = 2 * file_bytes(NUM_IMAGES, Layout.of(tap))
    first, second, third = (replace(KEY, cut=f"layer{i}", depth=i) for i in range(3))
    for key in (first, second):
        kept(store, tap, key).close()
        time.sleep(0.01)
    opened(store, tap, first).close()

    array = opened(store, tap, third)

    assert [store.find(key, NUM_IMAGES) is not None for key in (first, second)] == [True, False]
    array.close()


def test_array_in_use_is_not_evicted_and_the_log_gives_the_arithmetic(
    store: ActivationStore, caplog: pytest.LogCaptureFixture
) -> None:
    tap = taps_of((256, 16, 16))
    store.budget_bytes = file_bytes(NUM_IMAGES, Layout.of(tap))
    array = kept(store, tap)
    with caplog.at_level(logging.INFO):
        assert store.open(replace(KEY, split="val"), NUM_IMAGES, Layout.of(tap)) is None
    assert "they need 5.0 MiB, and of the budget of 5.0 MiB, 5.0 MiB are in use" in caplog.text
    assert is_same(array.read(torch.arange(NUM_IMAGES)), tap)


def test_array_larger_than_the_budget_evicts_nothing(store: ActivationStore) -> None:
    tap = taps_of()
    kept(store, tap).close()
    store.budget_bytes = MIB

    assert store.open(replace(KEY, split="val"), 10_000, Layout.of(tap)) is None
    assert store.find(KEY, NUM_IMAGES) is not None


def test_directory_that_cannot_be_written_means_a_warning_and_no_taps(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    for directory in (tmp_path / "file", tmp_path / "file" / "below"):
        caplog.clear()
        assert ActivationStore(directory, 64 * MIB).find(KEY, NUM_IMAGES) is None
        assert ActivationStore(directory, 64 * MIB).open(KEY, NUM_IMAGES, Layout.of(taps_of())) is None
        assert measure_tiers(directory, 64 * MIB, CPU) == ()
        assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
        assert str(directory) in caplog.text


def test_small_disk_means_a_warning_and_no_taps(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = ActivationStore(small_disk, 64 * MIB)

    assert store.open(KEY, NUM_IMAGES, Layout.of(taps_of((256, 16, 16)))) is None
    assert "more than half of the 1.0 MiB that are free" in caplog.text
    assert measure_tiers(small_disk, 64 * MIB, CPU) == ()
    assert "No space left" in caplog.text
    assert os.listdir(small_disk) == [".lock"]


def test_disk_that_fills_up_ends_the_writing_but_not_the_reading(
    files: ActivationStore, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tap = taps_of()
    array = opened(files, tap)
    array.write(torch.arange(5), tap[:5])

    def no_space(descriptor: int, data: bytes, offset: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tap_arrays, "write_at", no_space)
    array.write(torch.arange(8), tap[:8])
    array.write(torch.arange(8), tap[:8])

    assert caplog.text.count("No space left on device") == 1
    assert not array.has(torch.tensor([5]))
    assert is_same(array.read(torch.arange(5)), tap[:5])


def test_too_little_memory_means_a_warning_and_no_taps(caplog: pytest.LogCaptureFixture) -> None:
    assert ActivationStore(None, 2**62).open(KEY, 2**40, Layout.of(taps_of())) is None
    assert "are not kept" in caplog.text


@pytest.mark.parametrize(
    ("directory", "limits"),
    [(None, [10**13]), ("taps", [3 * 2**29, 10**13]), ("taps", [3 * 2**29])],
    ids=["memory", "files", "files-held-in-memory"],
)
def test_measured_rates_are_of_a_sound_size_and_leave_nothing_behind(
    directory: str | None, limits: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 8388608 kB\nMemAvailable: 3145728 kB\nCached: 1048576 kB\n")
    monkeypatch.setattr(tap_rates, "_MEMORY_FILES", (tmp_path / "meminfo", tmp_path / "memory.max"))
    place = None if directory is None else tmp_path / directory
    tiers = measure_tiers(place, limits[-1], CPU)

    assert [tier.limit_bytes for tier in tiers] == limits
    for tier in tiers:
        assert 1e6 < tier.rates.write < 1e12
        assert 1e6 < tier.rates.read < 1e12
    assert place is None or os.listdir(place) == []


@pytest.mark.parametrize(("limit", "spare"), [("max", 3 * 2**29), (str(2**30), 2**29), (str(2**40), 3 * 2**29)])
def test_a_container_spares_no_more_memory_than_it_may_use(
    limit: str, spare: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "meminfo").write_text("MemAvailable: 3145728 kB\n")
    (tmp_path / "memory.max").write_text(limit + "\n")
    monkeypatch.setattr(tap_rates, "_MEMORY_FILES", (tmp_path / "meminfo", tmp_path / "memory.max"))

    assert spare_memory_bytes() == spare


def test_an_array_that_was_not_closed_is_let_go_with_its_last_reference(files: ActivationStore) -> None:
    layout = Layout.of(taps_of())
    files.budget_bytes = file_bytes(NUM_IMAGES, layout)
    array = opened(files, taps_of())
    other = replace(KEY, split="val")
    assert files.open(other, NUM_IMAGES, layout) is None
    del array

    assert files.open(other, NUM_IMAGES, layout) is not None
