"""mixup and CutMix of single samples, drawn by (seed, sample, epoch) alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tltrain.spec.schema import DataSpec


@dataclass(frozen=True)
class Mixing:
    """Alphas of the Beta distributions of mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019), or 0."""

    mixup: float
    cutmix: float

    @classmethod
    def of(cls, data: DataSpec) -> Mixing | None:
        """Return the mixing that a spec asks for, or None."""
        return cls(data.mixup, data.cutmix) if data.mixup or data.cutmix else None


@dataclass(frozen=True)
class Draw:
    """What one sample is mixed with: `share` of it stays; centre (y, x), in 0..1, is CutMix's box."""

    kind: Literal["mixup", "cutmix"]
    partner: int
    share: float
    centre: tuple[float, float]


def draw(mixing: Mixing, position: int, num_samples: int) -> Draw:
    """Draw a partner other than `position` and a share from torch's global CPU generator.

    If both kinds are on, each is taken by half of the samples. Needs at least two samples.
    """
    assert num_samples > 1, "one sample alone cannot be mixed"
    other = int(torch.randint(num_samples - 1, ()))
    partner = other + (other >= position)
    take_mixup = float(torch.rand(())) < 0.5 if mixing.mixup and mixing.cutmix else bool(mixing.mixup)
    alpha = torch.tensor(mixing.mixup if take_mixup else mixing.cutmix, dtype=torch.float64)
    share = float(torch.distributions.Beta(alpha, alpha).sample())
    y, x = torch.rand(2).tolist()
    return Draw("mixup" if take_mixup else "cutmix", partner, share, (y, x))


def mix(image: Tensor, partner: Tensor, how: Draw) -> tuple[Tensor, float]:
    """Return the mixed image and the share of `image` in it, which is the share of its label in the target.

    image, partner: uint8 [3, H, W]. mixup: share * image + (1 - share) * partner in float32, rounded half to
    even. CutMix: a box of about 1 - share of the area comes from the partner; the share is counted in pixels.
    """
    if how.kind == "mixup":
        share = torch.tensor(how.share, dtype=torch.float32)
        mixed = share * image.to(torch.float32) + (1 - share) * partner.to(torch.float32)
        return mixed.round_().clamp_(0, 255).to(torch.uint8), float(share)
    height, width = image.shape[1:]
    top, bottom = _span(height, how.share, how.centre[0])
    left, right = _span(width, how.share, how.centre[1])
    mixed = image.clone()
    mixed[:, top:bottom, left:right] = partner[:, top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)


def _span(length: int, share: float, centre: float) -> tuple[int, int]:
    """Return the first and the last + 1 pixel of the box along one side, clipped to the image."""
    half = int(length * math.sqrt(1 - share)) // 2
    middle = int(centre * length)
    return max(middle - half, 0), min(middle + half, length)
