"""Transforms: torchvision's presets are the reference."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from data_helpers import spec
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms._presets import ImageClassification

from tltrain.data.preprocessing import Preprocessing
from tltrain.data.transforms import (
    Augment,
    evaluation_transform,
    normalise,
    resolve_preprocessing,
    training_transform,
)
from tltrain.errors import SpecError

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_evaluation_equals_torchvisions_preset_bit_for_bit(interpolation: str) -> None:
    p = Preprocessing(36, 32, interpolation=interpolation)  # pyright: ignore[reportArgumentType]
    preset = ImageClassification(crop_size=32, resize_size=36, interpolation=InterpolationMode(interpolation))
    image = evaluation_transform(p)(PHOTO)
    assert image.dtype == torch.uint8
    assert image.shape == (3, 32, 32)
    assert torch.equal(normalise(image[None], p)[0], preset(PHOTO))


def test_normalise_keeps_the_memory_format() -> None:
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8).to(memory_format=torch.channels_last)
    assert normalise(images, Preprocessing()).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("augment", [a for a in get_args(Augment) if a != "none"])
def test_augmentation_follows_torchs_generator_alone(augment: Augment) -> None:
    transform = training_transform(Preprocessing(36, 32), augment)
    results = []
    for seed, python_seed in ((0, 1), (0, 2), (1, 1)):
        np.random.seed(python_seed)
        torch.manual_seed(seed)
        results.append(transform(PHOTO))
    assert results[0].shape == (3, 32, 32)
    assert results[0].dtype == torch.uint8
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


OWN = Preprocessing(256, 224, interpolation="bicubic")
SETTINGS = [
    ({}, (256, 224)),
    ({"image_size": 64}, (73, 64)),
    ({"image_size": 32, "resize_size": 32}, (32, 32)),
    ({"resize_size": 224}, (224, 224)),
]


@pytest.mark.parametrize(("settings", "sizes"), SETTINGS)
def test_sizes_keep_the_weights_proportion(settings: dict[str, int], sizes: tuple[int, int]) -> None:
    p = resolve_preprocessing(spec(**settings), OWN)
    assert (p.resize_size, p.crop_size) == sizes
    assert (p.mean, p.std, p.interpolation) == (OWN.mean, OWN.std, "bicubic")


def test_mean_and_std_are_overridden() -> None:
    p = resolve_preprocessing(spec(mean=[0.5, 0.5, 0.5], std=[0.25, 0.25, 0.25]), OWN)
    assert p.mean == (0.5, 0.5, 0.5)
    assert p.std == (0.25, 0.25, 0.25)


def test_crop_larger_than_the_image_and_zero_std_are_refused_at_once() -> None:
    with pytest.raises(SpecError) as caught:
        resolve_preprocessing(spec(image_size=64, resize_size=32, std=[0.0, 1.0, 1.0]), OWN)
    assert [problem.key for problem in caught.value.problems] == ["data.resize_size", "data.std"]
