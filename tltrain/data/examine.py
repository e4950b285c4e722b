"""Look at every image of a split once: its size, mode and format, its pixels' sums, a digest and a thumbnail."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from tltrain.data.base import Split
from tltrain.data.decode import FORMATS, decode
from tltrain.errors import DataError

THUMBNAIL = 16
"""Side of the grey thumbnails that near duplicates are found by, in pixels."""
_AT_A_TIME = 32
_LEVELS = np.arange(256) / 255


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
    facts: list[Facts] = []
    starts = range(0, len(split), _AT_A_TIME)
    with ThreadPoolExecutor(num_threads if split.source.thread_safe else 1) as executor:
        for part in _in_order(executor, lambda start: _examine_some(split, start), starts, 2 * num_threads):
            facts += part
            advance(len(part))
    return facts


def _in_order(
    executor: ThreadPoolExecutor, function: Callable[[int], list[Facts]], arguments: Sequence[int], ahead: int
) -> Iterator[list[Facts]]:
    """Yield results in order, with at most `ahead` calls under way, so that an interrupt need not wait for all."""
    waiting: list[Future[list[Facts]]] = []
    for argument in arguments:
        waiting.append(executor.submit(function, argument))
        if len(waiting) >= ahead:
            yield waiting.pop(0).result()
    for future in waiting:
        yield future.result()


def _examine_some(split: Split, start: int) -> list[Facts]:
    return [_examine_one(split, position) for position in range(start, min(start + _AT_A_TIME, len(split)))]


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
    mode, kind = _header(content)
    counts = np.array(image.histogram(), dtype=np.float64).reshape(3, 256) / (image.width * image.height)
    small = image.convert("L").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BICUBIC)
    sums = counts @ _LEVELS, counts @ _LEVELS**2
    return Facts(digest, None, mode, kind, image.width, image.height, np.asarray(small), *sums)


def _digest(content: bytes | Image.Image) -> bytes:
    if isinstance(content, bytes):
        return hashlib.sha256(content).digest()
    about = f"{content.mode} {content.size}".encode()
    return hashlib.sha256(about + content.tobytes()).digest()


def _header(content: bytes | Image.Image) -> tuple[str, str]:
    """Return mode and format as they stand in the file; an image that a source gives has no format."""
    if not isinstance(content, bytes):
        return content.mode, ""
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        return image.mode, image.format or ""
