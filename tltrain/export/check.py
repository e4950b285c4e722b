"""Whether an exported model gives what the run's model gives, on the same images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tltrain.errors import ExportError
from tltrain.export.graph import LOGITS, PROBABILITIES, classifier
from tltrain.export.images import Sample
from tltrain.models.zoo import TrainedNetwork

TOLERANCE = 1e-3
"""Largest difference of a logit that is taken for rounding, as a share of the largest logit."""

Predict = Callable[[Tensor], Mapping[str, Tensor]]
"""Images, uint8 [n, 3, S, S] -> `logits` and `probabilities`, float32 [n, C] each."""


@dataclass(frozen=True)
class Check:
    """The largest differences that were found."""

    num_images: int
    images: str
    """For people: what images they were."""
    runtime: str
    """What ran the exported model, with its version."""
    logit_difference: float
    probability_difference: float
    logit_tolerance: float
    """Largest `logit_difference` that would have been accepted."""


@torch.inference_mode()
def check(network: TrainedNetwork, predict: Predict, sample: Sample, runtime: str) -> Check:
    """Compare `predict` with the network on all images of the sample in one batch, and on the first alone.

    Raises ExportError where a logit differs by more than TOLERANCE allows or is not a number.
    """
    own = classifier(network)
    batches = (sample.images, sample.images[:1])
    pairs = [(own(batch), predict(batch)) for batch in batches]
    differences = {
        name: max(float((ours[name] - theirs[name]).abs().max()) for ours, theirs in pairs)
        for name in (LOGITS, PROBABILITIES)
    }
    tolerance = TOLERANCE * float(pairs[0][0][LOGITS].abs().max())
    difference = differences[LOGITS]
    if not difference <= tolerance:  # so that a NaN is refused too
        what = f"the exported model differs from the run's by {difference:.2g} in a logit; {tolerance:.2g} is allowed"
        raise ExportError(what, "Nothing was kept. Export in another format")
    return Check(len(sample.images), sample.origin, runtime, difference, differences[PROBABILITIES], tolerance)
