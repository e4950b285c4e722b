"""Images on which an exported model is compared with the run's own: the run's test images wherever they are at hand."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tltrain.data.base import Source, Split
from tltrain.data.decode import decode
from tltrain.data.preprocessing import Preprocessing
from tltrain.data.splits import load_splits
from tltrain.data.transforms import evaluation_transform
from tltrain.errors import SpecError, TltrainError
from tltrain.export.trained import Trained
from tltrain.inference.images import open_images

NUM_IMAGES = 16

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """Images as the network's graph takes them."""

    images: Tensor
    """uint8 [n, 3, crop_size, crop_size], RGB, resized and cropped."""
    origin: str
    """For people: what they are."""


def find_sample(trained: Trained, data: str | None) -> Sample:
    """Return images to check an export on: those that `data` names (see `open_images`), else those it was tested on.

    Where the run's images cannot be read here, noise is taken instead, and a warning says so. Raises DataError or
    SpecError where images of `data` cannot be read.
    """
    preprocessing = trained.network.preprocessing
    if data is not None:
        column = trained.place.data.image_column if trained.place.data is not None else None
        source = open_images([data], run_column=column).source
        return Sample(_read(source, np.arange(len(source)), preprocessing), data)
    try:
        split, name = _split_of_run(trained)
        return Sample(_read(split.source, split.indices, preprocessing), f"the run's {name} images")
    except TltrainError as error:
        _log.warning(
            "the run's images cannot be read here (%s), so the export is checked on noise. Name images with --data",
            str(error).partition("\n")[0].rstrip("."),
        )
        return Sample(_noise(preprocessing), "noise")


def _split_of_run(trained: Trained) -> tuple[Split, str]:
    if trained.place.spec is None:
        raise SpecError("there is no spec beside the model")
    data = trained.place.spec.data.model_copy(update={"download": False})
    splits = load_splits(data, trained.place.spec.seed, allow_code=trained.place.allow_code, check_leakage=False)
    parts = ((splits.test, "test"), (splits.val, "validation"), (splits.train, "training"))
    return next((split, name) for split, name in parts if split is not None)


def _read(source: Source, indices: np.ndarray, preprocessing: Preprocessing) -> Tensor:
    """Return up to NUM_IMAGES images at even distances, uint8 [n, 3, S, S]."""
    transform = evaluation_transform(preprocessing)
    chosen: Sequence[int] = indices[
        np.linspace(0, len(indices) - 1, min(NUM_IMAGES, len(indices))).astype(int)
    ].tolist()
    return torch.stack([transform(decode(source.read(index), source.identity(index))) for index in chosen])


def _noise(preprocessing: Preprocessing) -> Tensor:
    size = preprocessing.crop_size
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (NUM_IMAGES, 3, size, size), dtype=torch.uint8, generator=generator)
