"""From a network's scores to the most probable classes of each image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tltrain.errors import RunError

TOP = 5


@dataclass(frozen=True, eq=False)
class Ranking:
    """The most probable classes of n images, the most probable first.

    classes: int64 [n, k], numbers of classes. probabilities: float32 [n, k]. k is 5, or the number of classes.
    """

    classes: np.ndarray
    probabilities: np.ndarray

    def __len__(self) -> int:
        return len(self.classes)


def rank(logits: Tensor, temperature: float = 1.0) -> Ranking:
    """Return the most probable classes, of equal ones the first.

    logits: float [n, C], on any device. temperature: what they are divided by before they become probabilities.

    Raises RunError where a score is not finite.
    """
    logits = logits.float()
    bad = int((~torch.isfinite(logits)).any(dim=1).sum())
    if bad:
        what = f"the network's scores of {bad} of {len(logits)} images are not finite"
        raise RunError(what, "The model is of no use as it is: look at its training, tltrain report RUN")
    best = torch.sort(logits, dim=1, descending=True, stable=True).indices[:, :TOP]
    log_probabilities = functional.log_softmax(logits / temperature, dim=1).gather(1, best)
    return Ranking(best.cpu().numpy(), np.exp(log_probabilities.cpu().numpy()))
