"""Hugging Face data sets from folders: saved ones and data files, their splits, columns and class names."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from data_helpers import encode, spec
from PIL import Image

from tltrain.data.parts import spec_of
from tltrain.data.sources import Source, open_source, split_names
from tltrain.data.splits import load_splits, open_split
from tltrain.errors import DataError
from tltrain.spec.load import parse_spec

datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.filterwarnings("ignore")  # the library's own

IMAGES = [encode(Image.new("L", (4, 4), shade)) for shade in range(6)]


def part(numbers: list[int], image: str = "image", label: str = "label"):
    features = {image: datasets.Image(), label: datasets.ClassLabel(names=["cat", "dog", "owl"])}
    rows = {image: [{"bytes": IMAGES[n], "path": None} for n in numbers], label: [n % 2 for n in numbers]}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A data set with three splits, as save_to_disk writes it."""
    parts = {"train": part([0, 1, 2, 3]), "validation": part([4]), "test": part([5, 4])}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "set")
    return tmp_path / "set"


def opened(uri: str, split: str = "train", **settings: object) -> Source:
    return open_source(uri, spec(**settings), split=split)  # type: ignore[arg-type]


def test_saved_data_set_has_its_splits_and_class_names(saved: Path) -> None:
    source = opened(f"huggingface:{saved}")

    assert source.classes == ("cat", "dog", "owl")
    assert source.labels.tolist() == [0, 1, 0, 1]
    assert [source.read(i) for i in range(4)] == IMAGES[:4]
    assert source.identity(2) == "set/train#2"
    assert opened(f"huggingface:{saved}", "val").read(0) == IMAGES[4]
    assert opened(f"huggingface:{saved}:test").read(0) == IMAGES[5]
    assert split_names(f"huggingface:{saved}", spec()) == ["train", "val", "test"]


def test_splits_fractions_and_evaluation_are_as_of_any_source(saved: Path) -> None:
    uri = f"huggingface:{saved}"
    splits = load_splits(spec(uri, val=0.5, test=uri), 0)

    assert splits.test is not None
    assert (len(splits.train), len(splits.test)) == (2, 2)
    assert splits.fingerprint == load_splits(spec(uri, val=0.5, test=uri), 0).fingerprint
    assert "data.train has no images of owl." in splits.warnings
    assert open_split(uri, spec(), ["cat", "dog", "owl"]).read(0) == IMAGES[5]
    assert spec_of(uri, (), ())[1] == ["train", "val", "test"]


def test_single_split_odd_columns_and_selected_rows(tmp_path: Path) -> None:
    part([0, 1, 2, 3], "img", "fine").select([3, 0]).save_to_disk(tmp_path / "one")

    source = opened(f"huggingface:{tmp_path / 'one'}")

    assert [source.read(i) for i in range(2)] == [IMAGES[3], IMAGES[0]]
    assert source.labels.tolist() == [1, 0]


def test_folder_of_data_files_and_images_that_are_files(tmp_path: Path) -> None:
    part([0, 1, 2]).to_parquet(tmp_path / "files" / "train.parquet")
    assert opened(f"huggingface:{tmp_path / 'files'}", root=str(tmp_path / "c")).read(1) == IMAGES[1]

    for number in range(4):
        folder = tmp_path / "tree" / "train" / ("cat", "dog")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes(IMAGES[number])
    source = opened(f"huggingface:{tmp_path / 'tree'}", root=str(tmp_path / "c"))

    assert source.classes == ("cat", "dog")
    assert [source.read(i) for i in range(4)] == [IMAGES[0], IMAGES[2], IMAGES[1], IMAGES[3]]


def test_what_is_not_there_is_told(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"has no split dev\. It has train, validation, test"):
        opened(f"huggingface:{saved}:dev")
    with pytest.raises(DataError, match=r"data\.download is false"):
        opened("huggingface:somebody/something", download=False)
    with pytest.raises(DataError, match=r"Set data\.label_column to one of: image, label"):
        opened(f"huggingface:{saved}", image_column="photo", label_column="kind")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'tltrain\[huggingface\]'"):
        opened(f"huggingface:{saved}")


def test_folder_is_relative_to_the_spec_and_a_name_stays(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    text = "name: x\nmodel: {name: resnet18}\ndata: {train: 'huggingface:images:train', test: 'huggingface:a/b'}\n"

    data = parse_spec(text, where="x", base=tmp_path).spec.data

    assert (data.train, data.test) == (f"huggingface:{tmp_path}/images:train", "huggingface:a/b")
