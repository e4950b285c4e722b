"""What a run prints: its header, JSON lines, what goes to which stream, and that it says so once when it is stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_spec

import tltrain.run as far_side
from tltrain import output as output_module
from tltrain.output import Output
from tltrain.progress import Bar
from tltrain.report import lines
from tltrain.run_folder import RunFolder
from tltrain.spec.load import dump_yaml, load_spec
from tltrain.train.cohort import Cohort

FACTS: dict[str, Any] = {
    "versions": {"tltrain": "0.1.0", "python": "3.11.7", "torch": "2.14.1+cu130", "torchvision": "0.29.1+cu130"},
    "devices": "8 x NVIDIA H100 80GB HBM3, 192 CPU cores",
    "workers": "8 x 1 CPU + 1 GPU, Ray Train on the cluster at ray://head.example:10001",
    "num_train": 1_281_167,
    "num_val": 50_000,
    "num_test": 0,
    "classes": [str(number) for number in range(1000)],
    "image_size": 224,
    "trained_parameters": 15_000_000,
    "parameters": 25_557_032,
    "stages": [{"name": name, "trained": name == "head"} for name in ("stem", "layer1", "layer2", "head")],
    "model": "resnet50",
    "run": "runs/imagenet",
    "searched": None,
    "search": None,
    "notes": [],
}


def spec_file(folder: Path, changes: dict[str, Any] | None = None) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(dump_yaml(tiny_spec(folder, changes)))
    return path


def test_the_header_is_short_and_fits_80_columns() -> None:
    text = lines.header(FACTS)
    assert len(text) <= 8
    assert max(map(len, text)) <= 80
    shown = "\n".join(text)
    for part in (
        "torch 2.14.1",
        "H100",
        "1,281,167 train",
        "1000 classes",
        "15,000,000 of 25,557,032",
        "3 of 4 stages",
    ):
        assert part in shown


def test_the_header_of_a_sweep_over_freeze_depths_says_so() -> None:
    shown = "\n".join(lines.header({**FACTS, "searched": ["model.freeze_depth"], "search": "grid search, fifo"}))
    assert "Frozen      each trial as it says" in shown
    assert "Search      model.freeze_depth (grid search, fifo)" in shown
    assert "15,000,000" not in shown


def test_json_lines_are_all_there_is_on_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(as_json=True, quiet=True)
    assert far_side.execute(load_spec(spec_file(tmp_path)), local=True, output=output) == 0
    out, err = capsys.readouterr()
    events = [json.loads(line) for line in out.splitlines()]
    assert [event["event"] for event in events] == ["start", "epoch", "epoch", "result"]
    assert events[0]["devices"]
    run = RunFolder.open(str(tmp_path / "runs" / "tiny"))
    assert [{"event": "epoch", **row} for row in run.metrics()] == events[1:3]
    assert events[3] == {"event": "result", **run.state()}
    assert run.read_json("header.json")["classes"] == events[0]["classes"]
    assert not run.folder.exists("progress")
    assert run.folder.exists("report.html")
    assert "epoch" not in err


def test_without_a_terminal_lines_say_now_and_then_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Output().live() as (show, is_in_place):
        show([], Bar("Epoch 1/2 training", 0.5, left_s=61))
        monkeypatch.setattr(output_module, "PLAIN_INTERVAL_S", 0.0)
        show(["a table"], Bar("Epoch 2/2 training", 0.25, left_s=61))
    out, err = capsys.readouterr()
    assert (out, err, is_in_place) == ("", "Epoch 2/2 training  25 %  1:01 left\n", False)


def test_quiet_is_silent_and_columns_are_named_once(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"lane": "a", "epoch": 1, "train_loss": 1.0, "train_top1": 0.5, "learning_rate": 0.1}
    row |= {"train_images_per_s": 10.0, "epoch_s": 1.0}
    for output in (Output(quiet=True), Output()):
        output.tell("said")
        output.epoch(row, 2)
        output.epoch(row, 2)
    out, err = capsys.readouterr()
    assert out.count(lines.COLUMNS) == 1
    assert len(out.splitlines()) == 3
    assert err == "said\n"


def test_an_interrupted_run_says_so_once_and_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Cohort, "train_epoch", interrupt)
    assert far_side.main([str(spec_file(tmp_path)), "--local"]) == 130
    err = capsys.readouterr().err
    assert err.count("Interrupted.") == 1
    assert err.endswith("Interrupted. Run the same command again to go on from the newest checkpoint.\n")


def test_the_module_marks_errors_and_warnings_as_the_program_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = spec_file(tmp_path, {"data.train": str(tmp_path / "nowhere.parquet")})
    assert far_side.main([str(path), "--local", "--set", "optim.betas=[0.1, 0.2]"]) == 4
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("error: ")
    assert any(line.startswith("warning: ") and "optim.betas" in line for line in said)
