"""A small finished run, trained for real, for tests of what is done with its model."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny import tiny_spec

from tltrain.run_folder import RunFolder
from tltrain.spec.load import dump_yaml
from tltrain.train.distributed import Group
from tltrain.train.session import fine_tune


def train_tiny(folder: Path) -> RunFolder:
    """Train on handwritten digits for an epoch; `train.parquet` and `test.parquet` stand in `folder`."""
    spec = tiny_spec(folder, {"train.epochs": 1, "model.freeze_depth": "all"})
    run = RunFolder.at(spec.storage, spec.name)
    run.write_spec(dump_yaml(spec))
    fine_tune(spec, run, Group(0, 1, 0, 1, torch.device("cpu")))
    run.update(state="finished")
    return run
