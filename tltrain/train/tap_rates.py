"""Measures how fast taps can be kept and read back, in some hundredths of a second."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from tltrain.train.keeping import Rates, Tier
from tltrain.train.tap_arrays import MappedTapArray, TapArray
from tltrain.train.tap_files import Layout, write_empty

_NUM_ROWS, _ROW_VALUES, _BATCH = 64, 32 * 2**10, 16
_ROW_BYTES = _ROW_VALUES * 4
_CPU_CACHE_BYTES = 64 * 2**20
_LAYOUT = Layout((_ROW_VALUES,), torch.float32, (1,))
_MEMORY_FILES = (Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max"))
_logger = logging.getLogger(__name__)


def measure_tiers(directory: Path | None, budget_bytes: int, device: torch.device) -> tuple[Tier, ...]:
    """Return where taps can be kept, with rates measured on 8 MiB.

    Files are read from memory as long as all of them fit what the system can spare of it, else from the disk.
    device: where taps come from and go to. Empty, with a warning, where `directory` cannot be written to.
    """
    if directory is None:
        array = TapArray(_NUM_ROWS, _LAYOUT, pin_memory=device.type == "cuda")
        return (Tier("memory", budget_bytes, _measure(array, device)),)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        cached, disk = _measure_files(directory, device)
    except OSError as error:
        _logger.warning("no taps are kept, but computed each time: %s", error)
        return ()
    spare = spare_memory_bytes()
    if budget_bytes <= spare:
        return (Tier(str(directory), budget_bytes, cached),)
    return Tier(f"{directory} (cached)", spare, cached), Tier(f"{directory} (from disk)", budget_bytes, disk)


def spare_memory_bytes() -> int:
    """Return half of the memory that this system, or this container, can give to files it holds in memory."""
    meminfo, limit = (path.read_text() if path.exists() else "" for path in _MEMORY_FILES)
    available = [int(line.split()[1]) * 1024 for line in meminfo.splitlines() if line.startswith("MemAvailable:")]
    available += [int(limit)] if limit.strip().isdecimal() else []
    return min(available, default=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) // 2


def _measure_files(directory: Path, device: torch.device) -> tuple[Rates, Rates]:
    """Return the rates of a file that stays in memory, and of one that goes to the disk and comes from there."""
    descriptor, name = tempfile.mkstemp(prefix=".probe-", dir=directory)
    os.unlink(name)  # the file lives on as long as it is open
    try:
        write_empty(descriptor, {}, _NUM_ROWS, _LAYOUT)
        array = MappedTapArray(Path(name), os.dup(descriptor), pin_memory=device.type == "cuda")
        cached = _measure(array, device)
        array.close()
        return cached, _measure_disk(descriptor, cached)
    finally:
        os.close(descriptor)


def _measure(array: TapArray, device: torch.device) -> Rates:
    ids = torch.randperm(_NUM_ROWS, generator=torch.Generator().manual_seed(0)).split(_BATCH)
    taps = torch.rand((_BATCH, _ROW_VALUES), generator=torch.Generator().manual_seed(0)).to(device)

    def write() -> None:
        for part in ids:
            array.write(part, taps)

    def read() -> None:
        for part in ids:
            assert array.has(part)
            array.read(part).to(device)

    write_rate = _rate(write)
    read()  # the first time, the system has to map each page
    torch.zeros(_CPU_CACHE_BYTES, dtype=torch.uint8).add_(1)  # real taps do not fit the CPU's cache either
    return Rates(write_rate, _rate(read))


def _measure_disk(descriptor: int, cached: Rates) -> Rates:
    if not hasattr(os, "posix_fadvise"):  # macOS: there is no asking the system to forget the file
        return cached
    flush = _rate(lambda: os.fsync(descriptor))
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    order = torch.randperm(_NUM_ROWS, generator=torch.Generator().manual_seed(0)).tolist()
    read = _rate(lambda: [os.pread(descriptor, _ROW_BYTES, _ROW_BYTES * row) for row in order])
    return Rates(_both(cached.write, flush), _both(cached.read, read))


def _rate(action: Callable[[], object]) -> float:
    """Return the bytes per second of an action on the whole probe."""
    start = time.perf_counter()
    action()
    return _NUM_ROWS * _ROW_BYTES / (time.perf_counter() - start)


def _both(first: float, second: float) -> float:
    """Return the rate of one after the other."""
    return 1 / (1 / first + 1 / second)
