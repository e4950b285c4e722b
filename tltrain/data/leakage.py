"""Find images that stand in training data and in validation or test data alike."""

from __future__ import annotations

import hashlib
import logging

import numpy as np

from tltrain.data.base import Split
from tltrain.errors import DataError

MAX_IMAGES = 20_000
MAX_BYTES = 512 * 2**20
"""Most images, and most bytes of them, that are read for one comparison."""

_logger = logging.getLogger(__name__)


def find_leaks(train: Split, other: Split, name: str) -> list[str]:
    """Return a warning if encoded images of `other` are, byte for byte, training images too.

    Only images whose encoded size occurs on both sides are read and compared by sha256. Nothing is compared,
    and the log says so, for sources that are remote or keep no encoded images, and above MAX_IMAGES or
    MAX_BYTES.
    """
    sizes = [split.source.encoded_sizes() for split in (train, other)]
    if sizes[0] is None or sizes[1] is None:
        _logger.info("data.train and data.%s are not compared: their encoded images are not at hand", name)
        return []
    train_sizes, other_sizes = sizes[0][train.indices], sizes[1][other.indices]
    first = np.flatnonzero(np.isin(train_sizes, other_sizes)).tolist()
    second = np.flatnonzero(np.isin(other_sizes, train_sizes)).tolist()
    num_bytes = int(train_sizes[first].sum() + other_sizes[second].sum())
    if len(first) + len(second) > MAX_IMAGES or num_bytes > MAX_BYTES:
        _logger.info("data.train and data.%s are not compared: %d bytes to read", name, num_bytes)
        return []
    known = {_content_hash(train, position): position for position in first}
    known.pop(None, None)
    pairs = [(known.get(_content_hash(other, position)), position) for position in second]
    leaks = [(a, b) for a, b in pairs if a is not None]
    if not leaks:
        return []
    example = f"{other.identity(leaks[0][1])} is {train.identity(leaks[0][0])}"
    return [
        f"{len(leaks)} of {len(other)} images of data.{name} are training images too (such as {example}): "
        f"its accuracy will look better than it is."
    ]


def _content_hash(split: Split, position: int) -> bytes | None:
    """Return None for what cannot be read: whoever decodes it tells that, or leaves it out."""
    try:
        content = split.read(position)
    except DataError:
        return None
    assert isinstance(content, bytes), "a source with encoded sizes reads bytes"
    return hashlib.sha256(content).digest()
