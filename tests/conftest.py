"""Settings and fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Set before torch or ray is imported. The networks here are too small to gain from threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

PROJECT_DIR = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def project_dir() -> Path:
    """The project's folder, with jobs/ and tltrain/ in it."""
    return PROJECT_DIR


@pytest.fixture(scope="session")
def fashion_dir(project_dir: Path) -> Path:
    """The shipped subset of Fashion-MNIST: train.parquet (2,000 images) and test.parquet (500)."""
    return project_dir / "jobs" / "data" / "fashion-mnist"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` where torch sees no CUDA device."""
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if gpu_items and not _has_cuda():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def _has_cuda() -> bool:
    import torch  # takes seconds, so only where a test needs the answer

    return torch.cuda.is_available()
