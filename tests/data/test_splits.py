"""Splits: fractions, separate sources, the class mapping, leakage, the fingerprint."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_helpers import spec

from tltrain.data import leakage
from tltrain.data.splits import Split, load_splits, open_split
from tltrain.errors import DataError


def ids(split: Split | None) -> list[str]:
    assert split is not None
    return [split.identity(i) for i in range(len(split))]


def write(path: Path, labels: list[str], images: list[bytes] | None = None) -> Path:
    """Write a table; images are distinct bytes unless given."""
    images = images or [f"{path.stem}{i}".encode() for i in range(len(labels))]
    pq.write_table(pa.table({"image": images, "label": labels}), path)
    return path


def test_fractions_divide_all_images_in_each_class(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", ["a"] * 20 + ["b"] * 50 + ["c"] * 5)
    splits = load_splits(spec(path, val=0.1, test=0.2), 0)
    assert splits.val is not None
    assert splits.test is not None
    assert np.bincount(splits.test.labels).tolist() == [4, 10, 1]
    assert np.bincount(splits.val.labels).tolist() == [2, 5, 1]
    assert sorted(ids(splits.train) + ids(splits.val) + ids(splits.test)) == sorted(f"t.parquet#{i}" for i in range(75))
    assert np.all(np.diff(splits.train.indices) > 0)


def test_small_classes_keep_a_training_image(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", ["a"] + ["b"] * 2 + ["c"] * 3)
    splits = load_splits(spec(path, val=0.1, test=0.1), 0)
    assert splits.val is not None
    assert splits.test is not None
    assert np.bincount(splits.train.labels).tolist() == [1, 1, 1]
    assert splits.test.labels.tolist() == [1, 2]
    assert splits.val.labels.tolist() == [2]


def test_split_seed_stands_in_for_the_seed(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", ["a", "b"] * 50)
    settings = {"val": 0.2, "test": 0.1, "split_seed": 1}
    first, other = (load_splits(spec(path, **settings), seed) for seed in (2, 3))
    plain = load_splits(spec(path, val=0.2, test=0.1), 1)
    assert first.fingerprint == other.fingerprint == plain.fingerprint
    assert ids(first.val) == ids(plain.val)
    assert load_splits(spec(path, **settings | {"split_seed": 0}), 1).fingerprint != plain.fingerprint


def test_division_depends_on_the_seed_and_stays_when_images_are_added(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", ["a", "b"] * 50)
    first = ids(load_splits(spec(path, val=0.2), 1).val)
    assert ids(load_splits(spec(path, val=0.2), 1).val) == first
    assert ids(load_splits(spec(path, val=0.2), 2).val) != first
    write(path, ["a", "b"] * 55)
    assert len(set(ids(load_splits(spec(path, val=0.2), 1).val)) & set(first)) >= 16


def test_zero_fraction_is_no_split(tmp_path: Path) -> None:
    splits = load_splits(spec(write(tmp_path / "t.parquet", ["a", "b"]), val=0.0), 0)
    assert splits.val is None
    assert splits.test is None


def test_other_sources_are_labelled_by_the_training_classes(tmp_path: Path) -> None:
    train = write(tmp_path / "train.parquet", ["x", "a", "m", "a"])
    test = write(tmp_path / "test.parquet", ["x", "m"])
    splits = load_splits(spec(train, test=str(test)), 0)
    assert splits.classes == ("a", "m", "x")
    assert splits.test is not None
    assert splits.test.labels.tolist() == [2, 1]
    assert splits.warnings == ("data.test has no images of a.",)
    other = open_split(str(test), spec(), ["m", "z", "x"])
    assert other.labels.tolist() == [2, 0]


def test_unknown_classes_are_refused(tmp_path: Path) -> None:
    train = write(tmp_path / "train.parquet", ["cat", "dog"])
    val = write(tmp_path / "val.parquet", ["cat", "owl", "yak"])
    with pytest.raises(DataError, match=r"data.val: .* does not have: owl, yak. Known are cat, dog"):
        load_splits(spec(train, val=str(val)), 0)
    with pytest.raises(DataError, match="owl"):
        open_split(str(val), spec(), ["cat"])


BAD = {
    "one class": (["a"] * 3, {}, "has 1 class"),
    "no room for val": (["a", "b"], {"val": 0.5}, "leaves no image for val"),
    "fractions of one": (["a", "b"] * 5, {"val": 0.5, "test": 0.5}, "leave no training images"),
}


@pytest.mark.parametrize("name", BAD)
def test_data_that_cannot_be_divided_is_refused(tmp_path: Path, name: str) -> None:
    labels, settings, words = BAD[name]
    with pytest.raises(DataError, match=words):
        load_splits(spec(write(tmp_path / "t.parquet", labels), **settings), 0)


def test_fewer_images_than_classes_and_empty_classes(tmp_path: Path) -> None:
    table = pa.table({"image": [b"1", b"2"], "label": [0, 2]})
    path = tmp_path / "t.parquet"
    pq.write_table(table.replace_schema_metadata({"classes": '["a", "b", "c"]'}), path)
    with pytest.raises(DataError, match="2 images for 3 classes"):
        load_splits(spec(path), 0)
    table = pa.table({"image": [b"1", b"2", b"3"], "label": [0, 2, 2]})
    pq.write_table(table.replace_schema_metadata({"classes": '["a", "b", "c"]'}), path)
    assert load_splits(spec(path), 0).warnings == ("data.train has no images of b.",)


def test_fingerprint_is_of_data_and_division(digit_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(digit_folder, tmp_path / "copy")
    first = load_splits(spec(digit_folder, val=0.2), 0).fingerprint
    assert load_splits(spec(tmp_path / "copy", val=0.2), 0).fingerprint == first
    assert load_splits(spec(digit_folder, val=0.2), 1).fingerprint != first
    assert load_splits(spec(digit_folder, val=0.3), 0).fingerprint != first
    (tmp_path / "copy" / "zero" / "000.png").rename(tmp_path / "copy" / "one" / "000.png")
    assert load_splits(spec(tmp_path / "copy", val=0.2), 0).fingerprint != first


def test_same_image_in_train_and_test_is_a_warning(digit_folder: Path, tmp_path: Path) -> None:
    images = sorted((digit_folder / "one").iterdir())[:3]
    test = tmp_path / "test"
    (test / "two").mkdir(parents=True)
    for image in images[:2]:
        shutil.copy(image, test / "two" / f"renamed-{image.name}")
    (test / "two" / "other.png").write_bytes(images[2].read_bytes()[:-1] + b"\0")
    warnings = load_splits(spec(digit_folder, test=str(test)), 0).warnings
    assert warnings[-1].startswith("2 of 3 images of data.test are training images too")
    assert f"two/renamed-{images[0].name} is one/{images[0].name}" in warnings[-1]
    assert len(load_splits(spec(digit_folder, test=str(test)), 0, check_leakage=False).warnings) == 1


def test_same_image_twice_in_one_source_leaks_through_a_fraction(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", ["a", "b"] * 10, [b"x", b"y"] * 10)
    assert "2 of 2 images of data.val" in load_splits(spec(path, val=0.1), 0).warnings[0]


def test_leakage_is_not_looked_for_beyond_its_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    path = write(tmp_path / "t.parquet", ["a", "b"] * 10, [b"x", b"y"] * 10)
    monkeypatch.setattr(leakage, "MAX_IMAGES", 19)
    assert load_splits(spec(path, val=0.1), 0).warnings == ()
    assert "are not compared" in caplog.text
