"""Tests of tltrain.export.model_card: what a card says is what the run recorded, and no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from finished_runs import change_model_json, finished_run, finished_sweep
from ruamel.yaml import YAML

from tltrain.export import trained
from tltrain.export.markdown import plain, table
from tltrain.export.model_card import render_model_card
from tltrain.export.trained import open_trained
from tltrain.models.zoo import TrainedNetwork, load_trained
from tltrain.run_folder import RunFolder


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> TrainedNetwork:
    return load_trained(finished_run(tmp_path_factory.mktemp("shared")).model.uri)


@pytest.fixture(autouse=True)
def built_once(monkeypatch: pytest.MonkeyPatch, network: TrainedNetwork) -> None:
    """Let all cards be of one network: its classes and preprocessing are all that a card needs of it."""
    monkeypatch.setattr(trained, "load_trained", lambda *_, **__: network)


def card_of(run: RunFolder, library: str = "torchvision") -> str:
    return render_model_card(open_trained(run.uri), library)


def head_of(card: str) -> dict[str, Any]:
    return YAML(typ="safe").load(card.split("---\n")[1])


def test_numbers_are_those_of_the_evaluation(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    evaluation = run.read_json("evaluation.json")
    low, high = evaluation["accuracy_interval_95"]

    card = card_of(run)

    assert f"| Accuracy (top-1) | {evaluation['accuracy']:.4f} | {low:.3f} to {high:.3f} |" in card
    for one in evaluation["per_class"]:
        assert f"| {one['class']} | {one['support']} | {one['precision']:.3f} | {one['recall']:.3f} |" in card
    (result,) = head_of(card)["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == pytest.approx(evaluation["accuracy"], abs=1e-4)
    assert result["dataset"]["name"] == "test.parquet"


def test_counts_and_fingerprint_of_the_data_are_there(tmp_path: Path) -> None:
    run = finished_run(tmp_path)

    assert f"| Fingerprint | {'f' * 64} |" in card_of(run)
    assert "| Training images | 77 |" in card_of(run)
    change_model_json(run, data=None)
    assert "| Training images | not recorded |" in card_of(run)


def test_no_licence_is_chosen_for_the_user(tmp_path: Path) -> None:
    card = card_of(finished_run(tmp_path))

    assert "license" not in head_of(card)
    assert "# license:" in card.split("---\n")[1]


def test_test_images_are_said_to_have_decided_nothing(tmp_path: Path) -> None:
    card = card_of(finished_run(tmp_path))

    assert "took no part in training, nor in choosing the epoch" in card
    assert "evaluated them once" in card


def test_validation_numbers_are_called_too_high(tmp_path: Path) -> None:
    card = card_of(finished_run(tmp_path, split="validation"))

    assert "No test images were set aside" in card
    assert "too high" in card
    assert "took no part" not in card


def test_a_run_that_evaluated_nothing_says_so(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    run.folder.delete("evaluation.json")
    change_model_json(run, evaluation=None, best=None)

    card = card_of(run)

    assert "neither test nor validation images" in card
    assert "model-index" not in head_of(card)


def test_a_sweep_tells_how_many_trials_were_tried_and_what_seeds_changed(tmp_path: Path) -> None:
    sweep = finished_sweep(tmp_path)

    assert "the best of 3 trials" in card_of(sweep)
    assert "over 3 seeds" in card_of(sweep)
    assert "70.0 %" in card_of(sweep)
    assert "the best trial of a sweep" in card_of(RunFolder(sweep.folder.child("tiny")))


def test_folders_of_this_machine_stay_private(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    change_model_json(run, pretrained=str(tmp_path / "secret" / "weights.safetensors"))

    card = card_of(run)

    assert str(tmp_path) not in card
    assert "secret" not in card
    assert "weights.safetensors" in card
    assert "train.parquet" in card


def test_names_of_classes_cannot_break_a_table() -> None:
    assert plain("a|b\n*c*") == "a\\|b \\*c\\*"
    assert table(["class", "n"], [[plain("a|b"), "1"]]).splitlines()[-1] == "| a\\|b | 1 |"


@pytest.mark.parametrize(
    ("library", "line"),
    [
        ("timm", 'timm.create_model("local-dir:FOLDER", pretrained=True)'),
        ("torchvision", 'torchvision.models.get_model(config["architecture"], **config["arguments"])'),
    ],
)
def test_a_card_says_how_the_model_is_loaded(tmp_path: Path, library: str, line: str) -> None:
    assert line in card_of(finished_run(tmp_path), library)
