"""What the arms of the sweep benchmark share: the grid, the images, the network, and one trial's epochs."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ruamel.yaml import YAML
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR
from torchvision.models import EfficientNet

from tltrain.data.decode import decode
from tltrain.data.loader import global_order
from tltrain.data.preprocessing import Preprocessing
from tltrain.data.splits import Split, load_splits
from tltrain.data.transforms import evaluation_transform, normalise, resolve_preprocessing
from tltrain.models.lite import NAME, PREPROCESSING, efficientnet_lite0, weights_file, with_own_names
from tltrain.models.zoo import initialise_head
from tltrain.spec.schema import DataSpec, OptimSpec

Values = dict[str, Any]
Row = dict[str, float]
Batches = Iterable[tuple[Tensor, Tensor]]

LEARNING_RATE, FREEZE_DEPTH = "optim.learning_rate", "model.freeze_depth"
SCHEDULES = ("constant", "cosine")
HEAD = "classifier.1"


@dataclass(frozen=True)
class Sweep:
    """What a spec asks of every arm."""

    name: str
    storage: str
    seed: int
    data: DataSpec
    optim: OptimSpec
    epochs: int
    batch_size: int
    space: dict[str, list[Any]]
    """Dotted key -> all its values; the grid is their product."""
    scheduler: str

    def trials(self) -> list[Values]:
        """Return dotted key -> value for every trial of the grid."""
        return [dict(zip(self.space, values, strict=True)) for values in itertools.product(*self.space.values())]

    @property
    def folder(self) -> Path:
        """Where everything goes."""
        return Path(self.storage, self.name)


def read_sweep(path: str | Path) -> Sweep:
    """Read a spec. Ends the process where it asks for what the hand-written arms do not do."""
    spec = YAML(typ="safe", pure=True).load(Path(path))
    base = Path(path).resolve().parent
    sources = {key: str(base / spec["data"][key]) for key in ("train", "val")}
    sweep = Sweep(
        name=spec["name"],
        storage=spec["storage"],
        seed=spec["seed"],
        data=DataSpec(**{**spec["data"], **sources}),
        optim=OptimSpec(**spec["optim"]),
        epochs=spec["train"]["epochs"],
        batch_size=spec["train"]["batch_size"],
        space={key: choice["grid"] for key, choice in spec["sweep"]["space"].items()},
        scheduler=spec["sweep"]["scheduler"],
    )
    known = OptimSpec(schedule=sweep.optim.schedule)
    if sweep.optim != known or known.schedule not in SCHEDULES or {*sweep.space} != {LEARNING_RATE, FREEZE_DEPTH}:
        sys.exit(f"{path}: the arms know SGD with tltrain's defaults, {SCHEDULES}, and a grid of rates and depths.")
    if spec["model"] != {"name": NAME}:
        sys.exit(f"{path}: the arms know one model: {{name: {NAME}}}.")
    return sweep


@dataclass(frozen=True)
class Images:
    """Decoded and resized images, uint8 [n, 3, H, W], with their classes, int64 [n]."""

    train_images: np.ndarray
    train_labels: np.ndarray
    val_images: np.ndarray
    val_labels: np.ndarray
    num_classes: int


def open_data(sweep: Sweep) -> tuple[Split, Split, int]:
    """Return the training and the validation images, and the number of classes."""
    splits = load_splits(sweep.data, sweep.seed, check_leakage=False)
    assert splits.val is not None, "a sweep is judged by its validation images"
    return splits.train, splits.val, len(splits.classes)


def prepare(sweep: Sweep) -> Preprocessing:
    """Return how images are resized and normalised."""
    return resolve_preprocessing(sweep.data, PREPROCESSING)


def decode_all(sweep: Sweep) -> Images:
    """Decode and resize every image once."""
    train, val, num_classes = open_data(sweep)
    transform = evaluation_transform(prepare(sweep))

    def stack(split: Split) -> np.ndarray:
        return np.stack([transform(decode(split.read(i), split.identity(i))).numpy() for i in range(len(split))])

    return Images(stack(train), train.labels, stack(val), val.labels, num_classes)


def train_batches(images: Images, sweep: Sweep, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield uint8 [b, 3, H, W] and int64 [b] in the order that every arm uses in `epoch` (0-based)."""
    order = global_order(len(images.train_labels), sweep.seed, epoch)
    for start in range(0, len(order), sweep.batch_size):
        chosen = order[start : start + sweep.batch_size]
        yield torch.from_numpy(images.train_images[chosen]), torch.from_numpy(images.train_labels[chosen])


