"""An image that cannot be used."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BadImage:
    """What the image is called, and why it cannot be used."""

    id: str
    reason: str
