"""torchvision's data sets, read from files in their own formats."""

from __future__ import annotations

import multiprocessing
import pickle
import struct
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pytest
from cifar_files import CLASSES, write_cifar
from data_helpers import encode, spec
from PIL import Image
from torchvision import datasets

from tltrain.data.decode import decode
from tltrain.data.sources import Source, open_source
from tltrain.data.splits import load_splits, open_split
from tltrain.data.torchvision_sets import LAYOUTS
from tltrain.errors import DataError
from tltrain.spec.names import TORCHVISION_DATA_SETS
from tltrain.spec.schema import DataSpec


def opened(name: str, root: Path, split: Any = "train", **settings: object) -> Source:
    return open_source(f"torchvision:{name}", settings_of(root, **settings), split=split)


def settings_of(root: Path, **settings: object) -> DataSpec:
    return spec("torchvision:CIFAR10", **{"root": str(root), "download": False, **settings})


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CIFAR-10's files with 20 random images each; returns the root."""
    write_cifar(tmp_path, monkeypatch)
    return tmp_path


def test_cifar_is_read_from_its_own_format(cifar: Path) -> None:
    source = opened("CIFAR10", cifar)
    assert source.classes == tuple(CLASSES)
    assert source.labels.tolist() == [i % 10 for i in range(20)] * 5
    assert source.identity(7) == "CIFAR10/train#7"
    with open(cifar / "cifar-10-batches-py" / "data_batch_1", "rb") as file:
        stored = pickle.load(file, encoding="latin1")["data"][7].reshape(3, 32, 32)
    image = decode(source.read(7), "x")
    assert (np.asarray(image) == stored.transpose(1, 2, 0)).all()


def test_same_name_as_train_and_test_is_two_splits(cifar: Path) -> None:
    splits = load_splits(settings_of(cifar, val=0.1, test="torchvision:CIFAR10"), 0)
    assert splits.test is not None
    assert splits.val is not None
    assert (len(splits.train), len(splits.val), len(splits.test)) == (90, 10, 20)
    assert splits.test.identity(0) == "CIFAR10/test#0"
    assert splits.warnings == ()
    assert len(open_split("torchvision:CIFAR10", settings_of(cifar), CLASSES)) == 20


def test_damaged_files_and_missing_ones_name_the_folder_and_the_address(cifar: Path, tmp_path: Path) -> None:
    (cifar / "cifar-10-batches-py" / "data_batch_3").write_bytes(b"half")
    for root in (cifar, tmp_path / "nothing"):
        with pytest.raises(DataError, match=r"data.download is false") as caught:
            opened("CIFAR10", root)
        assert f"https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz into {root}" in str(caught.value)


def idx(array: np.ndarray) -> bytes:
    """Return an array of bytes in the IDX format."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_fashion(root: Path) -> np.ndarray:
    """Write Fashion-MNIST's four files with 30 and 10 images; return the training images."""
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (30, 28, 28), dtype=np.uint8)
    for part, count in (("train", 30), ("t10k", 10)):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(images[:count]))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(np.arange(count, dtype=np.uint8) % 10))
    return images


@pytest.mark.parametrize("download", [False, True])
def test_fashion_mnist_is_read_from_idx_files(tmp_path: Path, download: bool) -> None:
    images = write_fashion(tmp_path)
    source = opened("FashionMNIST", tmp_path, download=download)
    assert source.classes[9] == "Ankle boot"
    assert (len(source), len(opened("FashionMNIST", tmp_path, "test"))) == (30, 10)
    assert (np.asarray(decode(source.read(3), "x"))[..., 0] == images[3]).all()
    with pytest.raises(DataError, match=r"FashionMNIST has no val split. It has train and test"):
        opened("FashionMNIST", tmp_path, "val")


def test_files_in_a_root_that_may_not_be_written_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_fashion(tmp_path)
    monkeypatch.setattr("os.access", lambda *_: False)
    assert len(opened("FashionMNIST", tmp_path, download=True)) == 30
    assert not (tmp_path / ".FashionMNIST.lock").exists()


