"""Temperature scaling: a number that the logits are divided by, so that probabilities say how often they are right."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tltrain.errors import DataError
from tltrain.inference.finished import ModelPlace
from tltrain.lease import hold
from tltrain.run_folder import RunFolder
from tltrain.storage import Folder

logger = logging.getLogger(__name__)

LOWEST, HIGHEST = 0.05, 20.0
"""Bounds of the temperature."""
_CARD = "model.json"


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature at which the negative log-likelihood is lowest (Guo et al. 2017, section 4.2).

    logits: float [n, C]; labels: int64 [n]; on the same device. The predicted classes do not depend on it. Raises
    DataError where all images are named correctly: the loss then falls for ever with the temperature.
    """
    if bool((logits.argmax(1) == labels).all()):
        what = f"all {len(labels)} images are named correctly, so no temperature is the best"
        raise DataError(what, "Calibrate with more images, or with harder ones")
    logits, inverse = logits.double(), torch.ones((), dtype=torch.float64, device=logits.device, requires_grad=True)
    # The loss is convex in the inverse of the temperature, so there is one minimum, which L-BFGS finds in some steps.
    optimizer = torch.optim.LBFGS([inverse], max_iter=100, tolerance_change=1e-10, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = functional.cross_entropy(logits * inverse, labels)
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    scale = float(inverse.detach())
    temperature = 1 / scale if scale > 0 else math.inf
    if LOWEST <= temperature <= HIGHEST:
        return temperature
    bounded = min(max(temperature, LOWEST), HIGHEST)
    logger.warning(
        "the best temperature is beyond %g; are these images too few, or nearly all right or wrong?", bounded
    )
    return bounded


def save_temperature(place: ModelPlace, temperature: float, fit: Mapping[str, Any]) -> None:
    """Write `temperature`, and as `calibration` what it was fitted on, into the model.json of a finished model.

    The file is replaced whole, so that a reader sees the old or the new one. Raises StorageError, or RunError where
    somebody else is writing into the run.
    """
    if place.run is None:
        _write(place.folder, temperature, fit)
        return
    with hold(place.run.folder) as folder:
        _write(RunFolder(folder).model, temperature, fit)


def _write(folder: Folder, temperature: float, fit: Mapping[str, Any]) -> None:
    card = json.loads(folder.read_bytes(_CARD)) | {"temperature": temperature, "calibration": dict(fit)}
    folder.write_bytes(_CARD, (json.dumps(card, indent=2, ensure_ascii=False) + "\n").encode())
