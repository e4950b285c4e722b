"""model.json beside an exported graph: the run's own, and what goes into the graph and comes out of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tltrain.data.preprocessing import Preprocessing
from tltrain.export.graph import INPUT, LOGITS, PROBABILITIES
from tltrain.export.trained import Trained


def write_description(trained: Trained, folder: Path) -> None:
    """Write model.json into `folder`."""
    write_json(folder / "model.json", {**trained.card, "graph": describe_graph(trained)})


def describe_graph(trained: Trained) -> dict[str, Any]:
    """Return names, types and shapes of the graph's input and outputs, and what is to be done to an image before."""
    size, scores = trained.network.preprocessing.crop_size, ["batch", len(trained.network.classes)]
    return {
        "input": {"name": INPUT, "dtype": "uint8", "shape": ["batch", 3, size, size], "channels": "RGB"},
        "outputs": [
            {"name": LOGITS, "dtype": "float32", "shape": scores},
            {"name": PROBABILITIES, "dtype": "float32", "shape": scores},
        ],
        "before": before_the_graph(trained.network.preprocessing),
        "inside": (
            "scaling to 0..1, subtraction of the mean and division by std per channel, the network, softmax of the "
            f"logits divided by {trained.network.temperature:g}"
        ),
    }


def before_the_graph(preprocessing: Preprocessing) -> str:
    """Return in words what is to be done to an image before it goes into the graph."""
    return (
        f"turn it upright by its EXIF orientation, convert it to RGB, resize its shorter side to "
        f"{preprocessing.resize_size} pixels ({preprocessing.interpolation}, antialiased), crop the central "
        f"{preprocessing.crop_size} x {preprocessing.crop_size}"
    )


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file for people to read."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", errors="backslashreplace")
