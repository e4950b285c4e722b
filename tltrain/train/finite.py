"""Which losses were no finite numbers: noted at every step, looked at only now and then, so that no step waits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tltrain.data.loader import Batch
from tltrain.errors import DivergedError
from tltrain.train.distributed import Group

NAMED_IMAGES = 10
"""Most images that an error names."""


@dataclass(frozen=True)
class _Step:
    """Losses float32 [b] of a step's images, with their positions int64 [b] and weights float32 [b] (0 for padding).

    Positions are in the host's memory, the rest is on the device.
    """

    number: int
    losses: Tensor
    ids: Tensor
    weights: Tensor

    @property
    def is_bad(self) -> Tensor:
        """Bool [b]: which images have a loss that is not finite, or so large that their sum may not be."""
        return ~(self.losses * len(self.losses)).isfinite() & (self.weights > 0)


class LossLog:
    """The losses of all images since they were looked at last."""

    def __init__(self) -> None:
        self._steps: list[_Step] = []

    def add(self, step: int, losses: Tensor, batch: Batch) -> None:
        """Note the losses, float32 [b], of optimiser step `step` (0-based) or of a part of it."""
        self._steps.append(_Step(step, losses.detach(), batch.ids, batch.weights))

    def take_bad(self, group: Group) -> tuple[int, list[int]] | None:
        """Return the first step with a loss that is not finite on any rank, and the positions of its images.

        None where all are finite. What was noted is forgotten. Every rank calls it, and every rank gets the same.
        """
        steps, self._steps = self._steps, []
        mine = _first_bad(steps)
        latest = 2**62
        first = latest - group.maximum(0 if mine is None else latest - mine[0])
        if first == latest:
            return None
        parts = group.gather(mine[1] if mine is not None and mine[0] == first else [])
        return first, group.broadcast(parts and sorted({position for part in parts for position in part}))


def _first_bad(steps: Sequence[_Step]) -> tuple[int, list[int]] | None:
    if not steps or not bool(torch.cat([step.is_bad for step in steps]).any()):
        return None
    step = next(step for step in steps if bool(step.is_bad.any()))
    return step.number, step.ids[step.is_bad.cpu()].tolist()


def diverged(lane: str, step: int, learning_rate: float, images: Sequence[str]) -> DivergedError:
    """Return the error for a lane whose losses of `images` were not finite at `step` (0-based)."""
    more = f" and {len(images) - NAMED_IMAGES} more" if len(images) > NAMED_IMAGES else ""
    return DivergedError(
        f"the loss of {lane} is not finite at step {step + 1} (learning rate {learning_rate:.3g}), "
        f"for {', '.join(images[:NAMED_IMAGES])}{more}",
        "Lower optim.learning_rate, set train.clip_grad_norm, or use fp32",
    )