def val_batches(images: Images, sweep: Sweep) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield uint8 [b, 3, H, W] and int64 [b] of all validation images."""
    for start in range(0, len(images.val_labels), sweep.batch_size):
        chosen = np.arange(start, min(start + sweep.batch_size, len(images.val_labels)))
        yield torch.from_numpy(images.val_images[chosen]), torch.from_numpy(images.val_labels[chosen])


def normalised(batches: Batches, preprocessing: Preprocessing) -> Iterator[tuple[Tensor, Tensor]]:
    """Turn uint8 images into float32 ones, channels last."""
    for images, labels in batches:
        yield normalise(images, preprocessing).contiguous(memory_format=torch.channels_last), labels


def build(num_classes: int, seed: int) -> EfficientNet:
    """Return the pretrained network with a new head."""
    network = efficientnet_lite0(num_classes=num_classes)
    pretrained = with_own_names(torch.load(weights_file(), weights_only=True), network)
    kept = {name: tensor for name, tensor in pretrained.items() if not name.startswith(HEAD)}
    missing, unexpected = network.load_state_dict(kept, strict=False)
    assert not unexpected
    assert all(name.startswith(HEAD) for name in missing)
    initialise_head(network, HEAD, seed)
    return network


def stages(network: EfficientNet) -> list[nn.Module]:
    """Return the ten stages; one after the other they are the network."""
    *convolutions, last = network.features
    dropout, head = network.classifier
    return [*convolutions, nn.Sequential(last, network.avgpool, nn.Flatten(1), dropout), head]


def freeze(network: EfficientNet, freeze_depth: int | str) -> list[nn.Module]:
    """Take the gradients of all but the trained stages; return the frozen ones (`all`: all but the head)."""
    parts = stages(network)
    frozen = parts[:-1] if freeze_depth == "all" else parts[: int(freeze_depth)]
    network.requires_grad_(True)
    for part in frozen:
        part.requires_grad_(False)
    return frozen


def set_train_mode(network: nn.Module, frozen: Iterable[nn.Module]) -> None:
    """Set training mode, but for frozen stages: their BatchNorm keeps its statistics, their dropout is off."""
    network.train()
    for part in frozen:
        part.eval()


def make_optimizer(network: nn.Module, learning_rate: float, sweep: Sweep) -> torch.optim.SGD:
    """Return SGD over the trained parameters."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return torch.optim.SGD(trained, lr=learning_rate, momentum=sweep.optim.momentum)


def make_schedule(optimizer: torch.optim.Optimizer, num_images: int, sweep: Sweep) -> LambdaLR:
    """Return the schedule of the learning rate, stepped once per optimiser step."""
    total = -(-num_images // sweep.batch_size) * sweep.epochs

    def factor(step: int) -> float:
        return 0.5 * (1 + math.cos(math.pi * step / total)) if sweep.optim.schedule == "cosine" else 1.0

    return LambdaLR(optimizer, factor)


def seed_step(seed: int, epoch: int, step: int) -> None:
    """Seed dropout and stochastic depth for one step as tltrain does, so that loss curves can be compared."""
    digest = hashlib.blake2b(repr((seed, "lane", epoch, step, 0, 0)).encode(), digest_size=8).digest()
    torch.default_generator.manual_seed(int.from_bytes(digest, "little") >> 1)


def train_epoch(
    forward: Callable[[Tensor], Tensor], batches: Batches, schedule: LambdaLR, *, seed: int, epoch: int
) -> float:
    """Train on `batches` of float32 [b, 3, H, W] and int64 [b]; return the mean loss over the samples."""
    optimizer, total, count = schedule.optimizer, 0.0, 0
    for step, (images, labels) in enumerate(batches):
        seed_step(seed, epoch, step)
        loss = functional.cross_entropy(forward(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        total += loss.item() * len(labels)
        count += len(labels)
    return total / count


@torch.no_grad()
def evaluate(forward: Callable[[Tensor], Tensor], batches: Batches) -> tuple[float, float]:
    """Return the mean loss and the share of hits over the samples of `batches`, float32 and int64."""
    loss, hits, count = 0.0, 0, 0
    for images, labels in batches:
        logits = forward(images)
        loss += functional.cross_entropy(logits, labels, reduction="sum").item()
        hits += int((logits.argmax(1) == labels).sum())
        count += len(labels)
    return loss / count, hits / count


def make_row(epoch: int, train_loss: float, validation: tuple[float, float]) -> Row:
    """Return what every arm reports after `epoch` (counted from 1)."""
    return {"epoch": epoch, "train_loss": train_loss, "val_loss": validation[0], "val_top1": validation[1]}


def score(curve: list[Row]) -> tuple[float, float]:
    """Return what trials are ranked by: the best accuracy, and among equals the lower loss."""
    return max((row["val_top1"], -row["val_loss"]) for row in curve)


def write_table(sweep: Sweep, curves: list[tuple[Values, list[Row]]]) -> None:
    """Write the trials, the best first."""
    ranked = sorted(curves, key=lambda trial: score(trial[1]), reverse=True)
    rows = [{"values": values, "top1": score(curve)[0], "curve": curve} for values, curve in ranked]
    sweep.folder.mkdir(parents=True, exist_ok=True)
    Path(sweep.folder, "table.json").write_text(json.dumps(rows, indent=1) + "\n")
