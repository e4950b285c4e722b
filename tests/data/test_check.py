"""`data check`: what is counted, what is the same, what would end a run, and the page."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_helpers import encode
from PIL import Image

from tltrain.data.check import check_parts
from tltrain.data.duplicates import MIN_CORRELATION, near_groups
from tltrain.data.parts import open_parts, spec_of
from tltrain.data.samples import sample_images
from tltrain.report.data_page import build_page


@pytest.fixture
def photos(digit_folder: Path, tmp_path: Path) -> Path:
    """A folder with train and test folders of digits, without a fault; all contents differ."""
    for number, path in enumerate(sorted(digit_folder.rglob("*.*"))):
        folder = tmp_path / "photos" / ("test" if number % 3 == 0 else "train") / path.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / path.name)
    return tmp_path / "photos"


def checked(source: Path | str, *splits: str, sets: tuple[str, ...] = (), num_threads: int = 2) -> dict[str, Any]:
    spec, names = spec_of(str(source), splits, sets)
    findings, problems = check_parts(open_parts(spec, names), num_threads=num_threads)
    assert [str(problem) for problem in problems] == findings["problems"]
    return findings


def files(photos: Path, split: str) -> list[Path]:
    return sorted((photos / split).rglob("*.*"))


def test_folder_with_split_folders_is_counted_whole(photos: Path) -> None:
    findings = checked(photos)

    train, test = findings["splits"]["train"], findings["splits"]["test"]
    assert (train["images"], test["images"]) == (40, 20)
    assert sum(train["per_class"].values()) == 40
    assert train["width"] == train["height"] == {"min": 16, "median": 16.0, "max": 16}
    assert train["modes"] == {"L": 40}
    assert sum(train["formats"].values()) == 40
    assert findings["problems"] == []
    assert findings["duplicates"]["exact"]["groups"] == []


def test_mean_and_std_are_those_of_all_pixels(photos: Path) -> None:
    found = checked(photos, "train")["splits"]["train"]

    pixels = np.stack([np.asarray(Image.open(path)) for path in files(photos, "train")]) / 255
    assert found["mean"] == [round(float(pixels.mean()), 4)] * 3
    assert found["std"] == [round(float(pixels.std()), 4)] * 3


def test_result_does_not_depend_on_threads(photos: Path) -> None:
    assert checked(photos, num_threads=1) == checked(photos, num_threads=4)


def test_bad_images_are_all_named_and_end_a_run(photos: Path) -> None:
    first, second, *_ = files(photos, "train")
    first.write_bytes(first.read_bytes()[:40])
    second.write_bytes(b"")

    findings = checked(photos)

    bad = findings["splits"]["train"]["bad"]
    assert [one["id"] for one in bad] == [f"{path.parent.name}/{path.name}" for path in (first, second)]
    assert bad[1]["error"] == "is empty (0 bytes)"
    assert re.match(r"data.train: 2 of 40 images cannot be used", findings["problems"][0])


def test_copies_within_and_across_splits_and_their_labels_are_found(photos: Path) -> None:
    one, two = photos / "train" / "one", photos / "train" / "two"
    original = files(photos, "train")[0]
    shutil.copy(original, two / "copy.png")
    shutil.copy(original, photos / "test" / "two" / "leak.png")

    exact = checked(photos)["duplicates"]["exact"]

    assert one.is_dir()
    assert (exact["within"], exact["across"], exact["conflicts"]) == ({"train": 1}, {"train/test": 1}, 1)
    assert {member["id"] for member in exact["groups"][0]} >= {"two/copy.png", "two/leak.png"}


def test_another_size_quality_or_brightness_is_nearly_the_same(photos: Path) -> None:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 255, (5, 5, 3), dtype=np.uint8))
    image = coarse.resize((120, 100), Image.Resampling.BICUBIC)
    copies = [image.resize((60, 50)), Image.eval(image, lambda value: value // 2 + 10)]
    for number, copy in enumerate([image, *copies]):
        (photos / "test" / "one" / f"x{number}.jpg").write_bytes(encode(copy, "JPEG"))

    near = checked(photos, "test")["duplicates"]["near"]

    ids = {"one/x0.jpg", "one/x1.jpg", "one/x2.jpg"}
    assert ids in [{member["id"] for member in group} for group in near["groups"]]
    assert near["within"]["test"] >= 2


def test_near_groups_are_those_of_comparing_all_with_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tltrain.data.duplicates._ROWS", 7)
    rng = np.random.default_rng(1)
    smooth = rng.integers(0, 255, (60, 4, 4)).repeat(4, 1).repeat(4, 2)
    noisy = np.clip(smooth[:20] + rng.integers(-6, 7, (20, 16, 16)), 0, 255)
    flat = np.full((3, 16, 16), 90)
    thumbnails = np.concatenate([smooth, noisy, flat]).astype(np.uint8)

    correlation = np.asarray(np.corrcoef(thumbnails[:80].reshape(80, -1)))
    expected = {(i, j) for i in range(80) for j in range(i + 1, 80) if correlation[i, j] >= MIN_CORRELATION}

    assert {tuple(group) for group in near_groups(thumbnails)} == expected
    assert len(expected) == 20


def test_splits_that_cannot_be_opened_do_not_hide_the_others(photos: Path, tmp_path: Path) -> None:
    (photos / "test" / "three").mkdir()
    shutil.copy(files(photos, "test")[0], photos / "test" / "three")
    broken = files(photos, "train")[0]
    broken.write_bytes(b"x")

    findings = checked(photos)

    assert "classes that the training data does not have: three" in findings["problems"][0]
    assert findings["splits"]["train"]["bad"][0]["error"].startswith("cannot be decoded")
    assert findings["splits"]["test"]["per_class"]["three"] == 1


def test_spec_is_checked_with_its_fractions(photos: Path, tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("name: x\nmodel: {name: resnet18}\ndata: {train: photos/train, val: 0.2, test: photos/test}\n")

    assert {name: found["images"] for name, found in checked(path)["splits"].items()} == {
        "train": 32,
        "val": 8,
        "test": 20,
    }
    assert list(checked(path, "val", sets=("data.val=0.1",))["splits"]) == ["val"]


def test_imbalance_and_wrong_suffixes_are_warned_of(photos: Path) -> None:
    for path in files(photos, "train"):
        if path.parent.name == "two" and len(list(path.parent.iterdir())) > 1:
            path.unlink()
    (photos / "train" / "one" / "odd.jpg").write_bytes(encode(Image.new("RGB", (9, 9))))

    warnings = checked(photos, "train")["warnings"]

    assert any("train.class_weights: balanced" in text for text in warnings)
    assert any("two" in text and "Fewer than 10" in text for text in warnings)
    assert "1 image of train is not of the format that the name tells: one/odd.jpg." in warnings


def test_page_needs_no_other_file_and_shows_every_class_and_duplicate(photos: Path) -> None:
    shutil.copy(files(photos, "train")[0], photos / "test" / "two" / "<leak>.png")
    spec, names = spec_of(str(photos), (), ())
    parts = open_parts(spec, names)
    findings, _ = check_parts(parts, num_threads=1)

    page = build_page({"source": "photos", **findings}, sample_images(parts.splits, parts.classes, findings))

    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert page.count('src="data:image/jpeg;base64,') >= 8 * 3 + 2
    assert "&lt;leak&gt;.png" in page
    assert "<leak>" not in page
    assert json.dumps(findings)
