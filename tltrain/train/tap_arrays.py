"""Taps of one split at one cut: in memory, or in an Arrow file that the processes of a node map together."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import mmap
import os
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tltrain.disk import flush_folder
from tltrain.train.tap_files import CHECK_BYTES, Layout, UnfitFileError, check_of, folder_lock, read_structure, write_at

PARTIAL = ".partial"
_logger = logging.getLogger(__name__)


class TapArray:
    """Taps of one split at one cut in this process's memory, filled in as they are first computed.

    `ids` are positions in the split, int64 [b].
    """

    def __init__(
        self, num_images: int, layout: Layout, *, rows: Tensor | None = None, pin_memory: bool = False
    ) -> None:
        """Make room for `num_images` taps; memory is taken as it is filled. Raises MemoryError.

        rows: [n, numel] that are there already. pin_memory: read into page-locked memory, from which copies to a
        GPU need not wait.
        """
        self.num_images, self.layout = num_images, layout
        self.users = 1
        self._pin_memory = pin_memory
        self._rows = _allocate(num_images, layout) if rows is None else rows
        self._good = np.zeros(num_images, dtype=bool)

    @property
    def num_bytes(self) -> int:
        """Bytes of all taps."""
        return self.num_images * self.layout.row_bytes

    @property
    def num_filled(self) -> int:
        """How many taps there are."""
        return int(np.count_nonzero(self._good))

    def has(self, ids: Tensor) -> bool:
        """Return whether the taps of all `ids` can be read."""
        return bool(self._good[ids.cpu().numpy()].all())

    def is_complete(self) -> bool:
        """Return whether the tap of every image can be read."""
        return bool(self._good.all())

    def read(self, ids: Tensor) -> Tensor:
        """Return a copy of the taps of `ids` [b, *shape] in the layout they had when they were computed.

        Only what `has` said is there may be read.
        """
        ids = ids.cpu()
        assert self._good[ids.numpy()].all(), "taps are read without asking whether they are there"
        rows = torch.empty((len(ids), self.layout.numel), dtype=self.layout.dtype, pin_memory=self._pin_memory)
        torch.index_select(self._rows, 0, ids, out=rows)
        return self.layout.unpack(rows)

    def write(self, ids: Tensor, tap: Tensor) -> None:
        """Keep `tap` [b, *shape] of `ids`. What is there already stays."""
        positions = ids.cpu().numpy()
        missing = np.flatnonzero(~self._good[positions])
        if len(missing):
            self._write_rows(positions[missing], self.layout.pack(tap)[torch.from_numpy(missing)])

    def _write_rows(self, positions: np.ndarray, rows: Tensor) -> None:
        self._rows[torch.from_numpy(positions)] = rows
        self._good[positions] = True

    def commit(self) -> None:
        """Let a complete array outlive this process, where it can."""

    def wait(self) -> None:
        """Wait until a commit under way has ended."""

    def close(self) -> None:
        """End one use. An array that nobody uses may be evicted."""
        self.users -= 1


def _allocate(num_images: int, layout: Layout) -> Tensor:
    try:
        return torch.empty((num_images, layout.numel), dtype=layout.dtype)
    except RuntimeError as error:  # torch has no error of its own for memory on the CPU
        raise MemoryError(str(error).splitlines()[0]) from error


class MappedTapArray(TapArray):
    """Taps in an Arrow file, a row per image with the columns `tap` and `check`.

    All processes of a node map one file and see each other's rows. `check` is 0 until the row has been written,
    then 2**32 plus the row's CRC-32. A row counts only where they agree, and each process compares them once for
    each row that it has not written itself. So a kill in mid-write, a power failure or a bad disk cannot pass off a
    wrong tap: it is computed again.

    Rows are written by system calls: a full disk makes these fail, where it would kill a process that writes to
    mapped memory. An open array holds a shared lock on its file, which tells others that it is in use.
    """

    def __init__(self, path: Path, descriptor: int, *, pin_memory: bool = False) -> None:
        """Map the file `path`, open for reading and writing as `descriptor`, which the array closes.

        Raises UnfitFileError or OSError.
        """
        self.path = path
        self._descriptor = descriptor
        self._closer = weakref.finalize(self, os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            self._map = _mapped(descriptor)
            structure = read_structure(self._map)
        except (UnfitFileError, OSError):
            self._closer()
            raise
        self.key, layout, count = structure.key, structure.layout, structure.num_images
        self._tap_offset, self._check_offset = structure.tap_offset, structure.check_offset
        rows = torch.frombuffer(self._map, dtype=layout.dtype, offset=self._tap_offset, count=count * layout.numel)
        super().__init__(count, layout, rows=rows.view(count, layout.numel), pin_memory=pin_memory)
        self._checks = np.frombuffer(self._map, dtype=np.uint64, offset=self._check_offset, count=count)
        self._may_write, self._has_warned = True, False
        self._commit_thread: threading.Thread | None = None

    @property
    def num_filled(self) -> int:
        """How many rows any process has filled; not yet compared with their checks."""
        return int(np.count_nonzero(self._checks))

    def has(self, ids: Tensor) -> bool:
        """Return whether the taps of all `ids` can be read."""
        return self._are_good(ids.cpu().numpy())

    def is_complete(self) -> bool:
        """Return whether the tap of every image can be read. May compare all rows, once: 1 to 2 s per GiB."""
        return self._are_good(np.arange(self.num_images))

    def _are_good(self, positions: np.ndarray) -> bool:
        unknown = positions[~self._good[positions]]
        checks = self._checks[unknown]
        if not checks.all():
            return False
        for position, check in zip(unknown.tolist(), checks.tolist(), strict=True):
            self._good[position] = check == check_of(self._rows[position].view(torch.uint8).numpy())
            if not self._good[position]:
                self._forget(position)
        return bool(self._good[unknown].all())

    def _forget(self, position: int) -> None:
        """Mark a row that is not what was written as missing."""
        if not self._has_warned:
            _logger.warning("%s is damaged: the taps in it that are not what was written are made again", self.path)
            self._has_warned = True
        with self._writing():
            write_at(self._descriptor, bytes(CHECK_BYTES), self._check_offset + CHECK_BYTES * position)

    def write(self, ids: Tensor, tap: Tensor) -> None:
        """Keep `tap` [b, *shape] of `ids`. What is there already stays, also where another process wrote it."""
        if self._may_write:
            super().write(ids, tap)

    def _write_rows(self, positions: np.ndarray, rows: Tensor) -> None:
        size = self.layout.row_bytes
        with self._writing():
            for position, row in zip(positions.tolist(), rows.view(torch.uint8).numpy(), strict=True):
                if self._checks[position]:
                    continue
                write_at(self._descriptor, row.data, self._tap_offset + size * position)
                check = np.array(check_of(row), dtype=np.uint64).tobytes()
                write_at(self._descriptor, check, self._check_offset + CHECK_BYTES * position)
                self._good[position] = True

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Go on without writing where it fails; what has been written can still be read."""
        try:
            yield
        except OSError as error:
            self._may_write = False
            _logger.warning("no more taps are kept in %s, the others are computed each time: %s", self.path, error)

    def commit(self) -> None:
        """Give a file whose rows are all filled its final name, once the disk has them.

        That happens in the background. Should the process end before, nothing is lost but the name.
        """
        if self._commit_thread is None and self.path.suffix == PARTIAL and self._checks.all():
            # A descriptor of its own, so that the array may be closed meanwhile.
            arguments = (self.path, os.dup(self._descriptor))
            self._commit_thread = threading.Thread(target=_commit, args=arguments, name="commit-taps", daemon=True)
            self._commit_thread.start()

    def wait(self) -> None:
        """Wait until a commit under way has ended."""
        if self._commit_thread is not None:
            self._commit_thread.join()

    def close(self) -> None:
        """End the use of the file; the array cannot be used again."""
        super().close()
        self._closer()
        del self._rows, self._checks, self._map


def _mapped(descriptor: int) -> mmap.mmap:
    try:
        return mmap.mmap(descriptor, 0)
    except ValueError as error:
        raise UnfitFileError("it is empty") from error


def _commit(path: Path, descriptor: int) -> None:
    """Flush a file, and rename it from NAME.partial to NAME if no other process has done so."""
    try:
        os.fsync(descriptor)
        with folder_lock(path.parent):
            if path.exists() and os.path.samestat(path.stat(), os.fstat(descriptor)):
                path.rename(path.with_suffix(""))
                flush_folder(path.parent)
    except OSError as error:
        _logger.warning("the taps in %s may not outlive this process: %s", path, error)
    finally:
        os.close(descriptor)