def write_food(root: Path) -> None:
    """Write Food-101's layout with two classes; one image is turned by EXIF."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("apple_pie", "waffles"):
        (root / "food-101" / "images" / name).mkdir(parents=True)
        Image.new("RGB", (8, 4), "red").save(root / "food-101" / "images" / name / "1.jpg", exif=exif)
        (root / "food-101" / "images" / name / "2.jpg").write_bytes(b"")
    meta = root / "food-101" / "meta"
    meta.mkdir()
    (meta / "train.json").write_text('{"waffles": ["waffles/1"], "apple_pie": ["apple_pie/1", "apple_pie/2"]}')


def test_files_of_a_data_set_are_decoded_by_our_rules(tmp_path: Path) -> None:
    write_food(tmp_path)
    source = opened("Food101", tmp_path)
    assert source.classes == ("apple_pie", "waffles")
    assert source.labels.tolist() == [1, 0, 0]
    assert decode(source.read(0), "x").size == (4, 8)
    with pytest.raises(DataError, match="Food101/train#2: is empty"):
        decode(source.read(2), source.identity(2))


def test_set_without_splits_is_divided_by_fractions_alone(tmp_path: Path) -> None:
    for name in ("Forest", "River"):
        folder = tmp_path / "eurosat" / "2750" / name
        folder.mkdir(parents=True)
        for i in range(4):
            (folder / f"{i}.jpg").write_bytes(encode(Image.new("RGB", (4, 4), (i, 0, 0)), "JPEG"))
    data = spec("torchvision:EuroSAT", root=str(tmp_path), download=False, val=0.25)
    splits = load_splits(data, 0)
    assert (len(splits.train), splits.classes) == (6, ("Forest", "River"))
    assert splits.train.identity(0).startswith("EuroSAT/all#")
    assert len(open_split("torchvision:EuroSAT", data, splits.classes)) == 8
    with pytest.raises(
        DataError, match=r"EuroSAT has no test split. It is not split at all; set data.test to a fraction"
    ):
        opened("EuroSAT", tmp_path, "test")


def test_unlisted_order_is_sorted_and_names_are_made_where_there_are_none(tmp_path: Path) -> None:
    sun = tmp_path / "SUN397"
    (sun / "a" / "abbey").mkdir(parents=True)
    (sun / "ClassName.txt").write_text("/a/abbey\n")
    for name in ("sun_c", "sun_a", "sun_b"):
        (sun / "a" / "abbey" / f"{name}.jpg").write_bytes(name.encode())
    source = opened("SUN397", tmp_path)
    assert [source.read(i) for i in range(3)] == [b"sun_a", b"sun_b", b"sun_c"]
    assert source.classes == ("abbey",)


def test_numbers_are_names_where_a_set_has_none(tmp_path: Path) -> None:
    for number in range(3):
        folder = tmp_path / "gtsrb" / "GTSRB" / "Training" / f"{number:05d}"
        folder.mkdir(parents=True)
        Image.new("RGB", (4, 4), "blue").save(folder / "00000_00000.ppm")
    source = opened("GTSRB", tmp_path)
    assert source.classes == ("0", "1", "2")
    assert np.asarray(decode(source.read(1), "x"))[0, 0].tolist() == [0, 0, 255]


def test_failed_download_tells_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr("torchvision.datasets.food101.download_and_extract_archive", offline)
    with pytest.raises(DataError, match="Food101 could not be fetched: Name or service not known") as caught:
        opened("Food101", tmp_path, download=True)
    assert f"from http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz into {tmp_path}/food-101" in str(caught.value)


def test_second_process_waits_for_the_first_ones_download(tmp_path: Path) -> None:
    write_fashion(tmp_path)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def read() -> None:
        sender.send(len(opened("FashionMNIST", tmp_path, download=True)))

    with filelock.FileLock(tmp_path / ".FashionMNIST.lock"):
        process = context.Process(target=read)
        process.start()
        assert not receiver.poll(0.5)
    assert receiver.poll(30)
    assert receiver.recv() == 30
    process.join()


def test_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "svhn"
    folder.mkdir()
    (folder / "train_32x32.mat").write_bytes(b"x")
    monkeypatch.setattr(datasets.SVHN, "_check_integrity", lambda _: True)
    monkeypatch.setitem(__import__("sys").modules, "scipy.io", None)
    with pytest.raises(DataError, match=r"SVHN needs the package scipy.io"):
        opened("SVHN", folder)


def test_unknown_names_get_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Did you mean CIFAR10, "):
        opened("cifar10", tmp_path)
    with pytest.raises(DataError, match="Known are CIFAR10"):
        opened("zzz", tmp_path)


def test_layouts_are_those_that_specs_may_name() -> None:
    assert tuple(LAYOUTS) == TORCHVISION_DATA_SETS


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_fits_torchvisions_class(name: str, tmp_path: Path) -> None:
    for split in LAYOUTS[name].splits:
        with pytest.raises(DataError, match=f"{name} (is not there|needs the package)"):
            opened(name, tmp_path, split)
