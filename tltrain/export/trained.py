"""What is exported: a finished model as its run left it, and the run and the sweep that it came from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tltrain.inference.finished import ModelPlace, find_model
from tltrain.models.zoo import TrainedNetwork, load_trained
from tltrain.run_folder import RunFolder
from tltrain.storage import Folder


@dataclass(frozen=True)
class Trained:
    """A finished model with what is known of how it came about."""

    place: ModelPlace
    """The model folder, and where it stands in a run's folder also the run."""
    card: Mapping[str, Any]
    """Contents of model.json."""
    network: TrainedNetwork
    """On the CPU, float32, in evaluation mode."""
    sweep: RunFolder | None = None
    """The sweep whose winner it is, where that was named."""

    @property
    def name(self) -> str:
        """Name of the sweep where that was named, else of the run."""
        return self.card.get("run") or self.place.name if self.sweep is None else self.sweep.name

    @property
    def architecture(self) -> str:
        """The network as a spec names it: `resnet50`, `timm/NAME`, or a user's `package.module:function`."""
        return self.card.get("name") or self.card["factory"]


def open_trained(path: str) -> Trained:
    """Return the model of a sweep's folder (its winner's), a run's folder or its model folder, at a path or address.

    Raises SpecError or DataError where there is no finished model or its code may not be run, StorageError where the
    folder cannot be read.
    """
    place = find_model(_run_around(path) or path)
    network = load_trained(place.folder.uri, allow_code=place.allow_code)
    card = json.loads(place.folder.read_bytes("model.json"))
    named = RunFolder(Folder.open(path))
    return Trained(place, card, network, named if "winner_run" in named.state() else None)


def _run_around(path: str) -> str | None:
    """Return the run folder in which the model folder `path` stands by the name `model`, if it does."""
    base, mark, query = path.partition("?")
    base = base if "://" in base else str(Path(base).expanduser().absolute())
    outer, _, name = base.rstrip("/").rpartition("/")
    around = outer + mark + query
    return around if name == "model" and outer and RunFolder(Folder.open(around)).exists() else None
