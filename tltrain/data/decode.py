"""Decode an image to RGB by stated rules, or say which sample is damaged."""

from __future__ import annotations

import contextlib
import io
import logging
import struct
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from tltrain.errors import DataError, Problem

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif"})
MAX_PIXELS = 178_956_970
"""Largest width * height that is decoded: half a gibibyte of RGB."""

# EXIF orientation -> what turns the pixels upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_STARTS = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n", "PNG"),
    (b"RIFF", "WEBP"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"GIF8", "GIF"),
)
# What Pillow logs of damaged images stands in the error as well; without a handler it goes to stderr line by line.
logging.getLogger("PIL").addHandler(logging.NullHandler())

_DAMAGED_EXIF = (OSError, SyntaxError, ValueError, EOFError, LookupError, ArithmeticError, TypeError, struct.error)


def decode(content: bytes | Image.Image, identity: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return an image as RGB.

    content: an encoded JPEG, PNG, WEBP, BMP, TIFF or GIF (told by its bytes, not its name), or an image.
    identity: the sample's id, for errors.
    max_pixels: largest width * height that is decoded.

    - EXIF orientation is applied, where it can be read; of an animation the first frame is taken.
    - Grey becomes three equal channels; 1-bit becomes 0 and 255; palettes and CMYK are converted.
    - Transparency (alpha, or a transparent palette entry or colour) is laid over white.
    - 16-bit grey is scaled to 8 bits (v / 257, rounded), not clipped; 32-bit integers within 0..65535
      likewise.
    - Float within 0..1 is scaled by 255, float within 0..255 is rounded; other ranges are refused.

    Raises DataError naming the sample if it is empty, truncated, not an image, or larger than `max_pixels`.
    """
    with _told(content, identity):
        return _to_rgb(_open(content, max_pixels))


def header(content: bytes, identity: str) -> tuple[str, str, tuple[int, int]]:
    """Return mode, format and size (width, height, not turned) of an encoded image without decoding its pixels.

    Raises DataError naming the sample if it is none.
    """
    with _told(content, identity), Image.open(io.BytesIO(content), formats=FORMATS) as image:
        return image.mode, image.format or "", image.size


@contextlib.contextmanager
def _told(content: bytes | Image.Image, identity: str) -> Iterator[None]:
    """Turn what goes wrong with an image into a DataError."""
    try:
        # Pillow warns of odd metadata, which changes no pixel, and of large images, which are checked.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # damaged content makes Pillow's decoders raise whatever they stumble over
        encoded = content if isinstance(content, bytes) else b""
        what = "is empty (0 bytes)" if content == b"" else f"cannot be decoded: {_reason(error, encoded)}"
        action = f"Replace or remove it; readable are {', '.join(FORMATS)}"
        raise DataError(Problem(what, action, where=identity)) from error


def _reason(error: Exception, content: bytes) -> str:
    # Pillow's own text names the object in memory, which is another one each time.
    if isinstance(error, UnidentifiedImageError):
        kind = next((kind for start, kind in _STARTS if content.startswith(start)), None)
        return "it is no image of a known format" if kind is None else f"it begins like {kind} and is damaged"
    if isinstance(error, Image.DecompressionBombError):
        return f"it has more than the {MAX_PIXELS:,} pixels allowed"
    if isinstance(error, MemoryError):
        return "it does not fit the memory"
    return str(error) or type(error).__name__


def _open(content: bytes | Image.Image, max_pixels: int) -> Image.Image:
    image = content if isinstance(content, Image.Image) else Image.open(io.BytesIO(content), formats=FORMATS)
    width, height = image.size
    if width * height > max_pixels:
        raise ValueError(f"its {width} x {height} pixels are more than the {max_pixels:,} allowed")
    image.load()
    turn = _turn(image)
    return image if turn is None else image.transpose(turn)


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Return how EXIF says to turn the image; damaged EXIF says nothing, for the pixels are whole all the same."""
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except _DAMAGED_EXIF:
        return None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return _from_integers(image).convert("RGB")
    if image.mode == "F":
        return _from_floats(image).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_integers(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"integers from {values.min()} to {values.max()} are not within 0..65535")
    values = values.astype(np.uint32)
    values += 128
    values //= 257
    return Image.fromarray(values.astype(np.uint8))


def _from_floats(image: Image.Image) -> Image.Image:
    values = np.asarray(image, dtype=np.float64)
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 255):
        raise ValueError(f"floats from {low} to {high} are neither within 0..1 nor within 0..255")
    return Image.fromarray(np.rint(values * 255 if high <= 1 else values).astype(np.uint8))
