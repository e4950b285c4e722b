"""The thumbnails of a run: the right images, small, without what else a file holds."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tltrain.data.base import Source, Split
from tltrain.errors import DataError
from tltrain.storage import Folder
from tltrain.train.evaluation import Predictions
from tltrain.train.thumbnails import SIZE, most_uncertain, surest_mistakes, thumbnail, write_thumbnails

CLASSES = ("cat", "dog", "owl")


class Shades(Source):
    """Grey images of 200 x 100 pixels, each with its number as its shade; number 5 is gone."""

    classes = CLASSES

    def __init__(self, count: int) -> None:
        self.labels = np.zeros(count, dtype=np.int64)

    def read(self, index: int) -> Image.Image:
        if index == 5:
            raise DataError("it is gone", "Look for it")
        return Image.new("RGB", (200, 100), (index, index, index))

    def identity(self, index: int) -> str:
        return f"{index}.png"

    def fingerprint(self) -> str:
        return ""


def predictions() -> Predictions:
    """Eight cats: 0, 3, 6 are taken for dogs, ever surer; the others are right, number 2 the least sure."""
    scores = torch.zeros(8, 3)
    scores[:, 0] = torch.tensor([0.0, 5.0, 0.1, 0.0, 2.0, 3.0, 0.0, 4.0])
    scores[[0, 3, 6], 1] = torch.tensor([1.0, 2.0, 6.0])
    return Predictions.from_logits(scores, torch.zeros(8, dtype=torch.int64), torch.arange(8))


def written(folder: Path, count: int) -> list[dict[str, Any]]:
    source = Shades(8)
    split = Split(source, np.arange(8), source.labels)
    write_thumbnails(Folder.open(str(folder)), split, predictions(), CLASSES, count)
    return pq.read_table(folder / "thumbnails.parquet").to_pylist()


def test_mistakes_are_ordered_by_how_sure_they_were_and_doubts_by_how_little() -> None:
    assert surest_mistakes(predictions(), 2) == [6, 3]
    assert surest_mistakes(predictions(), 9) == [6, 3, 0]
    assert most_uncertain(predictions(), 2) == [2, 0]


def test_rows_say_what_was_shown_and_what_was_made_of_it(tmp_path: Path) -> None:
    rows = written(tmp_path, 2)

    assert [(row["kind"], row["id"]) for row in rows] == [
        ("mistake", "6.png"), ("mistake", "3.png"), ("uncertain", "2.png"), ("uncertain", "0.png"),
    ]  # fmt: skip
    assert (rows[0]["label"], rows[0]["prediction"]) == ("cat", "dog")
    assert rows[0]["probability"] == pytest.approx(float(torch.tensor([0.0, 6.0, 0.0]).softmax(0)[1]))
    with Image.open(io.BytesIO(rows[0]["image"])) as image:
        assert image.size == (SIZE, SIZE // 2)
        assert abs(np.asarray(image).mean() - 6) < 2


def test_an_image_that_is_gone_is_left_out_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "tltrain"):
        rows = written(tmp_path, 8)

    assert "5.png" not in {row["id"] for row in rows}
    assert len(rows) == 3 + 7
    assert "no thumbnail of 5.png" in caplog.text


def test_a_thumbnail_is_small_and_holds_no_comment() -> None:
    large = Image.effect_noise((2000, 1500), 80).convert("RGB")
    large.info["comment"] = b"taken at home"

    content = thumbnail(large)

    assert len(content) < 16_000
    assert b"taken at home" not in content


def test_small_images_keep_their_size() -> None:
    with Image.open(io.BytesIO(thumbnail(Image.new("RGB", (28, 20))))) as image:
        assert image.size == (28, 20)
