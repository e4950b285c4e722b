"""Specs that ship in jobs/, run for real on little data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cifar_files import CLASSES, write_cifar
from tiny import write_digits

import tltrain.run as far_side
from tltrain.models.zoo import load_trained
from tltrain.run_folder import RunFolder
from tltrain.spec.load import load_spec


def train(spec_path: Path, *sets: str) -> RunFolder:
    loaded = load_spec(spec_path, sets)
    assert far_side.execute(loaded, local=True) == 0
    return RunFolder.at(loaded.spec.storage, loaded.spec.name)


@pytest.mark.slow
def test_the_classic_recipe_trains_every_layer_on_cifars_own_files(
    project_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cifar(tmp_path, monkeypatch)
    run = train(
        project_dir / "jobs" / "cifar10-resnet50.yaml",
        f"data.root={tmp_path}",
        "data.download=false",
        "model.weights=random",
        "train.epochs=1",
        f"storage={tmp_path}",
    )
    evaluation = run.read_json("evaluation.json")
    assert evaluation["split"] == "test"
    assert evaluation["num_images"] == 20
    network = load_trained(run.uri)
    assert network.classes == tuple(CLASSES)
    assert network.preprocessing.mean == (0.5, 0.5, 0.5)
    head = network.module.get_submodule(network.head_name)
    assert isinstance(head, torch.nn.Linear)
    assert head.out_features == 10
    assert run.metrics()[0]["frozen_stages"] == 0


def test_pretrain_then_finetune_is_a_chain_of_specs(
    project_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_digits(tmp_path)
    little = [f"data.train={tmp_path / 'train.parquet'}", f"data.test={tmp_path / 'test.parquet'}"]
    little += ["data.image_size=32", "data.resize_size=32", "train.epochs=1", f"storage={tmp_path / 'runs'}"]
    jobs = project_dir / "jobs" / "pretrain-then-finetune"
    first = train(jobs / "1-pretrain.yaml", *little)
    second = train(jobs / "2-finetune.yaml", *little, f"model.weights={first.uri}")
    before, after = (load_trained(run.uri).module.state_dict() for run in (first, second))
    assert torch.equal(before["layer1.0.conv1.weight"], after["layer1.0.conv1.weight"])
    assert not torch.equal(before["layer4.0.conv1.weight"], after["layer4.0.conv1.weight"])


@pytest.mark.parametrize("network", ["alexnet", "vgg11", "resnet18"])
def test_the_fashion_recipes_name_networks_that_build_and_freeze(
    project_dir: Path, network: str, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = load_spec(project_dir / "jobs" / f"fashion-{network}.yaml", ["model.weights=random"])
    assert far_side.explain(loaded, as_json=True) == 0
    facts: Any = capsys.readouterr().out
    assert '"name": "head"' in facts
