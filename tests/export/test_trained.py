"""Tests of tltrain.export.trained and images: what is exported, and the images it is checked on."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from finished_runs import finished_run, finished_sweep

from tltrain.errors import DataError, SpecError
from tltrain.export.images import NUM_IMAGES, find_sample
from tltrain.export.trained import open_trained


def test_a_sweep_stands_for_its_winner(tmp_path: Path) -> None:
    sweep = finished_sweep(tmp_path)

    trained = open_trained(sweep.uri)

    assert trained.name == "search"
    assert trained.sweep == sweep
    assert trained.place.folder.uri == f"{sweep.uri}/tiny/model"


def test_a_model_folder_knows_the_run_around_it(tmp_path: Path) -> None:
    run = finished_run(tmp_path)

    by_model, by_run = open_trained(run.model.uri), open_trained(run.uri)

    assert by_model.place == by_run.place
    assert by_model.name == by_run.name == "tiny"
    assert by_model.sweep is None


def test_a_model_folder_alone_is_enough(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    Path(finished_run(tmp_path).model.uri).rename(tmp_path / "elsewhere" / "model")

    trained = open_trained(str(tmp_path / "elsewhere" / "model"))

    assert trained.place.run is None
    assert trained.name == "tiny"


def test_a_run_without_a_model_is_refused(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    run.folder.delete("model")

    with pytest.raises(SpecError, match="no finished model"):
        open_trained(run.uri)


def test_a_run_is_checked_on_its_own_test_images(tmp_path: Path) -> None:
    sample = find_sample(open_trained(finished_run(tmp_path).uri), None)

    assert sample.images.shape == (NUM_IMAGES, 3, 32, 32)
    assert sample.images.dtype == torch.uint8
    assert len(sample.images.unique(dim=0)) == NUM_IMAGES
    assert "test images" in sample.origin


def test_images_may_be_named(tmp_path: Path) -> None:
    trained = open_trained(finished_run(tmp_path).uri)

    train = find_sample(trained, str(tmp_path / "train.parquet"))

    assert not torch.equal(train.images, find_sample(trained, None).images)
    with pytest.raises(DataError):
        find_sample(trained, str(tmp_path / "missing.parquet"))


def test_noise_in_place_of_missing_images_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trained = open_trained(finished_run(tmp_path).uri)
    (tmp_path / "test.parquet").unlink()

    with caplog.at_level(logging.WARNING, "tltrain"):
        sample = find_sample(trained, None)

    assert "noise" in sample.origin
    assert "checked on noise" in caplog.text
    assert "--data" in caplog.text
