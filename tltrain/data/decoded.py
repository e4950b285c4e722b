"""Keep decoded and resized images in shared memory, so that later epochs need not decode them again."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import torch

from tltrain.data.base import Split
from tltrain.data.preprocessing import Preprocessing
from tltrain.spec.schema import DataSpec

BUDGET_BYTES = 512 * 2**20
_SHARED_MEMORY = Path("/dev/shm")
_logger = logging.getLogger(__name__)


class DecodedImages:
    """Images of one split after the deterministic transform, filled as they are first decoded.

    images: uint8 [n, 3, H, W] in shared memory: loader processes write and read it.
    filled: bool [n], kept by the process that owns the loader alone. It marks what it has received and tells
    the loader processes with each request, so that the pipes between them order the writes before the reads.
    """

    def __init__(self, num_images: int, size: int) -> None:
        """Make room for `num_images` of `size` x `size` pixels; memory is taken as it is filled."""
        self.images = torch.empty((num_images, 3, size, size), dtype=torch.uint8).share_memory_()
        self.filled = np.zeros(num_images, dtype=bool)


def plan_decoded_images(split: Split, p: Preprocessing, *, budget_bytes: int = BUDGET_BYTES) -> DecodedImages | None:
    """Return room for a split's images if they fit the budget and half of the free shared memory, else None.

    budget_bytes: this process's share. The log says what was decided and why.
    """
    needed = len(split) * 3 * p.crop_size**2
    free = shutil.disk_usage(_SHARED_MEMORY).free if _SHARED_MEMORY.is_dir() else budget_bytes
    if needed > budget_bytes or needed > free // 2:
        _logger.info(
            "images are decoded in every epoch: %d of them need %.0f MiB, more than the budget of %.0f MiB "
            "or half of the %.0f MiB of free shared memory",
            len(split), needed / 2**20, budget_bytes / 2**20, free / 2**20,
        )  # fmt: skip
        return None
    _logger.info("%d images are decoded once and kept in %.0f MiB of memory", len(split), needed / 2**20)
    return DecodedImages(len(split), p.crop_size)


def is_deterministic(data: DataSpec) -> bool:
    """Return whether training images are the same in every epoch, so that keeping them is exact."""
    return data.augment == "none" and not data.mixup and not data.cutmix
