"""Decoding images to classify, in loader processes or in Ray tasks: a bad image is reported and stops nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tltrain.data.base import Source
from tltrain.data.decode import decode
from tltrain.data.loader_processes import dead_loaders_named, loaded
from tltrain.data.preprocessing import Preprocessing
from tltrain.data.transforms import evaluation_transform
from tltrain.errors import DataError, Problem, StorageError


@dataclass(frozen=True, eq=False)
class Decoded:
    """Images of one batch, as the network takes them but for normalisation.

    images: uint8 [g, 3, H, W]. positions: int64 [g], indices into the source. bad: position -> why it could not be
    read.
    """

    images: Tensor
    positions: np.ndarray
    bad: dict[int, str]

    def pin_memory(self) -> Decoded:
        """Return the batch in page-locked memory (called by DataLoader)."""
        return Decoded(self.images.pin_memory(), self.positions, self.bad)


class Reader(Dataset[Any]):
    """Reads, decodes and crops images of a source, as an evaluation does."""

    def __init__(self, source: Source, p: Preprocessing) -> None:
        self._source, self._size = source, p.crop_size
        self._transform = evaluation_transform(p)

    def decode(self, positions: np.ndarray) -> Decoded:
        """Return the images at `positions`, int64 [b]. Raises StorageError where the storage does not answer."""
        images: list[Tensor] = []
        good: list[int] = []
        bad: dict[int, str] = {}
        for position in positions.tolist():
            try:
                images.append(self._image(position))
                good.append(position)
            except DataError as error:
                bad[position] = error.problems[0].what
        size = self._size
        stacked = torch.stack(images) if images else torch.empty(0, 3, size, size, dtype=torch.uint8)
        return Decoded(stacked, np.array(good, np.int64), bad)

    def __getitem__(self, positions: np.ndarray) -> Decoded | StorageError:
        # DataLoader would turn a raised error into another with a traceback for a message.
        try:
            return self.decode(positions)
        except StorageError as error:
            return error

    def _image(self, position: int) -> Tensor:
        name = self._source.identity(position)
        try:
            content = self._source.read(position)
        except OSError as error:
            what = f"the image cannot be read: {error}"
            raise StorageError(Problem(what, "Check the storage, then run the same command again", name)) from error
        return self._transform(decode(content, name))


def decoded_batches(
    reader: Reader, requests: Iterable[np.ndarray], *, fork_safe: bool, num_workers: int, pin_memory: bool
) -> Iterator[Decoded]:
    """Yield the images of each of `requests`, positions int64 [b], in order. Raises StorageError and LostError."""
    batches = loaded(reader, requests, fork_safe, seed=0, num_workers=num_workers, pin_memory=pin_memory)
    with dead_loaders_named():
        for batch in batches:
            if isinstance(batch, StorageError):
                raise batch
            yield batch
