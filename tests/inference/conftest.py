"""One small finished run for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import tiny_spec

from tltrain.run_folder import RunFolder
from tltrain.spec.load import dump_yaml
from tltrain.train.distributed import Group
from tltrain.train.session import fine_tune


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run on handwritten digits, `train.parquet` and `test.parquet` beside its storage; not to be changed."""
    spec = tiny_spec(tmp_path_factory.mktemp("digits"), {"train.epochs": 1, "model.freeze_depth": "all"})
    run = RunFolder.at(spec.storage, spec.name)
    run.write_spec(dump_yaml(spec))
    fine_tune(spec, run, Group(0, 1, 0, 1, torch.device("cpu")))
    run.update(state="finished")
    return run


@pytest.fixture(scope="session")
def digits_folder(finished_run: RunFolder) -> Path:
    """The folder with the images of the run."""
    assert finished_run.folder.local_path is not None
    return finished_run.folder.local_path.parent.parent
