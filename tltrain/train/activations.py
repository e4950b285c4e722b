"""The activation store: taps that are the same in every epoch and for every trial, kept within a budget."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from tltrain.train.tap_arrays import PARTIAL, MappedTapArray, TapArray
from tltrain.train.tap_files import Layout, UnfitFileError, file_bytes, folder_lock, write_empty

__all__ = ["ActivationStore", "Layout", "TapArray", "TapKey", "device_kind"]

FORMAT = 1
_FILE = re.compile(r"[0-9a-f]{64}\.arrow(\.partial)?")
_logger = logging.getLogger(__name__)


def device_kind(device: torch.device) -> str:
    """Return what decides how a device rounds: the GPU's name, or the CPU's instructions and number of threads."""
    if device.type == "cuda":
        return f"cuda {torch.cuda.get_device_name(device)}"
    return f"{device.type} {torch.backends.cpu.get_cpu_capability()} {torch.get_num_threads()} threads"


@dataclass(frozen=True)
class TapKey:
    """All that decides the bits of a tap.

    weights: sha256 of the stages below the cut. cut: name of the last of these, depth: their number. data:
    fingerprint of the data set. batch_size: images per forward pass, for kernels may round otherwise at another.
    device: see `device_kind`.
    """

    weights: str
    cut: str
    depth: int
    preprocessing: dict[str, Any]
    data: str
    split: str
    dtype: str
    precision: str
    channels_last: bool
    batch_size: int
    device: str
    torch: str = torch.__version__
    torchvision: str = field(default_factory=lambda: importlib.metadata.version("torchvision"))

    def to_dict(self) -> dict[str, Any]:
        """Return the key in JSON's terms, with the version of the file format."""
        return json.loads(json.dumps({"format": FORMAT, **asdict(self)}))

    def digest(self) -> str:
        """Return the sha256 over all of it."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def __str__(self) -> str:
        return f"{self.split} images after stage {self.cut}"


class ActivationStore:
    """Tap arrays within a budget of bytes: files in `directory` (several processes may share it), or in memory.

    Room is made by evicting the arrays not used for the longest time, never one in use. Where taps cannot be kept,
    the log says why and training goes on without.
    """

    def __init__(self, directory: Path | None, budget_bytes: int, *, pin_memory: bool = False) -> None:
        """directory: made with its first array; None keeps arrays in this process's memory.

        pin_memory: read taps into page-locked memory, for a GPU.
        """
        self.directory, self.budget_bytes = directory, budget_bytes
        self._pin_memory = pin_memory
        self._in_memory: dict[str, TapArray] = {}

    def find(self, key: TapKey, num_images: int) -> TapArray | None:
        """Return the array with this key if there is one, complete or not. Its user closes it."""
        if self.directory is None:
            return self._reuse(key.digest())
        if not self.directory.is_dir():
            return None
        with self._unless_impossible(key), folder_lock(self.directory):
            return self._adopt(self.directory, key, num_images, layout=None)
        return None

    def open(self, key: TapKey, num_images: int, layout: Layout) -> TapArray | None:
        """Return the array with this key, an empty one if need be, or None where it cannot be kept.

        The processes of a node that open the same key share one array. Its user closes it.
        """
        if self.directory is None:
            return self._reuse(key.digest()) or self._allocate(key, num_images, layout)
        with self._unless_impossible(key):
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with folder_lock(self.directory):
                found = self._adopt(self.directory, key, num_images, layout)
                return found or self._create(self.directory, key, num_images, layout)
        return None

    @contextmanager
    def _unless_impossible(self, key: TapKey) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            _logger.warning("the taps of %s are not kept, but computed each time: %s", key, error)

    def _reuse(self, digest: str) -> TapArray | None:
        array = self._in_memory.pop(digest, None)
        if array is not None:
            array.users += 1
            self._in_memory[digest] = array  # the last is the one used last
        return array

    def _allocate(self, key: TapKey, num_images: int, layout: Layout) -> TapArray | None:
        needed = num_images * layout.row_bytes
        sizes = {digest: array.num_bytes for digest, array in self._in_memory.items()}
        idle = [digest for digest, array in self._in_memory.items() if not array.users]
        evicted = self._plan_room(key, needed, sizes, idle)
        if evicted is None:
            return None
        for digest in evicted:
            del self._in_memory[digest]
        try:
            array = TapArray(num_images, layout, pin_memory=self._pin_memory)
        except MemoryError as error:
            _logger.warning("the taps of %s are not kept, but computed each time: %s", key, error)
            return None
        self._in_memory[key.digest()] = array
        return array

    def _plan_room(self, key: TapKey, needed: int, sizes: dict[Any, int], idle: list[Any]) -> list[Any] | None:
        """Return which of `idle` (the least recently used first) to evict for `needed` bytes; None if it is in vain."""
        used = sum(sizes.values())
        evicted = []
        for name in idle:
            if used + needed <= self.budget_bytes:
                break
            evicted.append(name)
            used -= sizes[name]
        if used + needed <= self.budget_bytes:
            return evicted
        _logger.info(
            "the taps of %s are not kept, but computed each time: they need %s, and of the budget of %s, %s are in use",
            key, _mib(needed), _mib(self.budget_bytes), _mib(used),
        )  # fmt: skip
        return None

    def _adopt(self, directory: Path, key: TapKey, num_images: int, layout: Layout | None) -> MappedTapArray | None:
        """Open the file of this key, whole or partial; one that is unfit is removed."""
        for path in (directory / f"{key.digest()}.arrow", directory / f"{key.digest()}.arrow{PARTIAL}"):
            if not path.exists():
                continue
            try:
                array = self._mapped(path, key, num_images, layout)
            except UnfitFileError as error:
                _logger.warning("%s is not used and made anew: %s", path, error)
                path.unlink()
                continue
            os.utime(path)
            _logger.info("%d of %d taps of %s are in %s", array.num_filled, num_images, key, path)
            return array
        return None

    def _mapped(self, path: Path, key: TapKey, num_images: int, layout: Layout | None) -> MappedTapArray:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        array = MappedTapArray(path, descriptor, pin_memory=self._pin_memory)
        expected = (key.to_dict(), num_images, layout or array.layout)
        if (array.key, array.num_images, array.layout) != expected:
            array.close()
            raise UnfitFileError("its header does not say what its name says")
        return array

    def _create(self, directory: Path, key: TapKey, num_images: int, layout: Layout) -> MappedTapArray | None:
        if not self._make_room(directory, key, file_bytes(num_images, layout)):
            return None
        path = directory / f"{key.digest()}.arrow{PARTIAL}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            write_empty(descriptor, key.to_dict(), num_images, layout)
        except OSError:
            os.close(descriptor)
            path.unlink()
            raise
        return MappedTapArray(path, descriptor, pin_memory=self._pin_memory)

    def _make_room(self, directory: Path, key: TapKey, needed: int) -> bool:
        """Evict files until `needed` bytes fit the budget. Holding the folder's lock, so that no use can begin."""
        files = {path: path.stat() for path in directory.iterdir() if _FILE.fullmatch(path.name)}
        idle = sorted((path for path in files if not _is_in_use(path)), key=lambda path: files[path].st_mtime_ns)
        evicted = self._plan_room(key, needed, {path: stat.st_size for path, stat in files.items()}, idle)
        if evicted is None:
            return False
        for path in evicted:
            _logger.info("%s is removed to make room", path)
            path.unlink()
        free = shutil.disk_usage(directory).free
        if needed > free // 2:  # the other half is for checkpoints, and for whoever else writes there
            _logger.warning(
                "the taps of %s are not kept, but computed each time: they need %s, more than half of the %s that "
                "are free in %s", key, _mib(needed), _mib(free), directory,
            )  # fmt: skip
            return False
        return True


def _is_in_use(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.1f} MiB"
