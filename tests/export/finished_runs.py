"""Run folders of finished runs whose networks have never been trained, for tests of what is done with a model."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch
from tiny import tiny_spec

from tltrain.data.transforms import resolve_preprocessing
from tltrain.models.zoo import Network, build_network
from tltrain.run_folder import RunFolder
from tltrain.spec.load import dump_yaml
from tltrain.spec.schema import ModelSpec
from tltrain.train.evaluation import Predictions, evaluate
from tltrain.train.finish import headline, save_model

CLASSES = [str(digit) for digit in range(10)]


def finished_run(folder: Path, changes: dict[str, Any] | None = None, *, split: str = "test") -> RunFolder:
    """Write what a run on digits leaves behind, with random weights and invented scores, and return its folder."""
    spec = tiny_spec(folder, changes)
    run = RunFolder.at(spec.storage, spec.name)
    network = _built(spec.model.model_dump_json())
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 10
    scores = torch.randn(60, 10, generator=generator) + 2 * torch.nn.functional.one_hot(labels, 10)
    evaluation = evaluate(Predictions.from_logits(scores, labels, torch.arange(60)), CLASSES)
    best = {"epoch": 2, "top1": 0.75, "top5": 0.95, "loss": 0.8, "step": 10, "score": 0.75}
    card = {
        "format": 1,
        "name": spec.model.name,
        "factory": spec.model.factory,
        "arguments": network.arguments,
        "classes": CLASSES,
        "preprocessing": resolve_preprocessing(spec.data, network.preprocessing).to_dict(),
        "run": spec.name,
        "pretrained": network.weights_origin,
        "data": {"fingerprint": "f" * 64, "num_train": 77, "num_val": 19, "num_test": 45},
        "best": best,
        "evaluation": {"split": split, **headline(evaluation)},
    }
    run.write_spec(dump_yaml(spec))
    run.update(name=spec.name, state="finished", finished_at=1_800_000_000.0)
    run.write_json("evaluation.json", {"split": split, **evaluation})
    save_model(run.model, card, network.module.state_dict())
    return run


@functools.cache
def _built(model: str) -> Network:
    return build_network(ModelSpec.model_validate_json(model), len(CLASSES), seed=1)


def finished_sweep(folder: Path) -> RunFolder:
    """Write what a sweep leaves behind, its winner with random weights, and return the sweep's folder."""
    sweep = RunFolder.at(str(folder / "sweeps"), "search")
    winner = finished_run(folder, {"storage": sweep.uri})
    winner.update(trial="t0001")
    sweep.write_spec(winner.spec_text())
    sweep.update(kind="sweep", state="finished", winner_run=winner.name)
    sweep.write_json("trials.json", [{"trial": "t0000"}, {"trial": "t0001"}, {"trial": "t0002"}])
    confirmed = {"trial": "t0001", "seeds": [0, 1, 2], "mean": 0.7, "interval": [0.65, 0.75]}
    sweep.write_json("confirm.json", {"top": [confirmed], "winner": "t0001"})
    return sweep


def change_model_json(run: RunFolder, **fields: Any) -> None:
    """Set fields of a run's model.json."""
    card = json.loads(run.model.read_bytes("model.json"))
    run.model.write_bytes("model.json", json.dumps({**card, **fields}).encode())
