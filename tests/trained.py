"""A small finished run, trained for real, for tests of what is done with its model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny import tiny_spec

from tltrain.run_folder import RunFolder
from tltrain.spec.load import dump_yaml
from tltrain.train.distributed import Group
from tltrain.train.session import fine_tune


def train_tiny(folder: Path, changes: dict[str, Any] | None = None) -> RunFolder:
    """Train all layers on handwritten digits; `train.parquet` and `test.parquet` stand in `folder`."""
    # Without training, BatchNorm's statistics are those of no image, and all images get the same scores.
    spec = tiny_spec(folder, {"model.freeze_depth": 0, "model.batchnorm_momentum": 0.5, **(changes or {})})
    run = RunFolder.at(spec.storage, spec.name)
    run.write_spec(dump_yaml(spec))
    fine_tune(spec, run, Group(0, 1, 0, 1, torch.device("cpu")))
    run.update(state="finished")
    return run
