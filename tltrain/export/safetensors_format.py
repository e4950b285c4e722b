"""The format `safetensors`: the run's model folder as it is, weights and model.json, copied and read again."""

from __future__ import annotations

from pathlib import Path

import torchvision

from tltrain.errors import ExportError
from tltrain.export.check import Check, check
from tltrain.export.graph import classifier
from tltrain.export.images import Sample
from tltrain.export.trained import Trained
from tltrain.models.zoo import load_trained


def write_safetensors(trained: Trained, folder: Path, sample: Sample) -> Check:
    """Copy every file of the model folder into `folder`, and compare the network built from the copy with the run's.

    Raises ExportError where the copy differs.
    """
    for name in trained.place.folder.names():
        copy_file(trained, name, folder)
    copy = load_trained(folder, allow_code=trained.place.allow_code)
    return check(trained.network, classifier(copy), sample, f"torchvision {torchvision.__version__}")


def copy_file(trained: Trained, name: str, folder: Path) -> None:
    """Copy a file of the model folder and read it again. Raises ExportError where the copy is not the same."""
    content = trained.place.folder.read_bytes(name)
    (folder / name).write_bytes(content)
    if (folder / name).read_bytes() != content:
        raise ExportError(f"the copy of {name} differs from the original", "Check the disk it was written to")
