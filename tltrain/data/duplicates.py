"""Find images that are the same, byte for byte or nearly: groups of indices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

MIN_CORRELATION = 0.993
"""Least correlation of two near duplicates' thumbnails."""
MAX_IMAGES = 200_000
"""Most images among which near duplicates are looked for: the time grows with the square of their number."""
_FLAT = 2.0  # standard deviation, in grey levels, below which a thumbnail shows nothing to compare
_ROWS = 1024
_COMPONENTS = 32


def exact_groups(digests: Sequence[bytes | None]) -> list[list[int]]:
    """Return the indices of equal digests, two or more in a group; None is equal to nothing."""
    groups: dict[bytes, list[int]] = {}
    for index, digest in enumerate(digests):
        if digest is not None:
            groups.setdefault(digest, []).append(index)
    return [group for group in groups.values() if len(group) > 1]


def near_groups(thumbnails: np.ndarray) -> list[list[int]]:
    """Return the indices of images that look alike, two or more in a group.

    thumbnails: uint8 [N, 16, 16], grey. Two images look alike where the correlation of their thumbnails is
    MIN_CORRELATION or more, as in copies of another size, quality, brightness or contrast. A flat image looks like
    nothing. The groups are the connected parts of the graph of such pairs.
    """
    grey = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    shows_something = np.flatnonzero(grey.std(axis=1) >= _FLAT)
    grey = grey[shows_something] - grey[shows_something].mean(axis=1, keepdims=True)
    vectors = grey / np.linalg.norm(grey, axis=1, keepdims=True)
    parent = list(range(len(vectors)))
    for first, second in _alike(vectors):
        _join(parent, first, second)
    groups: dict[int, list[int]] = {}
    for index in range(len(parent)):
        groups.setdefault(_root(parent, index), []).append(int(shows_something[index]))
    return [group for group in groups.values() if len(group) > 1]


def _alike(vectors: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield the pairs of unit vectors, float32 [N, D], whose dot product is MIN_CORRELATION or more.

    No pair is missed: a distance within some of the principal components is never more than the whole distance, so
    that few pairs are left to be compared in all dimensions.
    """
    if len(vectors) < 2:
        return
    radius = np.sqrt(2 * (1 - MIN_CORRELATION))
    _, directions = np.linalg.eigh(vectors.T @ vectors)  # the largest last
    reduced = vectors @ directions[:, ::-1][:, :_COMPONENTS]
    order = np.argsort(reduced[:, 0])
    vectors, reduced = vectors[order], np.ascontiguousarray(reduced[order])
    squares = np.einsum("nd,nd->n", reduced, reduced)
    for start in range(0, len(reduced), _ROWS):
        rows = reduced[start : start + _ROWS]
        end = int(np.searchsorted(reduced[:, 0], rows[-1, 0] + radius, side="right"))
        distances = squares[start : start + len(rows), None] + squares[start:end] - 2 * (rows @ reduced[start:end].T)
        first, second = np.nonzero(distances <= radius**2 + 1e-5)
        first, second = start + first[second > first], start + second[second > first]
        alike = np.einsum("pd,pd->p", vectors[first], vectors[second]) >= MIN_CORRELATION
        yield from zip(order[first[alike]].tolist(), order[second[alike]].tolist(), strict=True)


def _join(parent: list[int], first: int, second: int) -> None:
    first, second = _root(parent, first), _root(parent, second)
    parent[max(first, second)] = min(first, second)


def _root(parent: list[int], index: int) -> int:
    while parent[index] != index:
        parent[index] = parent[parent[index]]
        index = parent[index]
    return index
