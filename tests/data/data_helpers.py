"""Small helpers of the data tests."""

from __future__ import annotations

import io

from PIL import Image

from tltrain.spec.schema import DataSpec


def encode(image: Image.Image, image_format: str = "PNG") -> bytes:
    """Return the bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, image_format)
    return buffer.getvalue()


def spec(train: object = "unused", **settings: object) -> DataSpec:
    """Return a data section without validation split."""
    return DataSpec.model_validate({"train": str(train), "val": None, **settings})
