"""What a source of labelled images is, the plain one (files under one folder), and a split of a source."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from PIL import Image

from tltrain.data.bad import BadImage
from tltrain.data.locations import Location


class Source(ABC):
    """Labelled images, read one by one.

    classes: names of the classes, in the order of their numbers.
    labels: int64 [N], numbers of the classes.
    warnings: what the user should know about the source.
    bad: images that were found unusable when the source was opened and stand beside it, where they may be left out.
    fork_safe: whether a forked process may read it (file systems with threads of their own may not be
    forked).
    thread_safe: whether several threads may read it at a time.
    """

    classes: tuple[str, ...]
    labels: np.ndarray
    warnings: tuple[str, ...] = ()
    bad: tuple[BadImage, ...] = ()
    fork_safe: bool = True
    thread_safe: bool = True

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def read(self, index: int) -> bytes | Image.Image:
        """Return an encoded image, or an image. Raises DataError naming the sample if it cannot be read."""

    @abstractmethod
    def identity(self, index: int) -> str:
        """Return an id of a sample that stays the same between runs and machines."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a sha256 over ids, sizes and labels; no pixel is read."""

    def encoded_sizes(self) -> np.ndarray | None:
        """Return the bytes of each encoded image, int64 [N], or None where reading them is not cheap."""
        return None


def digest(kind: str, classes: Sequence[str], *arrays: np.ndarray, names: Sequence[str] = ()) -> str:
    """Return the sha256 of a source's description: its kind, classes, names, and integer arrays."""
    result = hashlib.sha256(json.dumps([kind, list(classes), list(names)]).encode())
    for array in arrays:
        result.update(np.ascontiguousarray(array, dtype="<i8").tobytes())
    return result.hexdigest()


class FilesSource(Source):
    """Image files under one folder. Paths are kept in Arrow memory, which forked processes share."""

    def __init__(
        self,
        root: Location,
        paths: Sequence[str],
        sizes: np.ndarray,
        labels: np.ndarray,
        classes: Sequence[str],
        warnings: Sequence[str] = (),
    ) -> None:
        """Take N paths relative to `root`, with their sizes in bytes and labels, both int64 [N]."""
        self.classes = tuple(classes)
        self.labels = labels
        self.warnings = tuple(warnings)
        self.fork_safe = root.is_local
        self._root = root
        self._paths = pa.array(paths, pa.string())
        self._sizes = sizes

    def read(self, index: int) -> bytes:
        """Return the content of a file."""
        return self._root.read(self.identity(index))

    def identity(self, index: int) -> str:
        """Return the path as it stands under the root."""
        return self._paths[index].as_py()

    def fingerprint(self) -> str:
        """Return a sha256 over paths, sizes and labels."""
        return digest("files", self.classes, self._sizes, self.labels, names=self._paths.to_pylist())

    def encoded_sizes(self) -> np.ndarray | None:
        """Return the sizes of the files, for files of this machine."""
        return self._sizes if self._root.is_local else None


@dataclass(frozen=True, eq=False)
class Split:
    """Some images of a source.

    indices: int64 [n], ascending, into the source. labels: int64 [n], numbers of the run's classes.
    A position is an index into these two.
    """

    source: Source
    indices: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def identity(self, position: int) -> str:
        """Return the stable id of a sample."""
        return self.source.identity(int(self.indices[position]))

    def read(self, position: int) -> bytes | Image.Image:
        """Return an encoded image, or an image. Raises DataError naming the sample if it cannot be read."""
        return self.source.read(int(self.indices[position]))

    def without(self, ids: Collection[str]) -> Split:
        """Return the split without the samples of these ids."""
        if not ids:
            return self
        kept = np.array([self.identity(i) not in ids for i in range(len(self))], dtype=bool)
        return Split(self.source, self.indices[kept], self.labels[kept])
