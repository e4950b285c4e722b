"""A finished model on other images: the same numbers as its run's, and a temperature that stays with it."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from tiny import tiny_spec

from tltrain.errors import DataError, SpecError
from tltrain.models.zoo import load_trained
from tltrain.run_folder import RunFolder
from tltrain.train.distributed import Group
from tltrain.train.reevaluate import evaluate_model
from tltrain.train.session import fine_tune

ALONE = Group(rank=0, world_size=1, local_rank=0, local_world_size=1, device=torch.device("cpu"))
SAME = ("accuracy", "confusion_matrix", "per_class", "macro", "bootstrap", "top5_accuracy")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with digits and the finished run `runs/tiny`."""
    folder = tmp_path_factory.mktemp("finished")
    spec = tiny_spec(folder)
    fine_tune(spec, run := RunFolder.at(spec.storage, spec.name), ALONE)
    from tltrain.spec.load import dump_yaml

    run.write_spec(dump_yaml(spec))
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the run."""
    return Path(shutil.copytree(finished / "runs" / "tiny", tmp_path / "tiny"))


def test_the_runs_own_test_images_give_its_own_numbers(finished: Path, run: Path) -> None:
    found = evaluate_model(str(run), str(finished / "test.parquet"))
    first = json.loads((run / "evaluation.json").read_text())
    assert all(found[name] == first[name] for name in SAME)
    assert found["loss"] == pytest.approx(first["loss"], rel=1e-5)
    assert found["brier_score"] == pytest.approx(first["brier_score"], rel=1e-5)
    assert found["temperature"] == 1.0


def test_a_model_is_found_in_its_own_folder_and_in_a_sweep(finished: Path, run: Path, tmp_path: Path) -> None:
    data = str(finished / "test.parquet")
    sweep = tmp_path / "sweep"
    shutil.copytree(run, sweep / "winner")
    (sweep / "run.json").write_text(json.dumps({"format": 1, "kind": "sweep", "winner_run": "winner"}))
    accuracies = {evaluate_model(str(path), data)["accuracy"] for path in (run, run / "model", sweep)}
    assert len(accuracies) == 1


def test_calibration_lowers_the_loss_stays_with_the_model_and_changes_no_answer(finished: Path, run: Path) -> None:
    data = str(finished / "test.parquet")
    before = evaluate_model(str(run), data)
    weights = (run / "model" / "model.safetensors").read_bytes()
    fitted = evaluate_model(str(run), data, calibrate=True)
    after = evaluate_model(str(run), data)
    assert all(before[name] == fitted[name] == after[name] for name in SAME)
    assert fitted["loss"] < before["loss"] == fitted["before"]["loss"]
    assert after["loss"] == fitted["loss"]
    assert after["temperature"] == fitted["temperature"] != 1.0
    assert load_trained(run).temperature == fitted["temperature"]
    card = json.loads((run / "model" / "model.json").read_text())
    assert card["calibration"]["num_images"] == 45
    assert card["classes"] == [str(digit) for digit in range(10)]  # what was there stays
    assert (run / "model" / "model.safetensors").read_bytes() == weights
    again = evaluate_model(str(run), data, calibrate=True)
    assert again["temperature"] == fitted["temperature"]  # fitted to the logits as they are, not to scaled ones


@pytest.mark.parametrize(
    ("name", "calibrate", "warning"),
    [
        ("test", True, "fitted to the test images of the run"),
        ("test", False, ""),
        ("train", False, "trained on these images"),
        ("train", True, "trained on these images"),
    ],
)
def test_images_that_the_run_has_used_are_warned_of(
    finished: Path, run: Path, name: str, calibrate: bool, warning: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="tltrain"):
        evaluate_model(str(run), str(finished / f"{name}.parquet"), calibrate=calibrate)
    assert warning in caplog.text if warning else not caplog.records


OWN_IMAGES = """
import numpy as np

class Greys:
    classes = ["0", "1"]

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return np.full((8, 8, 3), 50 * index, np.uint8), index % 2

def load(split):
    return Greys()
"""


def test_own_code_gives_images_where_the_runs_spec_allows_it(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_greys.py").write_text(OWN_IMAGES)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SpecError, match="allow_code"):
        evaluate_model(str(run), "python:own_greys:load")
    spec = run / "spec.yaml"
    spec.write_text(spec.read_text().replace("allow_code: false", "allow_code: true"))
    assert evaluate_model(str(run), "python:own_greys:load")["num_images"] == 4


@pytest.mark.parametrize("value", [0, -1, "warm", None])
def test_a_temperature_that_is_none_is_refused(finished: Path, run: Path, value: object) -> None:
    path = run / "model" / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"temperature": value}))
    with pytest.raises(DataError, match="has the temperature"):
        evaluate_model(str(run), str(finished / "test.parquet"))
