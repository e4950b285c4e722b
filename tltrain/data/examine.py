"""Look at every image of a split once: its size, mode and format, its pixels' sums, a digest and a thumbnail."""

from __future__ import annotations

import hashlib
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.pool import AsyncResult, ThreadPool
from typing import TypeVar

import numpy as np
from PIL import Image

from tltrain.data.base import Split
from tltrain.data.decode import decode, header
from tltrain.data.waiting import Patience, read_in_time
from tltrain.errors import DataError

THUMBNAIL = 16
"""Side of the grey thumbnails that near duplicates are found by, in pixels."""
_AT_A_TIME = 32
_LEVELS = np.arange(256) / 255
_Found = TypeVar("_Found")


@dataclass(frozen=True, eq=False)
class Facts:
    """What one image is. Of a bad one there are the digest, if it could be read, and the error.

    digest: sha256 of the encoded bytes (of the pixels, where a source gives images). width, height: pixels, turned as
    its EXIF data says. mode: Pillow's name of the colour mode in the file. thumbnail: uint8 [16, 16], grey.
    means, squares: float64 [3], mean of the RGB values in 0..1 and of their squares.
    """

    digest: bytes | None = None
    error: str | None = None
    mode: str = ""
    format: str = ""
    width: int = 0
    height: int = 0
    thumbnail: np.ndarray | None = None
    means: np.ndarray = field(default_factory=lambda: np.zeros(3))
    squares: np.ndarray = field(default_factory=lambda: np.zeros(3))


def examine(split: Split, *, num_threads: int, advance: Callable[[int], None] = lambda _: None) -> list[Facts]:
    """Return the facts of every image of a split, in its order.

    Decoding runs in `num_threads` threads (Pillow lets others run meanwhile). advance: told how many images are done
    since the last call.
    """
    positions = range(len(split))
    return list(of_each(lambda i: _examine_one(split, i), positions, split, num_threads=num_threads, advance=advance))


def of_each(
    function: Callable[[int], _Found],
    positions: Sequence[int],
    split: Split,
    *,
    num_threads: int,
    advance: Callable[[int], None],
    patience: Patience | None = None,
) -> Iterator[_Found]:
    """Yield what `function` returns for each of `positions` of a split, in their order; threads as `examine`'s.

    Raises LostError where some images are not there within `patience`.
    """
    parts = [positions[start : start + _AT_A_TIME] for start in range(0, len(positions), _AT_A_TIME)]
    to_ask, asked = iter(parts), deque[AsyncResult[list[_Found]]]()
    with ThreadPool(num_threads if split.source.thread_safe else 1) as pool:  # its threads do not outlive the program
        for part in parts:
            # With few asked for ahead, what has been found does not pile up.
            for next_part in itertools.islice(to_ask, 2 * num_threads - len(asked)):
                asked.append(pool.apply_async(_each, (function, next_part)))
            found = read_in_time(asked.popleft(), f"images from {split.identity(part[0])} on", patience)
            yield from found
            advance(len(found))
        pool.close()
        pool.join()


def _each(function: Callable[[int], _Found], part: Sequence[int]) -> list[_Found]:
    return [function(one) for one in part]


def _examine_one(split: Split, position: int) -> Facts:
    try:
        content = split.read(position)
    except DataError as error:
        return Facts(error=error.problems[0].what)
    except OSError as error:
        return Facts(error=f"cannot be read: {error}")
    digest = _digest(content)
    try:
        image = decode(content, split.identity(position))
    except DataError as error:
        return Facts(digest, error.problems[0].what)
    # An image that a source gives has no format.
    mode, kind = header(content, "")[:2] if isinstance(content, bytes) else (content.mode, "")
    counts = np.array(image.histogram(), dtype=np.float64).reshape(3, 256) / (image.width * image.height)
    small = image.convert("L").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BICUBIC)
    sums = counts @ _LEVELS, counts @ _LEVELS**2
    return Facts(digest, None, mode, kind, image.width, image.height, np.asarray(small), *sums)


def _digest(content: bytes | Image.Image) -> bytes:
    if isinstance(content, bytes):
        return hashlib.sha256(content).digest()
    about = f"{content.mode} {content.size}".encode()
    return hashlib.sha256(about + content.tobytes()).digest()
