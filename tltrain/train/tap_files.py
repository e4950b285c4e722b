"""The file that holds the taps of one split at one cut: an Arrow file, made with empty rows that are filled later."""

from __future__ import annotations

import json
import math
import mmap
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

OVERHEAD_BYTES = 32 * 2**10
"""More than a file has beside its rows and checks."""
CHECK_BYTES = 8
LOCK_TIMEOUT_S = 60
_METADATA = b"tltrain.taps"
_FILLED = 1 << 32
_ARROW_FLOATS = {torch.float16: pa.float16(), torch.float32: pa.float32(), torch.float64: pa.float64()}
_ARROW_WORDS = {1: pa.uint8(), 2: pa.uint16(), 4: pa.uint32(), 8: pa.uint64()}


class UnfitFileError(Exception):
    """A file is damaged, or is not what its name says."""


@dataclass(frozen=True)
class Layout:
    """What one image's tap looks like in memory: shape and strides (both without the batch) and dtype.

    The strides are kept so that a tap that was channels_last is so again when it is read, and the layers above it
    run the same kernels.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    strides: tuple[int, ...]

    @classmethod
    def of(cls, tap: Tensor) -> Layout:
        """Return the layout of `tap` [b, ...]; contiguous, where its rows have gaps or overlap."""
        layout = cls(tuple(tap.shape[1:]), tap.dtype, tap.stride()[1:])
        return layout if layout._is_dense() else cls.of(torch.empty(tap.shape, dtype=tap.dtype, device="meta"))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Layout:
        """Return what `to_dict` described. Raises ValueError for a dtype that torch does not have."""
        dtype = getattr(torch, values["dtype"], None)
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"no dtype {values['dtype']}")
        return cls(tuple(values["shape"]), dtype, tuple(values["strides"]))

    def to_dict(self) -> dict[str, Any]:
        """Return the layout in JSON's terms."""
        name = str(self.dtype).removeprefix("torch.")
        return {"shape": list(self.shape), "dtype": name, "strides": list(self.strides)}

    @property
    def numel(self) -> int:
        """Values per image."""
        return math.prod(self.shape)

    @property
    def row_bytes(self) -> int:
        """Bytes per image."""
        return self.numel * self.dtype.itemsize

    @property
    def arrow_type(self) -> pa.DataType:
        """The Arrow tensor type of a row, its axes in the order of memory (for channels_last: height, width, channels).

        Types that Arrow lacks, such as bfloat16, stand as unsigned words. Arrow's own `permutation` of axes is not
        used, for pyarrow 26 reads permutations of three axes wrongly.
        """
        word = _ARROW_FLOATS.get(self.dtype) or _ARROW_WORDS[self.dtype.itemsize]
        axes = sorted(range(len(self.shape)), key=lambda axis: -self.strides[axis])
        return pa.fixed_shape_tensor(word, [self.shape[axis] for axis in axes])

    def pack(self, tap: Tensor) -> Tensor:
        """Return `tap` [b, *shape] as rows [b, numel] on the CPU, in the order of memory."""
        tap = tap.detach().cpu()
        assert (tap.shape[1:], tap.dtype) == (self.shape, self.dtype), (tap.shape, tap.dtype, self)
        strides = (self.numel, *self.strides)
        if tap.stride() != strides:
            tap = torch.empty_strided(tap.shape, strides, dtype=tap.dtype).copy_(tap)
        return tap.as_strided((len(tap), self.numel), (self.numel, 1))

    def unpack(self, rows: Tensor) -> Tensor:
        """Return rows [b, numel] as a tap [b, *shape] with the strides of this layout, without a copy."""
        return rows.as_strided((len(rows), *self.shape), (self.numel, *self.strides))

    def _is_dense(self) -> bool:
        """Whether the strides reach each of `numel` neighbouring places once."""
        expected = 1
        for stride, size in sorted(zip(self.strides, self.shape, strict=True)):
            if size != 1 and stride != expected:
                return False
            expected *= size
        return True


@dataclass(frozen=True)
class Structure:
    """What a file holds, and where in it the first row and the first check stand, in bytes."""

    key: dict[str, Any]
    num_images: int
    layout: Layout
    tap_offset: int
    check_offset: int


