"""CIFAR-10's files in their own format, with random pixels, where torchvision takes them for the real ones."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
from torchvision import datasets

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
IMAGES_PER_FILE = 20


def write_cifar(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the six batches and the class names below `root`, and let torchvision expect their checksums."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    generator = np.random.default_rng(0)
    sums = {}
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        pixels = generator.integers(0, 256, (IMAGES_PER_FILE, 3072), dtype=np.uint8)
        content = {"data": pixels, "labels": [i % 10 for i in range(IMAGES_PER_FILE)], "batch_label": name}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    meta = pickle.dumps({"label_names": CLASSES}, protocol=2)
    (folder / "batches.meta").write_bytes(meta)
    monkeypatch.setattr(
        datasets.CIFAR10, "train_list", [[f"data_batch_{i}", sums[f"data_batch_{i}"]] for i in range(1, 6)]
    )
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(datasets.CIFAR10, "meta", {**datasets.CIFAR10.meta, "md5": hashlib.md5(meta).hexdigest()})
