"""Tests of tltrain.export.exporter: every format, of networks of every kind, gives what the run's model gives."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from finished_runs import CLASSES, finished_run, finished_sweep
from safetensors.torch import load_file

from tltrain.data.preprocessing import Preprocessing
from tltrain.errors import ExportError, SpecError
from tltrain.export import huggingface, onnx_format, torch_format
from tltrain.export.exporter import WRITERS, Exported, export_model
from tltrain.export.graph import LOGITS, PROBABILITIES, classifier
from tltrain.export.huggingface import crop_share
from tltrain.export.images import find_sample
from tltrain.export.trained import open_trained
from tltrain.run_folder import RunFolder

SMALL: dict[str, Any] = {"model.name": "resnet18"}
LITE = {"model.name": "efficientnet_lite0"}
VIT = {"model.name": "vit_b_16", "data.image_size": None, "data.resize_size": None}
TIMM = {"model.name": "timm/resnet10t.c3_in1k", "data.image_size": 64, "data.resize_size": 72}
TIMM_VIT = {"model.name": "timm/vit_tiny_patch16_224", "data.image_size": None, "data.resize_size": None}


def export(run: RunFolder, format_name: str, out: Path, **options: Any) -> Exported:
    return export_model(run.uri, format_name, out, **options)


def read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def assert_equals_model(run: RunFolder, out: Path, found: Exported) -> None:
    """Check what an export says of itself, and that a folder of it is there."""
    assert sorted(found.files) == sorted(path.name for path in out.iterdir())
    assert found.check.num_images == 16
    assert "test images" in found.check.images
    assert found.check.logit_difference <= found.check.logit_tolerance
    assert found.check.probability_difference < 1e-4


def test_safetensors_are_the_model_folder_and_load_in_plain_torchvision(tmp_path: Path) -> None:
    run, out = finished_run(tmp_path), tmp_path / "out"

    found = export(run, "safetensors", out)

    assert found.check.logit_difference == 0
    for name in run.model.names():
        assert (out / name).read_bytes() == run.model.read_bytes(name)
    card = read(out / "model.json")
    model = torchvision.models.get_model(card["name"], **card["arguments"])
    model.load_state_dict(load_file(out / "model.safetensors"))


@pytest.mark.slow
def test_a_graph_takes_batches_of_any_size_and_needs_no_code(tmp_path: Path) -> None:
    run, out = finished_run(tmp_path, SMALL), tmp_path / "out"

    found = export(run, "torch", out)

    assert_equals_model(run, out, found)
    card = read(out / "model.json")
    assert card["classes"] == CLASSES
    assert card["graph"]["input"]["shape"] == ["batch", 3, 32, 32]
    program = torch.export.load(out / torch_format.FILE)
    assert not any(node.meta.get("stack_trace") for node in program.graph.nodes), "places of this machine's files"
    trained = open_trained(run.uri)
    images = find_sample(trained, None).images[:7]
    with torch.inference_mode():
        own, theirs = classifier(trained.network)(images), program.module()(images)
    assert torch.equal(own[PROBABILITIES], theirs[PROBABILITIES])
    assert torch.equal(own[LOGITS], theirs[LOGITS])


def test_huggingface_folder_has_names_preprocessing_and_a_card(tmp_path: Path) -> None:
    run, out = finished_sweep(tmp_path), tmp_path / "out"

    found = export(run, "huggingface", out)

    assert_equals_model(run, out, found)
    config, preprocessor = read(out / "config.json"), read(out / "preprocessor_config.json")
    assert config["id2label"] == {str(number): name for number, name in enumerate(CLASSES)}
    assert config["label2id"] == {name: number for number, name in enumerate(CLASSES)}
    assert (config["library_name"], config["architecture"]) == ("torchvision", "shufflenet_v2_x0_5")
    assert preprocessor["crop_size"] == {"height": 32, "width": 32}
    assert "# search" in (out / "README.md").read_text("utf-8")


def test_a_network_that_differs_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, out = finished_run(tmp_path), tmp_path / "out"
    another = torchvision.models.shufflenet_v2_x0_5(num_classes=10)
    monkeypatch.setattr(huggingface, "_rebuilt", lambda *_: (another, "another"))

    with pytest.raises(ExportError, match="differs"):
        export(run, "huggingface", out)

    assert not out.exists()


def test_a_missing_package_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)

    with pytest.raises(SpecError, match=r"needs onnxruntime.*tltrain\[onnx\]"):
        export_model(str(tmp_path / "no-run"), "onnx")


def test_an_existing_folder_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="is there already"):
        export_model(str(tmp_path / "no-run"), "torch", tmp_path)


@pytest.mark.parametrize("resize", range(224, 300))
def test_size_before_the_crop_survives_timms_arithmetic(resize: int) -> None:
    assert int(224 / crop_share(Preprocessing(resize, 224))) == resize


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    "changes", [SMALL, LITE, VIT, TIMM, TIMM_VIT], ids=lambda changes: str(changes["model.name"]).replace("/", "-")
)
def test_every_format_gives_what_the_model_gives(tmp_path: Path, changes: dict[str, Any]) -> None:
    run = finished_run(tmp_path, changes)

    for format_name in WRITERS:
        out = tmp_path / format_name
        assert_equals_model(run, out, export(run, format_name, out))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_onnx_holds_classes_and_preprocessing_and_takes_any_batch(tmp_path: Path) -> None:
    import onnxruntime

    run, out = finished_run(tmp_path, SMALL), tmp_path / "out"

    export(run, "onnx", out)

    session = onnxruntime.InferenceSession(out / onnx_format.FILE, providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == CLASSES
    assert json.loads(about["preprocessing"])["crop_size"] == 32
    assert session.get_inputs()[0].shape == ["batch", 3, 32, 32]
    assert [output.shape for output in session.get_outputs()] == [["batch", 10]] * 2
    assert sys.prefix.encode() not in (out / onnx_format.FILE).read_bytes(), "places of this machine's files"
    images = find_sample(open_trained(run.uri), None).images[:5].numpy()
    (probabilities,) = session.run([PROBABILITIES], {"images": images})
    assert np.asarray(probabilities).shape == (5, 10)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [TIMM, TIMM_VIT], ids=lambda changes: changes["model.name"].replace("/", "-"))
def test_timm_prepares_images_as_the_run_did(tmp_path: Path, changes: dict[str, Any]) -> None:
    import skimage
    import timm
    from PIL import Image
    from timm.data.config import resolve_model_data_config
    from timm.data.transforms_factory import create_transform

    from tltrain.data.transforms import evaluation_transform, normalise

    run, out = finished_run(tmp_path, changes), tmp_path / "out"
    export(run, "huggingface", out)
    photo = Image.open(Path(skimage.__file__).parent / "data" / "coffee.png").convert("RGB")

    model: Any = timm.create_model(f"local-dir:{out}", pretrained=True)
    transform: Any = create_transform(**resolve_model_data_config(model))
    theirs = transform(photo)

    own = open_trained(run.uri).network.preprocessing
    torch.testing.assert_close(theirs, normalise(evaluation_transform(own)(photo)[None], own)[0], atol=1e-6, rtol=0)
    assert model.pretrained_cfg["label_names"] == CLASSES