def check_of(row: np.ndarray) -> int:
    """Return what stands beside a filled `row` uint8 [n]: 2**32 plus its CRC-32, so never 0."""
    return _FILLED + zlib.crc32(row.data)


def file_bytes(num_images: int, layout: Layout) -> int:
    """Return how large a file may become."""
    return num_images * (layout.row_bytes + CHECK_BYTES) + OVERHEAD_BYTES


def folder_lock(directory: Path) -> filelock.FileLock:
    """Return the lock to hold while files of `directory` are made, found, renamed or removed."""
    return filelock.FileLock(directory / ".lock", timeout=LOCK_TIMEOUT_S, mode=0o600)


def write_at(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data` at `offset`. Raises OSError."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


class _Sink:
    """A file for Arrow to write to, which leaves out the columns: in a new file these are zeros anyway."""

    closed = False

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self.size = descriptor, 0

    def write(self, data: bytes | pa.Buffer) -> int:
        if not isinstance(data, pa.Buffer):
            write_at(self._descriptor, data, self.size)
        self.size += len(data)
        return len(data)

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """The descriptor is the caller's."""


def write_empty(descriptor: int, key: dict[str, Any], num_images: int, layout: Layout) -> None:
    """Make an empty file into a whole Arrow file, all of whose rows are missing. Raises OSError, also for no space."""
    size = _write_headers(descriptor, key, num_images, layout)
    os.ftruncate(descriptor, size)
    if hasattr(os, "posix_fallocate"):  # not on macOS, where a full disk is noticed when a row is written
        os.posix_fallocate(descriptor, 0, size)


def _write_headers(descriptor: int, key: dict[str, Any], num_images: int, layout: Layout) -> int:
    """Write all but the columns; return how long the file has to be."""
    os.ftruncate(descriptor, num_images * max(layout.row_bytes, CHECK_BYTES))
    # The file's own holes serve as the columns, so that no memory is taken for them.
    batch = _record_batch(pa.py_buffer(mmap.mmap(descriptor, 0)), key, num_images, layout)
    sink = _Sink(descriptor)
    with pa.ipc.new_file(pa.PythonFile(sink, mode="w"), batch.schema) as writer:
        writer.write_batch(batch)
    return sink.size


def _record_batch(zeros: pa.Buffer, key: dict[str, Any], num_images: int, layout: Layout) -> pa.RecordBatch:
    tensor = layout.arrow_type
    values = pa.Array.from_buffers(tensor.value_type, num_images * layout.numel, [None, zeros])
    rows = pa.FixedSizeListArray.from_arrays(values, type=tensor.storage_type)
    taps = pa.ExtensionArray.from_storage(tensor, rows)
    checks = pa.Array.from_buffers(pa.uint64(), num_images, [None, zeros])
    description = {"key": key, "layout": layout.to_dict(), "num_images": num_images}
    return pa.record_batch([taps, checks], schema=_schema(layout, description))


def _schema(layout: Layout, description: dict[str, Any]) -> pa.Schema:
    fields = [pa.field("tap", layout.arrow_type, nullable=False), pa.field("check", pa.uint64(), nullable=False)]
    return pa.schema(fields, metadata={_METADATA: json.dumps(description)})


def read_structure(mapped: mmap.mmap) -> Structure:
    """Return what a mapped file holds, from its footer and headers. Raises UnfitFileError."""
    buffer = pa.py_buffer(mapped)
    try:
        reader = pa.ipc.open_file(pa.BufferReader(buffer))
        description = json.loads(reader.schema.metadata[_METADATA])
        layout, num_images = Layout.from_dict(description["layout"]), description["num_images"]
        batch = reader.get_batch(0)
        if batch.num_rows != num_images or batch.schema != _schema(layout, description):
            raise UnfitFileError("its rows are not as its header says")
        *_, taps = batch.column("tap").storage.buffers()
        *_, checks = batch.column("check").buffers()
    except (pa.ArrowException, OSError, KeyError, IndexError, ValueError, TypeError) as error:
        raise UnfitFileError(str(error)) from error
    if taps.size < num_images * layout.row_bytes or checks.size < num_images * CHECK_BYTES:
        raise UnfitFileError("it is too short")
    offsets = (taps.address - buffer.address, checks.address - buffer.address)
    return Structure(description["key"], num_images, layout, *offsets)
