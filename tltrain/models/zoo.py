"""Networks ready for fine-tuning: built, with weights, a new head, stages and preprocessing."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tltrain.data.preprocessing import Preprocessing
from tltrain.errors import DataError, Problem, SpecError
from tltrain.models.architectures import Architecture, find_architecture
from tltrain.models.stages import StagedNetwork
from tltrain.models.state import load_state
from tltrain.models.weights import Weights, find_weights, read_trained
from tltrain.spec.schema import ModelSpec

_log = logging.getLogger(__name__)


@dataclass
class Network:
    """A network with a head for the user's classes, and what is needed to use and to rebuild it."""

    module: nn.Module
    """In evaluation mode, float32, on the CPU: images [B, 3, H, W] -> logits [B, num_classes]."""
    staged: StagedNetwork
    preprocessing: Preprocessing
    """How images were prepared for its weights."""
    weights_origin: str
    """For people: where its weights come from."""
    arguments: dict[str, Any]
    """Keyword arguments that build it without weights: `torchvision.models.get_model(name, **arguments)`."""
    head_name: str
    """Dotted name of the layer that makes the logits."""
    notes: tuple[str, ...] = ()
    """What a user ought to know."""
    has_new_head: bool = False
    """Whether the head was drawn from the seed alone; neither pretrained nor made by a user's factory."""


@dataclass
class TrainedNetwork(Network):
    """The network of a finished run."""

    classes: tuple[str, ...] = ()
    """Names of the classes, in the order of the logits."""
    temperature: float = 1.0
    """What logits are divided by before softmax makes probabilities of them; 1 where nobody has calibrated it."""


def build_network(model: ModelSpec, num_classes: int, *, seed: int, allow_code: bool = False) -> Network:
    """Return the network that a spec asks for, with its weights and a head for `num_classes` classes.

    What is random is drawn from `seed` alone; torch's global generator is left as it was.

    Raises:
        SpecError: no such network or weights, code that is not allowed or fails, timm missing.
        DataError: weights that cannot be fetched or read, or that belong to another network.
    """
    architecture = find_architecture(model.name, model.factory, allow_code)
    weights = find_weights(model, seed)
    arguments = {"num_classes": num_classes, **architecture.arguments, **weights.arguments}
    with _seeded(seed):
        module = architecture.build(arguments, weights.built_in).float().eval()
    network = _network(module, architecture, weights, arguments)
    _check_head(network, num_classes, model)
    network.has_new_head = model.factory is None  # a user's own head is as its factory made it
    if network.has_new_head:
        initialise_head(module, network.head_name, seed)
    if weights.state is not None and _load(network, architecture, weights):
        network.has_new_head = False
        network.notes += (f"The head is that of {weights.origin}, which has {num_classes} classes too",)
    _set_momentum(module, model.batchnorm_momentum)
    return network


def load_trained(folder: str | Path, *, allow_code: bool = False) -> TrainedNetwork:
    """Return the network of a finished run.

    Args:
        folder: the run's folder or the `model` folder in it. Of model.json, the keys name or factory,
            arguments, classes, preprocessing and temperature are read.
        allow_code: whether a user's factory may be run.

    Raises:
        DataError, SpecError, StorageError: as `build_network` and `read_trained`.
    """
    trained = read_trained(folder)
    card, arguments = trained.card, dict(trained.card["arguments"])
    architecture = find_architecture(card.get("name"), card.get("factory"), allow_code)
    preprocessing = Preprocessing.from_dict(card["preprocessing"])
    with _seeded(0):
        module = architecture.build(arguments, False).float().eval()
    weights = Weights(trained.where, trained.state, preprocessing=preprocessing)
    network = _network(module, architecture, weights, arguments)
    if not _load(network, architecture, weights):
        raise DataError(Problem("model.json and model.safetensors differ in the number of classes", "", trained.where))
    temperature = _temperature(card.get("temperature", 1.0), trained.where)
    return TrainedNetwork(**vars(network), classes=tuple(card["classes"]), temperature=temperature)


def _temperature(value: object, where: str) -> float:
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        what = f"model.json has the temperature {value!r}"
        raise DataError(Problem(what, "It is a number above 0; tltrain evaluate --calibrate writes it", where))
    return float(value)


def check_image_size(network: Network, image_size: int) -> None:
    """Run a blank image through the network. Raises SpecError if it takes none of that size, in pixels."""
    try:
        with torch.no_grad():
            network.module(torch.zeros(1, 3, image_size, image_size))
    except (RuntimeError, AssertionError, ValueError) as error:
        usual = network.preprocessing.crop_size
        raise SpecError(
            Problem(
                f"the network takes no images of {image_size} x {image_size} pixels: {error}",
                f"Its weights were made for {usual}; leave data.image_size out or choose another",
                key="data.image_size",
            )
        ) from error


def initialise_head(module: nn.Module, head_name: str, seed: int) -> None:
    """Give the layer `head_name` of `module` torch's default initialisation, drawn from `seed` alone."""
    head = module.get_submodule(head_name)
    assert isinstance(head, nn.Linear | nn.Conv2d)
    with _seeded(seed):
        head.reset_parameters()


def _network(module: nn.Module, architecture: Architecture, weights: Weights, arguments: dict[str, Any]) -> Network:
    staged = StagedNetwork(module, architecture.leaves)
    preprocessing = weights.preprocessing or architecture.preprocessing(module)
    return Network(module, staged, preprocessing, weights.origin, arguments, staged.head_name, architecture.notes)


def _load(network: Network, architecture: Architecture, weights: Weights) -> bool:
    """Load the weights; return whether that included the head."""
    assert weights.state is not None
    state = architecture.adapt(weights.state, network.module)
    return load_state(network.module, state, network.head_name, weights.origin)


def _check_head(network: Network, num_classes: int, model: ModelSpec) -> None:
    head = network.module.get_submodule(network.head_name)
    outputs = head.out_features if isinstance(head, nn.Linear) else head.out_channels
    if outputs != num_classes:
        what = f"its last layer, {network.head_name}, has {outputs} outputs for {num_classes} classes"
        raise SpecError(Problem(what, key="model.factory" if model.factory else "model.name"))


def _set_momentum(module: nn.Module, momentum: float | None) -> None:
    layers = [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]
    if momentum is None:
        return
    if not layers:
        _log.warning("model.batchnorm_momentum is ignored: the network has no BatchNorm layers")
    for layer in layers:
        layer.momentum = momentum


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Let torch draw from `seed` on the CPU for a while."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
