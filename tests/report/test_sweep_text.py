"""A sweep as text of 80 columns, and its trials as a Parquet table."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from report_folders import HOSTILE, grid_values, random_values, write_sweep

from tltrain.report.sweep import grid, trials_table, write_trials_table
from tltrain.report.trials import Metric, read_trials, searched_keys, short_names

RATE, DEPTH = "optim.learning_rate", "model.freeze_depth"


def entry(number: int, values: dict[str, Any], top1: float | None = None, state: str = "finished") -> dict[str, Any]:
    best = None if top1 is None else {"epoch": 2, "top1": top1, "loss": 1 - top1}
    return {"trial": f"t{number:04}", "values": values, "state": state, "reason": "", "epochs": 3, "best": best}


def test_table_is_sorted_by_the_best_value_with_untried_trials_last() -> None:
    trials = [
        entry(0, {RATE: 0.1, DEPTH: "all"}, None, "pending"),
        entry(1, {RATE: 0.01, DEPTH: 3}, 0.8),
        entry(2, {RATE: 0.003, DEPTH: "all"}, 0.842),
    ]

    assert trials_table(trials, []) == [
        "trial  learning_rate  freeze_depth  epoch  val top-1  state",
        "t0002  0.003          all               3     84.2 %  finished",
        "t0001  0.01           3                 3     80.0 %  finished",
        "t0000  0.1            all               3          -  pending",
    ]


def test_table_takes_the_best_epoch_of_the_metrics() -> None:
    rows = [{"lane": "t0000", "step": 10 * e, "epoch": e, "val_top1": v} for e, v in ((1, 0.7), (2, 0.9), (3, 0.8))]

    lines = trials_table([entry(0, {RATE: 0.1}, None, "running")], rows)

    assert lines[1].split() == ["t0000", "0.1", "3", "90.0", "%", "running"]


def test_table_by_loss_puts_the_lowest_first() -> None:
    trials = [entry(0, {RATE: 0.1}, 0.6), entry(1, {RATE: 0.2}, 0.9)]

    lines = trials_table(trials, [], metric=Metric.of("val_loss"))

    assert [line.split()[0] for line in lines[1:]] == ["t0001", "t0000"]
    assert "val loss" in lines[0]


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_table_and_grid_fit_the_width(width: int) -> None:
    values = [
        {**one, "train.class_weights": {"a": 1.0, "b": 2.0}, "data.augment": "trivialaugment", HOSTILE: HOSTILE * 9}
        for one in random_values(60)
    ]
    trials = [entry(number, one, 0.5 + number / 200) for number, one in enumerate(values)]
    lines = trials_table(trials, [], width=width, limit=20)

    assert max(map(len, lines)) <= width
    assert lines[21] == "... and 40 more"
    assert width == 120 or lines[22].startswith("Not shown: ")
    for keys in ((RATE, DEPTH), (DEPTH, RATE), (RATE, "train.label_smoothing"), (HOSTILE, "optim.name")):
        assert max(map(len, grid(trials, *keys, width=width))) <= width


def test_grid_shows_the_best_of_each_cell_and_marks_the_best_of_all() -> None:
    trials = [
        entry(0, {RATE: 0.001, DEPTH: "all"}, 0.65),
        entry(1, {RATE: 0.003, DEPTH: "all"}, 0.70),
        entry(2, {RATE: 0.003, DEPTH: "all"}, 0.842),
        entry(3, {RATE: 0.001, DEPTH: 3}, 0.712),
        entry(4, {RATE: 0.01, DEPTH: 3}, None, "running"),
    ]

    assert grid(trials, RATE, DEPTH)[1:] == [
        "              learning_rate",
        "freeze_depth  0.001  0.003   0.01",
        "3              71.2      .      .",
        "all            65.0  *84.2      .",
    ]


def test_grid_bins_numbers_with_many_values_and_loses_no_trial() -> None:
    trials = [entry(number, one, 0.5 + number / 200) for number, one in enumerate(random_values(60))]

    lines = grid(trials, RATE, DEPTH)

    assert len(lines) == 1 + 2 + 3 + 1
    assert "0.001+" in lines[2]
    assert sum(line.count("*79.5") for line in lines) == 1


def test_grid_goes_on_in_a_second_block_where_it_must() -> None:
    trials = [entry(n, {"data.train": f"a/long/folder/{n}", DEPTH: "all"}, 0.5) for n in range(9)]

    lines = grid(trials, "data.train", DEPTH)

    assert sum("train" in line for line in lines) == 3
    assert max(map(len, lines)) <= 80


def test_grid_without_values_says_so() -> None:
    assert grid([entry(0, {RATE: 0.1, DEPTH: 1}, None, "pending")], RATE, DEPTH) == ["No trial has a val top-1 yet."]


def test_freeze_depths_stand_in_the_order_of_what_they_freeze() -> None:
    depths = {"stem": 1, "layer1": 2, "layer2": 3, "all": 5}
    trials = [entry(n, {RATE: 0.1, DEPTH: depth}, 0.5) for n, depth in enumerate(depths)]
    rows = [
        {"lane": f"t{n:04}", "step": 1, "epoch": 1, "val_top1": 0.5, "frozen_stages": count}
        for n, count in enumerate(depths.values())
    ]

    lines = grid(trials, RATE, DEPTH, metrics=rows)

    assert [line.split()[0] for line in lines[3:]] == ["stem", "layer1", "layer2", "all"]


def test_short_names_are_unique_and_name_their_section_where_they_must() -> None:
    keys = ["optim.learning_rate", "model.name", "optim.name", "seed", "a.b.x", "a.c.x"]

    names = short_names(keys)

    assert list(names.values()) == ["learning_rate", "model.name", "optim.name", "seed", "b.x", "c.x"]


def test_learning_rate_and_freeze_depth_come_first() -> None:
    trials = read_trials([entry(0, {"seed": 1, DEPTH: 2, RATE: 0.1})], [], Metric())

    assert searched_keys(trials) == [RATE, DEPTH, "seed"]


def test_trials_table_in_parquet_has_a_row_per_trial_and_a_column_per_key(tmp_path: Path) -> None:
    run = write_sweep(tmp_path / "sweep", grid_values())

    write_trials_table(run)

    table = pq.read_table(io.BytesIO(run.folder.read_bytes("trials.parquet")))
    trials = run.read_json("trials.json")
    assert table.column("trial").to_pylist() == [trial["trial"] for trial in trials]
    assert table.column(RATE).to_pylist() == [trial["values"][RATE] for trial in trials]
    assert table.column(DEPTH).to_pylist() == [str(trial["values"][DEPTH]) for trial in trials]
    assert table.column("best_top1").to_pylist() == [trial["best"]["top1"] for trial in trials]
    assert table.column("best_loss").null_count == 1  # of the trial whose loss was not finite


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 2.5], [1.0, 2.5]),
        ([1, None], [1, None]),
        ([True, False], [True, False]),
        ([True, 1], ["true", "1"]),
        ([[0.9, 0.99], None], ["[0.9, 0.99]", None]),
        (["all", 3], ["all", "3"]),
        ([None, None], [None, None]),
    ],
)
def test_values_of_one_kind_keep_it_and_others_become_text(
    tmp_path: Path, values: list[Any], expected: list[Any]
) -> None:
    run = write_sweep(tmp_path / "sweep", [{"some.key": value} for value in values], has_extras=False)

    write_trials_table(run)

    table = pq.read_table(io.BytesIO(run.folder.read_bytes("trials.parquet")))
    assert table.column("some.key").to_pylist() == expected
