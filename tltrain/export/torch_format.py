"""The format `torch`: a graph that torch.export.load reads, without the code of the network."""

from __future__ import annotations

from pathlib import Path

import torch

from tltrain.export.check import Check, check
from tltrain.export.description import write_description
from tltrain.export.graph import export_graph
from tltrain.export.images import Sample
from tltrain.export.trained import Trained

FILE = "model.pt2"


def write_torch(trained: Trained, folder: Path, sample: Sample) -> Check:
    """Write model.pt2 and model.json into `folder`, and compare what was written with the run's model.

    Raises ExportError where there is no graph or it differs.
    """
    torch.export.save(export_graph(trained.network), folder / FILE)
    write_description(trained, folder)
    loaded = torch.export.load(folder / FILE).module()
    return check(trained.network, loaded, sample, f"torch {torch.__version__}")
