"""From a decoded image to the tensor a network sees: resizing, cropping, augmentation, normalisation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from tltrain.data.preprocessing import Preprocessing
from tltrain.errors import Problem, SpecError
from tltrain.spec.schema import DataSpec

Augment = Literal["none", "basic", "randaugment", "trivialaugment"]
Transform = Callable[[Image.Image], Tensor]
CROP_SCALE = (0.35, 1.0)
"""Share of the image's area that a random crop takes."""


def resolve_preprocessing(data: DataSpec, own: Preprocessing) -> Preprocessing:
    """Return the weights' own preprocessing with what the spec overrides.

    With `image_size` alone, the size before the crop keeps the weights' proportion, rounded. Raises SpecError
    if the crop is larger than the resized image or a standard deviation is not positive.
    """
    crop = data.image_size or own.crop_size
    resize = data.resize_size or round(own.resize_size * crop / own.crop_size)
    problems = []
    if data.resize_size and resize < crop:
        what = f"resize_size ({resize}) is smaller than the {crop} pixels that are cropped from it"
        action = f"Make it at least {crop}, or set data.image_size"
        problems.append(Problem(what, action, key="data.resize_size"))
    if data.std and min(data.std) <= 0:
        problems.append(Problem("standard deviations must be larger than 0", key="data.std"))
    if problems:
        raise SpecError(problems)
    mean, std = data.mean or own.mean, data.std or own.std
    return Preprocessing(resize, crop, (mean[0], mean[1], mean[2]), (std[0], std[1], std[2]), own.interpolation)


class EvaluationTransform:
    """Resize the shorter side, crop the centre: RGB image -> uint8 [3, H, W]. The same in every call."""

    def __init__(self, p: Preprocessing) -> None:
        interpolation = v2.InterpolationMode(p.interpolation)
        resize = v2.Resize(p.resize_size, interpolation=interpolation, antialias=True)
        self._steps = [resize, v2.CenterCrop(p.crop_size)]

    def __call__(self, image: Image.Image) -> Tensor:
        """Return uint8 [3, crop_size, crop_size]."""
        for step in self._steps:
            image = step(image)
        return F.pil_to_tensor(image)


class TrainingTransform:
    """Random crop, horizontal flip and a policy: RGB image -> uint8 [3, H, W].

    All randomness comes from torch's global CPU generator.
    """

    def __init__(self, p: Preprocessing, policy: v2.Transform | None) -> None:
        interpolation = v2.InterpolationMode(p.interpolation)
        crop = v2.RandomResizedCrop(p.crop_size, scale=CROP_SCALE, interpolation=interpolation, antialias=True)
        self._steps = [crop, v2.RandomHorizontalFlip(), *([policy] if policy else [])]

    def __call__(self, image: Image.Image) -> Tensor:
        """Return uint8 [3, crop_size, crop_size]."""
        for step in self._steps:
            image = step(image)
        return F.pil_to_tensor(image)


def evaluation_transform(p: Preprocessing) -> Transform:
    """Return the deterministic transform of weights: RGB image -> uint8 [3, crop_size, crop_size]."""
    return EvaluationTransform(p)


def training_transform(p: Preprocessing, augment: Augment) -> Transform:
    """Return the transform of training images: RGB image -> uint8 [3, crop_size, crop_size].

    `none` is the evaluation transform. `basic` crops a random 35 % to 100 % of the area and flips half of the
    images; `randaugment` (Cubuk et al. 2020) and `trivialaugment` (Müller and Hutter 2021) add torchvision's
    policy.
    """
    if augment == "none":
        return EvaluationTransform(p)
    if augment == "randaugment":
        return TrainingTransform(p, v2.RandAugment())
    return TrainingTransform(p, v2.TrivialAugmentWide() if augment == "trivialaugment" else None)


def normalise(images: Tensor, p: Preprocessing) -> Tensor:
    """Return (images / 255 - mean) / std per channel.

    images: uint8 [B, 3, H, W]; the result is float32 on the same device, in the same memory format.
    """
    mean = torch.tensor(p.mean, dtype=torch.float32, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(p.std, dtype=torch.float32, device=images.device).view(1, 3, 1, 1)
    return images.to(torch.float32).div_(255).sub_(mean).div_(std)
