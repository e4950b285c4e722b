"""The programs in examples/ name a photo as the run's own model does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from finished_runs import change_model_json, finished_run

from tltrain.data.decode import decode
from tltrain.data.transforms import evaluation_transform
from tltrain.export.exporter import export_model
from tltrain.export.graph import PROBABILITIES, classifier
from tltrain.export.trained import open_trained

FORMATS = ("safetensors", "torch", "onnx", "huggingface")
NETWORKS: dict[str, dict[str, Any]] = {
    "resnet18": {"data.image_size": 96, "data.resize_size": 110},
    "efficientnet_lite0": {"data.image_size": 64, "data.resize_size": 64},
    "timm/resnet10t.c3_in1k": {"data.image_size": 64, "data.resize_size": 72},
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", NETWORKS)
def test_examples_give_the_probabilities_of_the_model(tmp_path: Path, project_dir: Path, name: str) -> None:
    import skimage

    photo = Path(skimage.__file__).parent / "data" / "coffee.png"
    run = finished_run(tmp_path, {"model.name": name, **NETWORKS[name]})
    change_model_json(run, temperature=2.0)
    expected = top5(run.uri, photo)

    for format_name in FORMATS:
        out = tmp_path / format_name
        export_model(run.uri, format_name, out)
        program = project_dir / "examples" / f"predict_{format_name}.py"
        done = subprocess.run(
            [sys.executable, str(program), str(out), str(photo)], capture_output=True, text=True, timeout=200
        )
        assert done.returncode == 0, done.stderr
        shown = [line.split("  ", 1) for line in done.stdout.splitlines()]
        assert [name for _, name in shown] == [name for _, name in expected], format_name
        assert [float(p) for p, _ in shown] == pytest.approx([p for p, _ in expected], abs=2e-5)


def top5(run: str, photo: Path) -> list[tuple[float, str]]:
    """Return what the run's own model makes of a photo."""
    network = open_trained(run).network
    image = evaluation_transform(network.preprocessing)(decode(photo.read_bytes(), photo.name))
    with torch.inference_mode():
        probabilities = classifier(network)(image[None])[PROBABILITIES][0]
    top = probabilities.topk(5)
    return [(p, network.classes[i]) for p, i in zip(top.values.tolist(), top.indices.tolist(), strict=True)]


def test_there_is_an_example_for_every_format(project_dir: Path) -> None:
    programs = {path.name for path in (project_dir / "examples").glob("predict_*.py")}

    assert programs == {f"predict_{name}.py" for name in FORMATS}
