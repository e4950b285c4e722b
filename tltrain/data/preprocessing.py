"""What happens to an image before a network sees it: sizes, interpolation, mean, std. Saved with a model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Interpolation = Literal["nearest", "bilinear", "bicubic"]


@dataclass(frozen=True)
class Preprocessing:
    """Resize the shorter side, crop the centre, scale to 0..1, then subtract `mean` and divide by `std` per channel.

    Sizes are in pixels; `mean` and `std` refer to RGB values in 0..1.
    """

    resize_size: int = 256
    crop_size: int = 224
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: Interpolation = "bilinear"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Preprocessing:
        """Rebuild from `to_dict`'s result."""
        return cls(**{**fields, "mean": tuple(fields["mean"]), "std": tuple(fields["std"])})
