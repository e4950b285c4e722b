"""The specs and the data that ship in jobs/."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from tltrain.spec.load import load_spec

JOBS_DIR = Path(__file__).resolve().parent.parent / "jobs"
JOBS = sorted(JOBS_DIR.rglob("*.yaml"))
EXPECTED = {
    "cifar10-resnet50",
    "fashion-alexnet",
    "fashion-finetune",
    "fashion-pretrain",
    "fashion-resnet18",
    "fashion-vgg11",
    "quickstart",
    "fashion-lite0",
    "two-node",
}


def test_the_expected_jobs_ship() -> None:
    names = [load_spec(path).spec.name for path in JOBS]

    assert set(names) >= EXPECTED
    assert len(names) == len(set(names)), "two jobs would share a run folder"


@pytest.mark.parametrize("path", JOBS, ids=[str(path.relative_to(JOBS_DIR)) for path in JOBS])
def test_job_is_valid_and_names_files_that_ship(path: Path) -> None:
    spec = load_spec(path).spec

    sources = [source for source in (spec.data.train, spec.data.val, spec.data.test) if isinstance(source, str)]
    for source in sources:
        assert source.startswith("torchvision:") or (path.parent / source).is_file(), source


def test_second_job_of_the_chain_reads_the_first_ones_run_folder(
    project_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Storage is relative to the current directory, here the project's; weights to the spec's folder.
    monkeypatch.chdir(project_dir)
    chain = JOBS_DIR / "pretrain-then-finetune"
    first, second = (load_spec(chain / name).spec for name in ("1-pretrain.yaml", "2-finetune.yaml"))

    assert (chain / second.model.weights).resolve() == project_dir / first.storage / first.name


@pytest.mark.parametrize(("split", "per_class"), [("train", 200), ("test", 50)])
def test_shipped_images_are_balanced_grey_png_of_28_pixels(fashion_dir: Path, split: str, per_class: int) -> None:
    table = pq.read_table(fashion_dir / f"{split}.parquet")
    classes = json.loads(table.schema.metadata[b"tltrain.classes"])

    assert Counter(table["label"].to_pylist()) == dict.fromkeys(classes, per_class)
    for content in table["image"].to_pylist():
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            assert (image.mode, image.size) == ("L", (28, 28))


def test_shipped_training_and_test_images_do_not_overlap(fashion_dir: Path) -> None:
    train, test = (
        set(pq.read_table(fashion_dir / f"{split}.parquet")["image"].to_pylist()) for split in ("train", "test")
    )

    assert not train & test
