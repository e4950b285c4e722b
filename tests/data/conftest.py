"""Real small images (scikit-learn's digits) in the forms that sources read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_helpers import encode
from PIL import Image
from sklearn.datasets import load_digits

NUM_DIGITS = 60


@pytest.fixture(scope="session")
def digits() -> list[tuple[Image.Image, int]]:
    """60 images of handwritten digits 0..2, 8 x 8 grey enlarged to 16 x 16, with their classes."""
    images, targets = (np.asarray(array) for array in load_digits(n_class=3, return_X_y=True))
    pixels = (images.reshape(-1, 8, 8) * 15.9).astype(np.uint8).repeat(2, 1).repeat(2, 2)
    return [(Image.fromarray(pixels[i]), int(targets[i])) for i in range(NUM_DIGITS)]


@pytest.fixture(scope="session")
def digit_folder(digits: list[tuple[Image.Image, int]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the class folders zero, one and two, PNG and JPEG in turn."""
    root = tmp_path_factory.mktemp("digits")
    for i, (image, target) in enumerate(digits):
        folder = root / ("zero", "one", "two")[target]
        folder.mkdir(exist_ok=True)
        kind = ("PNG", "JPEG")[i % 2]
        (folder / f"{i:03d}.{kind.lower()}").write_bytes(encode(image, kind))
    return root


@pytest.fixture(scope="session")
def digit_parquet(digits: list[tuple[Image.Image, int]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Parquet file with PNG bytes and integer labels, without class names."""
    path = tmp_path_factory.mktemp("tables") / "digits.parquet"
    columns = {"image": [encode(image) for image, _ in digits], "label": [target for _, target in digits]}
    pq.write_table(pa.table(columns), path)
    return path
