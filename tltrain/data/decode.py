"""Decode an image to RGB by stated rules, or say which sample is damaged."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from tltrain.errors import DataError, Problem

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif"})
MAX_PIXELS = 178_956_970
"""Largest width * height that is decoded: half a gibibyte of RGB."""

# Everything that Pillow's decoders raise for damaged content (OSError covers unknown formats and truncation).
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, LookupError, OverflowError, TypeError, struct.error,
            zlib.error, Image.DecompressionBombError)  # fmt: skip


def decode(content: bytes | Image.Image, identity: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return an image as RGB.

    content: an encoded JPEG, PNG, WEBP, BMP, TIFF or GIF (told by its bytes, not its name), or an image.
    identity: the sample's id, for errors.
    max_pixels: largest width * height that is decoded.

    - EXIF orientation is applied; of an animation the first frame is taken.
    - Grey becomes three equal channels; 1-bit becomes 0 and 255; palettes and CMYK are converted.
    - Transparency (alpha, or a transparent palette entry or colour) is laid over white.
    - 16-bit grey is scaled to 8 bits (v / 257, rounded), not clipped; 32-bit integers within 0..65535
      likewise.
    - Float within 0..1 is scaled by 255, float within 0..255 is rounded; other ranges are refused.

    Raises DataError naming the sample if it is empty, truncated, not an image, or larger than `max_pixels`.
    """
    try:
        # Pillow warns of odd metadata, which changes no pixel, and of large images, which are checked.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _to_rgb(_open(content, max_pixels))
    except _DAMAGED as error:
        what = "is empty (0 bytes)" if content == b"" else f"cannot be decoded: {_reason(error)}"
        action = f"Replace or remove it; readable are {', '.join(FORMATS)}"
        raise DataError(Problem(what, action, where=identity)) from error


def _reason(error: Exception) -> str:
    # Pillow's own text names the object in memory, which is another one each time.
    return "it is no image of a known format" if isinstance(error, UnidentifiedImageError) else str(error)


def _open(content: bytes | Image.Image, max_pixels: int) -> Image.Image:
    image = content if isinstance(content, Image.Image) else Image.open(io.BytesIO(content), formats=FORMATS)
    width, height = image.size
    if width * height > max_pixels:
        raise ValueError(f"{width} x {height} pixels are more than the {max_pixels} allowed")
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    return image


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
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"integers from {values.min()} to {values.max()} are not within 0..65535")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _from_floats(image: Image.Image) -> Image.Image:
    values = np.asarray(image, dtype=np.float64)
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 255):
        raise ValueError(f"floats from {low} to {high} are neither within 0..1 nor within 0..255")
    return Image.fromarray(np.rint(values * 255 if high <= 1 else values).astype(np.uint8))
