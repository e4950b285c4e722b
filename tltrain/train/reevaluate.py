"""Evaluate a finished run's model on other images, in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tltrain.data.loader import eval_batches, resolve_loader_workers
from tltrain.data.splits import open_split
from tltrain.data.transforms import normalise
from tltrain.errors import SpecError
from tltrain.models.zoo import load_trained
from tltrain.run_folder import RunFolder
from tltrain.spec.load import parse_spec
from tltrain.train.evaluation import Predictions, evaluate


@torch.no_grad()
def evaluate_model(run: RunFolder, data: str) -> dict[str, Any]:
    """Return the numbers of evaluation.json for the model of `run` on the images of `data`.

    `data` is a source as in a spec's data section; its classes must be among those the model knows. Raises
    SpecError where the run has no model yet, DataError where the images cannot be used.
    """
    if not run.model.exists("model.json"):
        raise SpecError(f"{run.uri} has no finished model", "Let the run finish: start it again with the same spec")
    spec = parse_spec(run.spec_text(), where=f"{run.uri}/spec.yaml", base=Path.cwd()).spec
    network = load_trained(run.model.uri, allow_code=spec.allow_code)
    split = open_split(data, spec.data, network.classes)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module = network.module.to(device)
    batches = eval_batches(
        split,
        network.preprocessing,
        batch_size=spec.train.batch_size,
        rank=0,
        world_size=1,
        num_workers=resolve_loader_workers(spec.data.num_loader_workers),
        pin_memory=device.type == "cuda",
    )
    parts = []
    for batch in batches:
        logits = module(normalise(batch.images.to(device), network.preprocessing))
        parts.append(Predictions.from_logits(logits.cpu(), batch.labels, batch.ids))
    return {"run": run.name, "data": data, **evaluate(Predictions.concatenate(parts), network.classes)}
