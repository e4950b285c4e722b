"""The model of a finished run: found in a sweep's, a run's or a model's folder, and ready to classify images."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tltrain.data.transforms import normalise
from tltrain.errors import DataError, Problem, SpecError
from tltrain.inference.ranking import Ranking, rank
from tltrain.models.placement import autocast, place
from tltrain.models.zoo import TrainedNetwork, load_trained
from tltrain.run_folder import RunFolder
from tltrain.spec.load import parse_spec
from tltrain.spec.schema import DataSpec, Spec, TrainSpec
from tltrain.storage import Folder


@dataclass(frozen=True)
class ModelPlace:
    """Where a finished model stands."""

    folder: Folder
    """Holds model.safetensors and model.json."""
    run: RunFolder | None = None
    """The run that trained it; None where the model's folder was named alone."""
    spec: Spec | None = None
    """The run's spec."""

    @property
    def name(self) -> str:
        """For people: the run's name, or the folder's."""
        return self.folder.name if self.run is None else self.run.name

    @property
    def uri(self) -> str:
        """Address that `find_model` finds this place by, on any machine that reaches it."""
        return self.folder.uri if self.run is None else self.run.uri

    @property
    def allow_code(self) -> bool:
        """Whether the run's spec allows its own code; a model's folder alone does not."""
        return self.spec is not None and self.spec.allow_code

    @property
    def train(self) -> TrainSpec:
        """The settings that decide how the network computes: precision and memory format."""
        return TrainSpec() if self.spec is None else self.spec.train

    @property
    def data(self) -> DataSpec | None:
        """The settings of the run's images."""
        return None if self.spec is None else self.spec.data

    def card(self) -> dict[str, Any]:
        """Return what model.json says. Raises DataError where it is damaged."""
        try:
            return json.loads(self.folder.read_bytes("model.json"))
        except ValueError as error:
            raise DataError(Problem(f"model.json is damaged: {error}", "Run it again", str(self.folder))) from error

    def digest(self) -> str:
        """Return the sha256 over the weights and model.json."""
        result = hashlib.sha256(self.folder.read_bytes("model.safetensors"))
        result.update(self.folder.read_bytes("model.json"))
        return result.hexdigest()


def find_model(path: str) -> ModelPlace:
    """Find the finished model of the run at a path or address, of a sweep (its winner's), or in a model's folder.

    Raises SpecError where there is no run or it has no model yet.
    """
    folder = Folder.open(path)
    if folder.exists("model.json"):
        return ModelPlace(folder)
    run = RunFolder.open(path)
    winner = run.state().get("winner_run")
    if winner is not None:
        run = RunFolder(run.folder.child(winner))
    if not run.model.exists("model.json"):
        raise SpecError(f"{run.folder} has no finished model", "Let the run finish: start it again with the same spec")
    spec = parse_spec(run.spec_text(), where=f"{run.folder}/spec.yaml", base=Path.cwd()).spec
    return ModelPlace(run.model, run, spec)


@dataclass(frozen=True)
class FinishedModel:
    """A trained network on a device, in evaluation mode, computing as its run's evaluation did."""

    place: ModelPlace
    network: TrainedNetwork
    """Its `module` stands on the device, with convolutions in the run's memory format."""
    device: torch.device

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the logits."""
        return self.network.classes

    @cached_property
    def memory_format(self) -> torch.memory_format:
        """How images lie in memory."""
        return torch.channels_last if self.place.train.channels_last else torch.contiguous_format

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        """Return the scores of images as the evaluation transform gives them.

        images: uint8 [B, 3, H, W], on any device. The result is float32 [B, C], on the model's device.
        """
        moved = images.to(self.device, non_blocking=True)
        prepared = normalise(moved, self.network.preprocessing).contiguous(memory_format=self.memory_format)
        with autocast(self.place.train, self.device):
            return self.network.module(prepared).float()

    def rank(self, images: Tensor) -> Ranking:
        """Return the most probable classes of images as `logits` takes them, at the model's temperature.

        Raises RunError where the network gives no finite scores.
        """
        return rank(self.logits(images), self.network.temperature)


def open_model(path: str | ModelPlace, device: torch.device | None = None) -> FinishedModel:
    """Return the model that `find_model` finds at `path`, on `device`; without one, on the GPU where there is one.

    Raises SpecError as `find_model`, and DataError or StorageError as `tltrain.models.zoo.load_trained`.
    """
    found = path if isinstance(path, ModelPlace) else find_model(path)
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = load_trained(found.folder.uri, allow_code=found.allow_code)
    place(network.module, found.train, device)
    return FinishedModel(found, network, device)
