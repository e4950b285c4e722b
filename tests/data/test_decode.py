"""Decoding: every kind of image becomes RGB by its rule, every damaged one is named."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from data_helpers import encode
from PIL import Image

from tltrain.data.decode import FORMATS, decode
from tltrain.errors import DataError

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
PHOTO = Image.fromarray(np.stack([RAMP, RAMP.T, 255 - RAMP], axis=2))


def pixels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("image_format", FORMATS)
def test_every_format_is_read_whatever_its_name(image_format: str) -> None:
    result = pixels(decode(encode(PHOTO, image_format), "a.xyz"))
    tolerance = 0 if image_format in ("PNG", "BMP", "TIFF") else 60
    assert np.abs(result.astype(int) - np.asarray(PHOTO)).max() <= tolerance


def test_grey_becomes_three_equal_channels() -> None:
    assert (pixels(decode(encode(Image.fromarray(RAMP)), "x")) == RAMP[..., None]).all()


def test_one_bit_becomes_black_and_white() -> None:
    bits = Image.fromarray(RAMP > 127)
    assert set(np.unique(pixels(decode(encode(bits), "x")))) == {0, 255}


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    values = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    for image_format in ("PNG", "TIFF"):
        result = pixels(decode(encode(Image.fromarray(values), image_format), "x"))
        assert np.abs(result[..., 0] - values / 257).max() <= 0.5


@pytest.mark.parametrize(("scale", "expected"), [(1.0, 255.0), (200.0, 1.0)])
def test_floats_are_scaled_from_0_to_1_or_taken_from_0_to_255(scale: float, expected: float) -> None:
    values = (RAMP / 255 * scale).astype(np.float32)
    result = pixels(decode(encode(Image.fromarray(values), "TIFF"), "x"))
    assert np.abs(result[..., 0] - values * expected).max() <= 0.5


def test_alpha_and_transparent_palette_show_white() -> None:
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    half = Image.new("LA", (4, 4), (0, 128))
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.info["transparency"] = 1
    assert (pixels(decode(encode(clear), "x")) == 255).all()
    assert (pixels(decode(encode(half), "x")) == 127).all()
    assert (pixels(decode(encode(palette), "x")) == 255).all()


def test_palette_and_cmyk_keep_their_colours() -> None:
    red = Image.new("RGB", (8, 8), (255, 0, 0))
    assert (pixels(decode(encode(red.convert("P")), "x")) == (255, 0, 0)).all()
    cmyk = pixels(decode(encode(red.convert("CMYK"), "JPEG"), "x")).astype(int)
    assert np.abs(cmyk - (255, 0, 0)).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    inverse = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Image.Transpose that makes the stored image
    stored = PHOTO if orientation == 1 else PHOTO.transpose(Image.Transpose(inverse[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    stored.save(buffer, "PNG", exif=exif)
    assert (pixels(decode(buffer.getvalue(), "x")) == np.asarray(PHOTO)).all()


def test_one_pixel_is_an_image() -> None:
    assert decode(encode(Image.new("RGB", (1, 1))), "x").size == (1, 1)


def test_first_frame_of_an_animation_is_taken() -> None:
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    assert (pixels(decode(buffer.getvalue(), "x")) == (255, 0, 0)).all()


def huge_png(width: int, height: int) -> bytes:
    """Return a small file that claims to be a huge image."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


JPEG, PNG = encode(PHOTO, "JPEG"), encode(PHOTO)
BAD = {
    "empty": (b"", "0 bytes"),
    "text": (b"<html>404 not found</html>", "cannot be decoded"),
    "truncated jpeg": (JPEG[: len(JPEG) // 2], "(?i)truncated"),
    "truncated png": (PNG[: len(PNG) // 2], "cannot be decoded"),
    "head of a jpeg": (JPEG[:10], "cannot be decoded"),
    "bomb": (huge_png(50_000, 50_000), "pixels"),
    "just too large": (huge_png(178_956_971, 1), "pixels"),
    "not on the list": (encode(PHOTO, "PPM"), "cannot be decoded"),
    "floats beyond 255": (encode(Image.fromarray(RAMP.astype(np.float32) * 9), "TIFF"), "floats"),
    "not a number": (encode(Image.fromarray(np.full((2, 2), np.nan, np.float32)), "TIFF"), "floats"),
}


@pytest.mark.parametrize("name", BAD)
def test_damaged_images_are_named(name: str) -> None:
    content, words = BAD[name]
    with pytest.raises(DataError, match=words) as caught:
        decode(content, "cats/007.jpg")
    assert "cats/007.jpg" in str(caught.value)
    assert "Replace or remove" in str(caught.value)


def mode_or_problem(content: bytes) -> str:
    try:
        return decode(content, "x").mode
    except DataError as error:
        return str(error)


def test_any_flipped_byte_gives_an_image_or_a_data_error() -> None:
    generator = np.random.default_rng(0)
    for image_format in FORMATS:
        content = np.frombuffer(encode(PHOTO, image_format), dtype=np.uint8)
        for _ in range(60):
            damaged = content.copy()
            damaged[generator.integers(len(content), size=4)] = generator.integers(256, size=4)
            assert mode_or_problem(damaged.tobytes()).startswith(("RGB", "x: "))
