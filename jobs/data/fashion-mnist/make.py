"""Draws the subset of Fashion-MNIST that ships with the project, into train.parquet and test.parquet.

Needs the full data set as Debian packages it (`apt-get install dataset-fashion-mnist`). The same data, seed
and library versions give the same bytes.
"""

from __future__ import annotations

import gzip
import io
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SOURCE_DIR = Path("/usr/share/datasets/fashion-mnist")
TARGET_DIR = Path(__file__).resolve().parent
SEED = 0
IMAGES_PER_CLASS = {"train": 200, "test": 50}
FILE_PREFIX = {"train": "train", "test": "t10k"}
CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def read_idx(path: Path) -> np.ndarray:
    """Return the bytes of a gzipped IDX file in their shape: images uint8 [N, 28, 28], labels [N]."""
    data = gzip.decompress(path.read_bytes())
    if data[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path} is not an IDX file of unsigned bytes")
    num_dims = data[3]
    shape = np.frombuffer(data, dtype=">u4", count=num_dims, offset=4)
    return np.frombuffer(data, dtype=np.uint8, offset=4 + 4 * num_dims).reshape(shape)


def draw(labels: np.ndarray, per_class: int, rng: np.random.Generator) -> np.ndarray:
    """Return the positions of `per_class` labels of each class, ascending, so that the classes stay mixed."""
    chosen = [rng.permutation(np.flatnonzero(labels == label))[:per_class] for label in range(len(CLASSES))]
    return np.sort(np.concatenate(chosen))


def encode_png(pixels: np.ndarray) -> bytes:
    """Return a grey image, uint8 [28, 28], as the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def make_table(images: np.ndarray, labels: np.ndarray) -> pa.Table:
    """Return columns `image` (PNG bytes) and `label` (class name); metadata lists the classes in order."""
    schema = pa.schema(
        [pa.field("image", pa.binary(), nullable=False), pa.field("label", pa.string(), nullable=False)],
        metadata={b"tltrain.classes": json.dumps(CLASSES).encode()},
    )
    columns = {
        "image": [encode_png(image) for image in images],
        "label": [CLASSES[label] for label in labels],
    }
    return pa.Table.from_pydict(columns, schema=schema)


def make_split(split: str) -> None:
    """Draw one split and write its Parquet file."""
    images = read_idx(SOURCE_DIR / f"{FILE_PREFIX[split]}-images-idx3-ubyte.gz")
    labels = read_idx(SOURCE_DIR / f"{FILE_PREFIX[split]}-labels-idx1-ubyte.gz")
    chosen = draw(labels, IMAGES_PER_CLASS[split], np.random.default_rng(SEED))
    path = TARGET_DIR / f"{split}.parquet"
    # PNG bytes do not compress any further, and labels are dictionary-encoded.
    pq.write_table(make_table(images[chosen], labels[chosen]), path, compression="none", use_dictionary=["label"])
    print(f"{path}: {len(chosen)} images, {path.stat().st_size:,} bytes")


def main() -> None:
    """Write both splits."""
    if not SOURCE_DIR.is_dir():
        sys.exit(f"{SOURCE_DIR} is missing. Install it with: apt-get install dataset-fashion-mnist")
    for split in IMAGES_PER_CLASS:
        make_split(split)


if __name__ == "__main__":
    main()
