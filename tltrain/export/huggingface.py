"""The format `huggingface`: a folder in the style of the Hugging Face hub, with a model card made from the run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torchvision
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from tltrain.data.preprocessing import Preprocessing
from tltrain.errors import ExportError
from tltrain.export.check import Check, check
from tltrain.export.description import write_json
from tltrain.export.graph import Classifier
from tltrain.export.images import Sample
from tltrain.export.model_card import render_model_card
from tltrain.export.safetensors_format import copy_file
from tltrain.export.trained import Trained
from tltrain.models import lite
from tltrain.models.architectures import find_architecture

WEIGHTS = "model.safetensors"
TIMM = "timm/"


def write_huggingface(trained: Trained, folder: Path, sample: Sample) -> Check:
    """Write model.safetensors, config.json, preprocessor_config.json and README.md into `folder`.

    The network is built again from these files alone (a timm network by timm) and compared with the run's. Raises
    ExportError where it differs.
    """
    copy_file(trained, WEIGHTS, folder)
    config = model_config(trained)
    write_json(folder / "config.json", config)
    write_json(folder / "preprocessor_config.json", preprocessor_config(trained.network.preprocessing))
    card = render_model_card(trained, library(trained))
    (folder / "README.md").write_text(card, encoding="utf-8", errors="backslashreplace")
    module, runtime = _rebuilt(trained, config, folder)
    rebuilt = Classifier(module.eval(), trained.network.preprocessing, config["temperature"])
    return check(trained.network, rebuilt, sample, runtime)


def library(trained: Trained) -> str:
    """Return what builds the network: `timm`, `torchvision`, or `tltrain` where it takes code of ours or the user's."""
    if trained.architecture.startswith(TIMM):
        return "timm"
    is_ours = trained.architecture == lite.NAME or trained.card.get("name") is None
    return "tltrain" if is_ours else "torchvision"


def model_config(trained: Trained) -> dict[str, Any]:
    """Return config.json: what builds the network, and the names of its classes. timm reads it where it is timm's."""
    names = dict(enumerate(trained.network.classes))
    is_timm = library(trained) == "timm"
    return {
        "architecture": _timm_name(trained)[0] if is_timm else trained.architecture,
        "library_name": library(trained),
        **(_timm_config(trained) if is_timm else {"arguments": trained.network.arguments}),
        "num_classes": len(names),
        "num_channels": 3,
        "image_size": trained.network.preprocessing.crop_size,
        "id2label": {str(number): name for number, name in names.items()},
        "label2id": {name: number for number, name in names.items()},
        "temperature": trained.network.temperature,
        "problem_type": "single_label_classification",
        "torch_dtype": "float32",
    }


def preprocessor_config(preprocessing: Preprocessing) -> dict[str, Any]:
    """Return preprocessor_config.json, in the terms of the image processors of Transformers."""
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": preprocessing.resize_size},
        "resample": int(Image.Resampling[preprocessing.interpolation.upper()]),
        "do_center_crop": True,
        "crop_size": {"height": preprocessing.crop_size, "width": preprocessing.crop_size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }


def _timm_name(trained: Trained) -> tuple[str, str]:
    """Return timm's name of the architecture, and the tag of its pretrained weights."""
    name, _, tag = trained.architecture.removeprefix(TIMM).partition(".")
    return name, tag


def _timm_config(trained: Trained) -> dict[str, Any]:
    """Return what timm reads besides: arguments of the network, and how images are prepared."""
    preprocessing, module = trained.network.preprocessing, trained.network.module
    known: Mapping[str, Any] = getattr(module, "pretrained_cfg", None) or {}
    kept = {
        name: known[name] for name in ("first_conv", "classifier", "pool_size", "fixed_input_size") if name in known
    }
    arguments = {name: value for name, value in trained.network.arguments.items() if name != "num_classes"}
    return {
        "model_args": arguments,
        "label_names": list(trained.network.classes),
        "pretrained_cfg": {
            **kept,
            "tag": _timm_name(trained)[1],
            "custom_load": False,
            "input_size": [3, preprocessing.crop_size, preprocessing.crop_size],
            "interpolation": preprocessing.interpolation,
            "crop_pct": crop_share(preprocessing),
            "crop_mode": "center",
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
            "num_classes": len(trained.network.classes),
        },
    }


def crop_share(preprocessing: Preprocessing) -> float:
    """Return the crop as a share of the size before it, so that timm's `int(crop / share)` is that size again."""
    share = preprocessing.crop_size / preprocessing.resize_size
    is_exact = int(preprocessing.crop_size / share) == preprocessing.resize_size
    return share if is_exact else preprocessing.crop_size / (preprocessing.resize_size + 0.5)


def _rebuilt(trained: Trained, config: Mapping[str, Any], folder: Path) -> tuple[nn.Module, str]:
    """Return the network that the files describe, and what built it."""
    if library(trained) == "timm":
        import timm

        return timm.create_model(f"local-dir:{folder}", pretrained=True), f"timm {timm.__version__}"
    name, factory = trained.card.get("name"), trained.card.get("factory")
    module = find_architecture(name, factory, trained.place.allow_code).build(config["arguments"], False)
    try:
        module.load_state_dict(load_file(folder / WEIGHTS))
    except (RuntimeError, ValueError) as error:
        what = f"the weights do not fit the network that config.json describes: {error}"
        raise ExportError(what, "Choose --format safetensors") from error
    return module, f"torchvision {torchvision.__version__}"
