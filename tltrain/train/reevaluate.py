"""Evaluate a finished model on other images, in this process, and fit its temperature to them."""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
from torch import Tensor

from tltrain.data.base import Split
from tltrain.data.loader import eval_batches, resolve_loader_workers
from tltrain.data.splits import open_split
from tltrain.inference.finished import FinishedModel, open_model
from tltrain.spec.names import TORCHVISION_PREFIX
from tltrain.spec.paths import is_address
from tltrain.spec.schema import DataSpec
from tltrain.train.evaluation import Predictions, evaluate
from tltrain.train.skipped import as_dicts, usable_part
from tltrain.train.temperature import fit_temperature, save_temperature

logger = logging.getLogger(__name__)

CALIBRATED = ("loss", "expected_calibration_error", "brier_score")
"""What a temperature changes."""


def evaluate_model(path: str, data: str, *, calibrate: bool = False) -> dict[str, Any]:
    """Return the numbers of evaluation.json for the model of the run, or the sweep, at `path` on the images of `data`.

    `data` is a source as in a spec's data section; its classes must be among those the model knows. Probabilities are
    those at the model's temperature. calibrate: fit the temperature to these images and save it in model.json; the
    numbers are then those after it, and `before` holds the ones that it changed.

    Raises SpecError where there is no finished model, DataError where the images cannot be used.
    """
    model = open_model(path)
    settings = model.place.data or DataSpec(train=data)
    split = open_split(data, settings, model.classes, allow_code=model.place.allow_code)
    left_out: dict[str, Any] = {}
    if settings.on_bad_image == "skip":
        split, look = usable_part(split, data, settings)
        left_out["skipped"] = as_dicts(look.bad)
        if look.bad:
            logger.warning("%s", look)
    _warn_of_known_images(settings, data, is_known=model.place.data is not None, calibrate=calibrate)
    logits, labels, positions = _outputs(model, split, settings)

    def numbers(temperature: float) -> dict[str, Any]:
        results = Predictions.from_logits(logits, labels, positions, temperature=temperature)
        return {"temperature": temperature, **evaluate(results, model.classes)}

    found = {"run": model.place.name, "data": data, **left_out, **numbers(model.network.temperature)}
    if not calibrate:
        return found
    before = {name: found[name] for name in CALIBRATED}
    found |= numbers(fit_temperature(logits, labels))
    fit = {
        "data": data,
        "num_images": len(split),
        "before": before,
        "after": {name: found[name] for name in CALIBRATED},
    }
    save_temperature(model.place, found["temperature"], fit)
    return found | {"before": before}


def _outputs(model: FinishedModel, split: Split, settings: DataSpec) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits float32 [n, C] and labels int64 [n] on the model's device, and positions int64 [n]."""
    batches = eval_batches(
        split,
        model.network.preprocessing,
        batch_size=model.place.train.images_per_step,
        rank=0,
        world_size=1,
        num_workers=resolve_loader_workers(settings.num_loader_workers),
        pin_memory=model.device.type == "cuda",
    )
    parts = []
    for batch in batches:
        moved = batch.to(model.device)
        parts.append((model.logits(moved.images), moved.labels, moved.ids))
    logits, labels, positions = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return logits, labels, positions


def _warn_of_known_images(settings: DataSpec, data: str, *, is_known: bool, calibrate: bool) -> None:
    """Warn where `data` are images that the run has used, so that the numbers mean something else."""
    is_torchvision = data.startswith(TORCHVISION_PREFIX)
    source = data if is_torchvision or is_address(data) else os.path.abspath(data)
    if is_known and source == settings.train and not is_torchvision:
        logger.warning("the model was trained on these images: new ones will give worse numbers")
    elif calibrate and source == settings.test:
        logger.warning(
            "the temperature is fitted to the test images of the run: loss and calibration on them no longer tell "
            "about new images. Calibrate with other images, such as those of data.val"
        )
