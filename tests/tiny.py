"""Small real data and specs for tests of training: hand-written digits, and networks that run in seconds."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from sklearn.datasets import load_digits

from tltrain.spec.schema import Spec


def write_digits(folder: Path, *, train: int = 96, test: int = 45) -> None:
    """Write train.parquet and test.parquet of scikit-learn's 8 x 8 digits as PNG bytes into `folder`."""
    digits: Any = load_digits()
    folder.mkdir(parents=True, exist_ok=True)
    for name, start, count in (("train", 0, train), ("test", 1000, test)):
        images = [_png(image) for image in digits.images[start : start + count]]
        labels = [str(label) for label in digits.target[start : start + count]]
        table = pa.table({"image": pa.array(images, pa.binary()), "label": labels})
        classes = json.dumps([str(digit) for digit in range(10)])
        pq.write_table(table.replace_schema_metadata({"tltrain.classes": classes}), folder / f"{name}.parquet")


def _png(image: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray((image * 15.9).astype("uint8")).save(buffer, format="PNG")
    return buffer.getvalue()


def tiny_spec(folder: Path, changes: dict[str, Any] | None = None, *, name: str = "tiny") -> Spec:
    """Return a spec on the digits in `folder` (written there if missing) that trains in about a second.

    `changes` maps dotted keys to values. The run folder is `folder/runs/NAME`.
    """
    if not (folder / "train.parquet").exists():
        write_digits(folder)
    values: dict[str, Any] = {
        "name": name,
        "model": {"name": "shufflenet_v2_x0_5", "weights": "random", "freeze_depth": 2},
        "data": {
            "train": str(folder / "train.parquet"),
            "val": 0.2,
            "test": str(folder / "test.parquet"),
            "image_size": 32,
            "resize_size": 32,
            "num_loader_workers": 0,
        },
        "optim": {"learning_rate": 0.05},
        "train": {"epochs": 2, "batch_size": 16},
        "storage": str(folder / "runs"),
    }
    for key, value in (changes or {}).items():
        *path, last = key.split(".")
        section = values
        for part in path:
            section = section.setdefault(part, {})
        section[last] = value
    return Spec.model_validate(values)
