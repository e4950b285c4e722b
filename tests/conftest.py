"""Settings and fixtures shared by all tests."""

from __future__ import annotations

import logging
import os
import subprocess
import urllib.request
import uuid
from collections.abc import Iterator
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


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Undo what a test that calls a program's main function does to the log, so that no other test sees it."""
    logger = logging.getLogger("tltrain")
    level, handlers = logger.level, list(logger.handlers)
    yield
    logger.setLevel(level)
    logger.handlers[:] = handlers


@pytest.fixture(scope="session")
def fashion_dir(project_dir: Path) -> Path:
    """The shipped subset of Fashion-MNIST: train.parquet (2,000 images) and test.parquet (500)."""
    return project_dir / "jobs" / "data" / "fashion-mnist"


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """`127.0.0.1:PORT` of a server that speaks S3's protocol, with dummy keys in the environment."""
    from moto.server import ThreadedMotoServer

    keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    with pytest.MonkeyPatch.context() as patch:
        for key in keys:
            patch.setenv(key, "testing")
        logging.getLogger("werkzeug").setLevel(logging.WARNING)  # else a line per request
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        yield "{}:{}".format(*server.get_host_and_port())
        server.stop()


@pytest.fixture
def s3_uri(s3_endpoint: str) -> str:
    """Address of an empty folder in a bucket of its own."""
    bucket = f"bucket-{uuid.uuid4().hex[:12]}"
    request = urllib.request.Request(f"http://{s3_endpoint}/{bucket}", method="PUT")
    urllib.request.urlopen(request).close()
    return f"s3://{bucket}/runs?scheme=http&endpoint_override={s3_endpoint}"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("may not mount a file system here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` where torch sees no CUDA device."""
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if gpu_items and not _has_cuda():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def _has_cuda() -> bool:
    import torch  # takes seconds, so only where a test needs the answer

    return torch.cuda.is_available()
