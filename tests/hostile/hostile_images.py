"""Hostile, damaged and odd image files, each made by a few lines: no binary stands in the repository."""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
PHOTO = Image.fromarray(np.stack([RAMP, RAMP.T, 255 - RAMP], axis=2))
RED, BLUE = Image.new("RGB", (16, 16), "red"), Image.new("RGB", (16, 16), "blue")
IMAGES: dict[str, Callable[[], bytes]] = {}
"""What a case is called -> what makes its bytes."""


def case(make: Callable[[], bytes]) -> Callable[[], bytes]:
    """Add a case that is called like the function."""
    IMAGES[make.__name__] = make
    return make


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.copy().save(buffer, kind, **options)  # Pillow leaves settings of an earlier file in an image
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *, bits: int = 8, colour: int = 0, pixels: bytes = b"", before: bytes = b"") -> bytes:
    """A PNG file with what its header claims, whatever is in it; `before`: chunks in front of the pixels."""
    header = struct.pack(">2I5B", width, height, bits, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + before + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def with_sizes(jpeg: bytes, width: int, height: int) -> bytes:
    """A JPEG file whose header claims another size."""
    at = next(i for i in range(len(jpeg)) if jpeg[i] == 0xFF and jpeg[i + 1] in (0xC0, 0xC2))
    return jpeg[: at + 5] + struct.pack(">2H", height, width) + jpeg[at + 9 :]


def with_exif(body: bytes) -> bytes:
    """A JPEG of a red upper and a blue lower half with EXIF data as they are given."""
    data = b"Exif\0\0" + body
    segment = b"\xff\xe1" + struct.pack(">H", len(data) + 2) + data
    image = Image.new("RGB", (16, 32), "red")
    image.paste("blue", (0, 16, 16, 32))
    content = encoded(image, "JPEG", quality=95)
    return content[:2] + segment + content[2:]


def ifd(*entries: tuple[int, int, int, bytes], following: int = 0) -> bytes:
    """A TIFF directory in little-endian bytes; entries: tag, type, count and four bytes of value or offset."""
    packed = b"".join(struct.pack("<HHI", tag, kind, count) + value for tag, kind, count, value in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + packed + struct.pack("<I", following)


def bmp(width: int, height: int, pixels: bytes) -> bytes:
    """A BMP file of 24 bits."""
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, len(pixels), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(pixels), 0, 0, 54) + info + pixels


JPEG, PNG = encoded(PHOTO, "JPEG"), encoded(PHOTO, "PNG")


# Cut short, empty, something else


@case
def zero_bytes() -> bytes:
    return b""


@case
def jpeg_cut() -> bytes:
    return JPEG[: len(JPEG) * 9 // 10]


@case
def jpeg_progressive_cut() -> bytes:
    content = encoded(PHOTO.resize((128, 128)), "JPEG", progressive=True)
    return content[: len(content) // 2]


@case
def jpeg_header_alone() -> bytes:
    return JPEG[:10]


@case
def png_cut() -> bytes:
    return PNG[: len(PNG) // 2]


@case
def png_without_end() -> bytes:
    return PNG[:-12]


@case
def png_without_pixels() -> bytes:
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">2I5B", 4, 4, 8, 0, 0, 0, 0)) + chunk(b"IEND", b"")


@case
def png_with_too_few_pixels() -> bytes:
    return png(4, 4, pixels=b"\0\1\2\3\4")


@case
def gif_cut() -> bytes:
    content = encoded(PHOTO, "GIF")
    return content[: len(content) // 2]


@case
def webp_cut() -> bytes:
    content = encoded(PHOTO, "WEBP", lossless=True)
    return content[: len(content) // 2]


@case
def bmp_cut() -> bytes:
    return bmp(16, 16, b"\0" * 100)


@case
def tiff_cut() -> bytes:
    content = encoded(PHOTO, "TIFF", compression="tiff_lzw")
    return content[: len(content) // 2]


@case
def text() -> bytes:
    return b"<html><title>404 not found</title></html>"


@case
def text_in_utf16() -> bytes:
    return "nothing to see".encode("utf-16")


@case
def zip_archive() -> bytes:
    return b"PK\x03\x04" + b"\0" * 60


@case
def gzipped_jpeg() -> bytes:
    return gzip.compress(JPEG, mtime=0)


@case
def pickle_canary() -> bytes:
    return b"cos\nsystem\n(S'touch /tmp/tltrain-canary'\ntR."


@case
def svg() -> bytes:
    return b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'


@case
def postscript() -> bytes:
    return b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%touch /tmp/tltrain-canary) (w) file\n%%EOF\n"


@case
def ppm() -> bytes:
    return encoded(PHOTO, "PPM")


@case
def icon() -> bytes:
    return encoded(PHOTO, "ICO")


@case
def heic_header() -> bytes:
    return b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 64


@case
def only_ff() -> bytes:
    return b"\xff" * 4096


# Too large, zero, contradicting


@case
def png_of_50000_by_50000() -> bytes:
    return png(50_000, 50_000)


@case
def png_just_too_large() -> bytes:
    return png(178_956_971, 1)


@case
def png_of_no_width() -> bytes:
    return png(0, 4)


@case
def jpeg_of_no_height() -> bytes:
    return with_sizes(JPEG, 16, 0)


@case
def jpeg_of_65535_by_65535() -> bytes:
    return with_sizes(JPEG, 65_535, 65_535)


@case
def gif_of_65535_by_65535() -> bytes:
    content = encoded(RED.convert("P"), "GIF")
    return content[:6] + b"\xff\xff\xff\xff" + content[10:]


@case
def bmp_of_no_height() -> bytes:
    return bmp(4, 0, b"\0" * 48)


@case
def tiff_of_many_strips() -> bytes:
    return ifd((256, 4, 1, b"\4\0\0\0"), (257, 4, 1, b"\4\0\0\0"), (273, 4, 0x7FFFFFFF, b"\0\0\0\0"))


@case
def tiff_that_follows_itself() -> bytes:
    return ifd((256, 4, 1, b"\4\0\0\0"), following=8)


@case
def png_text_bomb() -> bytes:
    return png(1, 1, pixels=b"\0\0", before=chunk(b"zTXt", b"a\0\0" + zlib.compress(b"\0" * 50_000_000, 9)))


@case
def png_pixel_bomb() -> bytes:
    return png(4, 4, pixels=(b"\0" + b"\x80" * 4) * 4 + b"\0" * 20_000_000)


@case
def png_with_a_wrong_checksum() -> bytes:
    at = PNG.index(b"IDAT")
    length = struct.unpack(">I", PNG[at - 4 : at])[0]
    return PNG[: at + 4 + length] + b"\0\0\0\0" + PNG[at + 8 + length :]


@case
def jpeg_with_noise_inside() -> bytes:
    return JPEG[:300] + b"\xff\xd9\xff\xc4\x00\x01" + JPEG[306:]


# Odd and good


@case
def jpeg_with_bytes_behind_it() -> bytes:
    return encoded(RED, "JPEG") + b"trailing bytes" * 100


@case
def jpeg_without_its_last_two_bytes() -> bytes:
    return encoded(RED, "JPEG")[:-2]


@case
def jpeg_grey() -> bytes:
    return encoded(Image.new("L", (16, 16), 77), "JPEG")


@case
def jpeg_cmyk_of_adobe() -> bytes:
    return encoded(RED.convert("CMYK"), "JPEG")


@case
def jpeg_of_several_pictures() -> bytes:
    return encoded(RED, "MPO", save_all=True, append_images=[BLUE.copy()])


@case
def jpeg_with_a_broken_colour_profile() -> bytes:
    return encoded(RED, "JPEG", icc_profile=b"no profile at all")


@case
def jpeg_of_one_pixel() -> bytes:
    return encoded(Image.new("RGB", (1, 1), "red"), "JPEG")


@case
def png_of_one_bit() -> bytes:
    return encoded(Image.fromarray(RAMP > 127), "PNG")


@case
def png_of_two_bits() -> bytes:
    return png(4, 1, bits=2, pixels=b"\0\x1b")


@case
def png_of_16_bits() -> bytes:
    return encoded(Image.fromarray(np.full((4, 4), 51_400, np.uint16)), "PNG")


@case
def png_of_16_bits_and_three_channels() -> bytes:
    return png(2, 1, bits=16, colour=2, pixels=b"\0" + struct.pack(">6H", *([51_400] * 6)))


@case
def png_grey_with_alpha() -> bytes:
    return encoded(Image.new("LA", (4, 4), (0, 128)), "PNG")


@case
def png_clear() -> bytes:
    return encoded(Image.new("RGBA", (4, 4), (255, 0, 0, 0)), "PNG")


@case
def png_palette_with_transparency() -> bytes:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    return encoded(image, "PNG", transparency=1)


@case
def png_with_a_clear_colour() -> bytes:
    return encoded(RED, "PNG", transparency=(255, 0, 0))


@case
def png_animated() -> bytes:
    return encoded(RED, "PNG", save_all=True, append_images=[BLUE.copy()])


@case
def png_interlaced() -> bytes:
    header = chunk(b"IHDR", struct.pack(">2I5B", 1, 1, 8, 0, 0, 0, 1))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0\x2a")) + chunk(b"IEND", b"")


@case
def png_with_text_that_lies() -> bytes:
    about = PngImagePlugin.PngInfo()
    about.add_text("XML:com.adobe.xmp", '<x tiff:Orientation="99"/>')
    return encoded(RED, "PNG", pnginfo=about)


@case
def gif_animated() -> bytes:
    return encoded(RED, "GIF", save_all=True, append_images=[BLUE.copy()])


@case
def gif_clear() -> bytes:
    return encoded(Image.new("P", (4, 4), 0), "GIF", transparency=0)


@case
def webp_animated() -> bytes:
    return encoded(RED, "WEBP", save_all=True, append_images=[BLUE.copy()], lossless=True)


@case
def webp_clear() -> bytes:
    return encoded(Image.new("RGBA", (4, 4), (9, 9, 9, 0)), "WEBP", lossless=True)


@case
def bmp_from_top_to_bottom() -> bytes:
    return bmp(2, -2, (b"\0\0\xff" * 2 + b"\0\0") + (b"\xff\0\0" * 2 + b"\0\0"))


@case
def tiff_of_several_pages() -> bytes:
    return encoded(RED, "TIFF", save_all=True, append_images=[BLUE.copy()])


@case
def tiff_of_16_bits_big_endian() -> bytes:
    entries = [(256, 2), (257, 1), (258, 16), (259, 1), (262, 1), (277, 1), (278, 1)]
    packed = [struct.pack(">HHIHH", tag, 3, 1, value, 0) for tag, value in entries]
    packed.insert(5, struct.pack(">HHII", 273, 4, 1, 8))
    packed.append(struct.pack(">HHII", 279, 4, 1, 4))
    return b"MM\0*\0\0\0\x0c" + struct.pack(">2H", 51_400, 51_400) + struct.pack(">H", 9) + b"".join(packed) + b"\0" * 4


@case
def tiff_cmyk() -> bytes:
    return encoded(RED.convert("CMYK"), "TIFF")


@case
def tiff_lab() -> bytes:
    return encoded(Image.new("LAB", (4, 4), (200, 0, 0)), "TIFF")


@case
def tiff_of_floats() -> bytes:
    return encoded(Image.fromarray(np.full((4, 4), 0.5, np.float32)), "TIFF")


@case
def tiff_of_large_floats() -> bytes:
    return encoded(Image.fromarray(np.full((4, 4), 1e9, np.float32)), "TIFF")


@case
def tiff_not_a_number() -> bytes:
    return encoded(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "TIFF")


@case
def tiff_of_32_bits_below_zero() -> bytes:
    return encoded(Image.fromarray(np.full((4, 4), -5, np.int32)), "TIFF")


# EXIF


def _orientation(kind: int, count: int, value: bytes) -> bytes:
    return with_exif(ifd((0x0112, kind, count, value)))


@case
def exif_upside_down() -> bytes:
    return _orientation(3, 1, b"\3\0\0\0")


@case
def exif_on_its_side() -> bytes:
    return _orientation(3, 1, b"\6\0\0\0")


@case
def exif_orientation_of_99() -> bytes:
    return _orientation(3, 1, b"\x63\0\0\0")


@case
def exif_orientation_as_text() -> bytes:
    return _orientation(2, 4, b"six\0")


@case
def exif_orientation_as_two_numbers() -> bytes:
    return _orientation(3, 2, b"\6\0\6\0")


@case
def exif_orientation_as_a_fraction_by_zero() -> bytes:
    return with_exif(ifd((0x0112, 5, 1, struct.pack("<I", 26))) + struct.pack("<II", 6, 0))


@case
def exif_orientation_outside_the_file() -> bytes:
    return _orientation(5, 1, b"\xff\xff\xff\x7f")


@case
def exif_of_unknown_type() -> bytes:
    return _orientation(99, 1, b"\6\0\0\0")


@case
def exif_cut() -> bytes:
    return with_exif(b"II*\0\x08\0\0\0\x05")


@case
def exif_of_noise() -> bytes:
    return with_exif(b"\x13\x37" * 40)


@case
def exif_that_follows_itself() -> bytes:
    return with_exif(ifd((0x8769, 4, 1, b"\x08\0\0\0"), following=8))
