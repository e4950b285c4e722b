"""A run that is broken anywhere and started again ends as one that was not, and leaves nothing behind."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from campaign import SETTINGS, Outcome, Setting, broken_run, clean_run, draw, train
from campaign_table import keep, kept
from injector import ACTIONS, BEFORE, FULL, INTERRUPT, KILL, STOP, TERMINATE, Fault

from tltrain.spec.schema import Spec
from tltrain.train import optim
from tltrain.train.distributed import Group

IN_SHORT = {
    0: (KILL, FULL, TERMINATE, INTERRUPT),
    1: (KILL, FULL, INTERRUPT, STOP),
    4: (KILL, FULL, TERMINATE, STOP),
}
"""The settings that every run of the tests breaks, and what happens to them."""


@pytest.mark.parametrize(
    "setting",
    [pytest.param(each, marks=[] if i in IN_SHORT else [pytest.mark.slow]) for i, each in enumerate(SETTINGS)],
    ids=lambda setting: setting.name,
)
def test_broken_at_random_places_a_run_ends_as_the_clean_one(tmp_path: Path, setting: Setting) -> None:
    clean = clean_run(setting, tmp_path)
    chance = random.Random(SETTINGS.index(setting))
    actions = IN_SHORT.get(SETTINGS.index(setting), ACTIONS)
    faults = [draw(chance, clean, action) for action in actions]
    outcomes = [broken_run(setting, tmp_path, clean, fault) for fault in faults]
    assert {str(outcome.fault): outcome.problems for outcome in outcomes if outcome.problems} == {}


def test_a_fault_that_does_not_happen_is_noticed(tmp_path: Path) -> None:
    clean = clean_run(SETTINGS[0], tmp_path)
    never = Fault("optimiser step", 10_000, BEFORE, 0, KILL)
    (problem,) = broken_run(SETTINGS[0], tmp_path, clean, never).problems
    assert "did not happen" in problem


def test_a_part_of_the_state_left_out_is_noticed(tmp_path: Path) -> None:
    setting = SETTINGS[0]
    clean = clean_run(setting, tmp_path)
    fault = Fault("optimiser step", 4, BEFORE, 0, KILL)
    problems = broken_run(setting, tmp_path, clean, fault, resume=train_without_optimizer).problems
    assert "model/model.safetensors differs" in problems


def test_a_campaign_that_goes_on_strikes_what_is_missing_and_what_has_failed(tmp_path: Path) -> None:
    record = tmp_path / "record.jsonl"
    fault = Fault("optimiser step", 4, BEFORE, 0, KILL)
    good, bad = Outcome("head", fault, [], 3.5), Outcome("head", fault, ["metrics.jsonl has other rows"])
    for number, outcome in ((4, good), (2, bad), (7, bad), (2, good)):
        keep(number, outcome, record)
    assert kept(record, Outcome, Fault) == {4: good, 2: good}
    assert kept(tmp_path / "none", Outcome, Fault) == {}


def train_without_optimizer(group: Group, spec: Spec) -> None:
    """Resume with one item of state left out."""
    optim.load_state_by_name = lambda optimizer, state: None
    train(group, spec)
