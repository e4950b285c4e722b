"""A run with `train.batch_size: auto` finds a number once, says so, and keeps it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import tiny_spec

import tltrain.run as far_side
from tltrain import settle
from tltrain.output import Output
from tltrain.run_folder import RunFolder
from tltrain.spec.load import LoadedSpec, dump_yaml, parse_spec
from tltrain.spec.schema import Spec
from tltrain.train.batch_size import FoundBatchSize, Tried


def auto_spec(folder: Path) -> Spec:
    return tiny_spec(folder, {"train.batch_size": "auto", "train.epochs": 1})


def execute(spec: Spec, output: Output | None = None) -> int:
    return far_side.execute(LoadedSpec(spec, {}, ()), local=True, output=output)


def kept_in(spec: Spec) -> object:
    run = RunFolder.at(spec.storage, spec.name)
    return parse_spec(run.spec_text(), where="spec.yaml", base=Path.cwd()).spec.train.batch_size


def test_a_run_finds_its_batch_size_says_why_and_keeps_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = auto_spec(tmp_path)
    assert execute(spec, Output(as_json=True)) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert events[0]["event"] == "batch_size"
    assert events[0]["limited_by"] == "images"
    assert kept_in(spec) == events[0]["batch_size"] == 4
    monkeypatch.setattr("tltrain.train.batch_size.find_here", lambda *_: pytest.fail("looked for again"))
    assert execute(spec) == 0
    assert "nothing was trained" in capsys.readouterr().err


def test_a_number_is_left_as_it_is(tmp_path: Path) -> None:
    spec = tiny_spec(tmp_path)
    assert settle.settled_here(spec, lambda *_: pytest.fail("nothing was asked for")) is spec


def test_what_follows_for_the_rate_is_said_and_not_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = FoundBatchSize(512, 128, 4, 1, "memory", 8 * 10**9, (Tried(128, 6 * 10**9), Tried(256, None)))
    spec = auto_spec(tmp_path)
    Output().batch_size(found, spec)
    text = " ".join(capsys.readouterr().err.split())
    assert "512 = 128 images x 4 workers" in text
    assert "128 take 6.00 of 8.0 GB" in text
    assert "optim.learning_rate stays 0.05; one that is good at 64 images would be 8 times as large" in text
    assert "auto" in dump_yaml(spec)
