"""The trials of a sweep: which are proposed, the spec of each, and which may share batches."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tltrain.errors import SpecError
from tltrain.spec.domains import canonical
from tltrain.spec.keys import leaves
from tltrain.spec.load import dump_yaml, parse_spec, replace
from tltrain.spec.schema import Spec
from tltrain.spec.space import Trial, apply, check_all, cohort_key, mutations, propose, settled, tune_space
from tltrain.spec.yaml_text import dotted

BEGINNING = "name: x\nmodel: {name: resnet50}\ndata: {train: a}\n"
RANDOM = "sweep: {space: {optim.learning_rate: {loguniform: [1e-5, 1e-1]}}, search: random, num_trials: 20}\n"
GRID = "sweep: {space: {optim.learning_rate: {grid: [0.1, 0.01]}, model.freeze_depth: {choice: [all, 4, layer3]}}}\n"


def load(text: str = "", *sets: str, base: Path = Path("/specs")) -> Spec:
    """Parse a spec that is valid."""
    return parse_spec(BEGINNING + text, where="j.yaml", base=base, sets=sets).spec


def values_of(trials: list[Trial]) -> list[dict[str, Any]]:
    return [trial.values for trial in trials]


def test_grid_has_every_combination_once_the_last_key_changing_fastest() -> None:
    trials = propose(load(GRID))

    assert [tuple(trial.values.values()) for trial in trials] == [
        (rate, depth) for rate in (0.1, 0.01) for depth in ("all", 4, "layer3")
    ]
    assert [trial.name for trial in trials] == ["t0000", "t0001", "t0002", "t0003", "t0004", "t0005"]


def test_extended_grid_leaves_out_what_was_run() -> None:
    before = propose(load(GRID))

    added = propose(load(GRID, "sweep.space.optim.learning_rate.grid=[1, 0.1]"), skip=values_of(before), start=6)

    assert [(trial.name, trial.values["optim.learning_rate"]) for trial in added] == [
        ("t0006", 1),
        ("t0007", 1),
        ("t0008", 1),
    ]


def test_value_written_as_another_number_is_the_same_configuration() -> None:
    text = "sweep: {space: {optim.learning_rate: {grid: [1, 0.5]}}}\n"

    assert values_of(propose(load(text), skip=[{"optim.learning_rate": 1.0}])) == [{"optim.learning_rate": 0.5}]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_trial_k_is_the_same_whatever_the_number_of_trials(num_trials: int, seed: int) -> None:
    text = """sweep:
  space:
    optim.learning_rate: {loguniform: [1e-5, 1e-1]}
    optim.momentum: {choice: [0.0, 0.5, 0.9]}
    model.freeze_depth: {grid: [0, 3, all]}
  search: random
"""
    few = propose(load(text, f"seed={seed}", f"sweep.num_trials={num_trials}"))
    many = propose(load(text, f"seed={seed}", "sweep.num_trials=40"))

    assert many[:num_trials] == few
    assert len({canonical(trial.values) for trial in many}) == 40


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 30), st.integers(1, 30))
def test_extended_search_equals_a_longer_one(first: int, more: int) -> None:
    text = "sweep: {space: {optim.momentum: {quniform: [0, 0.95, 0.01]}}, search: random, num_trials: 60}\n"
    whole = propose(load(text))
    done = whole[:first]

    added = propose(load(text, f"sweep.num_trials={more}"), skip=values_of(done), start=first)

    assert added == whole[first : first + more]


def test_another_seed_draws_other_trials() -> None:
    assert propose(load(RANDOM)) == propose(load(RANDOM))
    one, other = (values_of(propose(load(RANDOM, f"seed={seed}"))) for seed in (0, 1))
    assert not [values for values in one if values in other]


def test_one_more_searched_key_leaves_the_draws_of_the_others() -> None:
    more = load(RANDOM, "sweep.space.optim.weight_decay={loguniform: [1e-6, 1e-2]}")

    rates = [trial.values["optim.learning_rate"] for trial in propose(more)]
    assert rates == [trial.values["optim.learning_rate"] for trial in propose(load(RANDOM))]


def test_keys_are_drawn_independently() -> None:
    text = "sweep: {space: {%s: {uniform: [0, 0.9]}, %s: {uniform: [0, 0.9]}}, search: random, num_trials: 400}\n"
    drawn = [tuple(trial.values.values()) for trial in propose(load(text % ("optim.momentum", "train.ema_decay")))]

    quarters = Counter((one < 0.45, other < 0.45) for one, other in drawn)

    assert all(70 < quarters[pair] < 130 for pair in ((True, True), (True, False), (False, True), (False, False)))


def test_random_search_goes_through_a_grid_in_turn() -> None:
    trials = propose(load(RANDOM, "sweep.space.model.freeze_depth={grid: [all, 3]}", "sweep.num_trials=4"))

    assert [trial.values["model.freeze_depth"] for trial in trials] == ["all", 3, "all", 3]
    assert len({trial.values["optim.learning_rate"] for trial in trials}) == 4


def test_random_search_finds_the_whole_of_a_finite_space() -> None:
    text = "sweep: {space: {train.epochs: {randint: [1, 201]}}, search: random, num_trials: 200}\n"

    assert sorted(trial.values["train.epochs"] for trial in propose(load(text))) == list(range(1, 201))


def test_exhausted_space_is_told() -> None:
    spec = load("sweep: {space: {train.epochs: {randint: [1, 5]}}, search: random, num_trials: 3}\n")

    with pytest.raises(SpecError) as caught:
        propose(spec, skip=[{"train.epochs": 1}, {"train.epochs": 3}], start=2)

    assert str(caught.value) == (
        "sweep.num_trials: the space is used up after 2 of 3 new trials. Ask for fewer trials, or widen sweep.space."
    )


def test_space_too_narrow_for_6_digits_is_told() -> None:
    text = "sweep: {space: {optim.learning_rate: {uniform: [0.1, 0.1000001]}}, search: random, num_trials: 9}\n"

    with pytest.raises(SpecError, match="the space is used up after 1 of 9 new trials"):
        propose(load(text))


def test_trial_changes_its_keys_and_drops_the_sweep() -> None:
    spec = load(GRID)

    changed = apply(spec, Trial("t0001", {"optim.learning_rate": 0.5, "model.freeze_depth": 4}))

    assert changed == replace(load(), {"optim.learning_rate": 0.5, "model.freeze_depth": 4})
    assert changed.sweep is None


def test_searched_paths_are_relative_to_the_spec_file(tmp_path: Path) -> None:
    text = "sweep: {space: {model.weights: {grid: [default, w.pth]}}}\n"
    spec = load(text, base=tmp_path)

    weights = [apply(spec, trial).model.weights for trial in propose(spec)]

    assert weights == ["default", str(tmp_path / "w.pth")]


def test_sections_can_be_searched_as_a_whole() -> None:
    spec = load("sweep: {space: {train.unfreeze: {grid: [null, {at_epoch: 1, freeze_depth: 3}]}}}\n")

    phases = [len(apply(spec, trial).train.unfreeze_phases) for trial in propose(spec)]

    assert phases == [0, 1]
    assert parse_spec(dump_yaml(spec), where="again", base=Path("/")).spec == spec


def test_invalid_combination_names_trial_and_key() -> None:
    text = "sweep: {space: {train.epochs: {grid: [2, 5]}, optim.warmup_epochs: {grid: [0, 3, 4]}}}\n"
    spec = load(text)

    with pytest.raises(SpecError) as caught:
        check_all(spec, propose(spec))

    assert [str(problem) for problem in caught.value.problems] == [
        f"trial t000{number} (train.epochs=2, optim.warmup_epochs={warmup}) optim.warmup_epochs: "
        f"a warm-up of {warmup} epochs is longer than the training (2). Shorten it, or raise train.epochs."
        for number, warmup in ((1, 3), (2, 4))
    ]


def test_problem_of_many_trials_is_told_once() -> None:
    text = (
        "optim: {momentum: 0.5}\n"
        "sweep: {space: {optim.nesterov: {grid: [true]}, optim.momentum: {grid: [0, 0.9]}, seed: {grid: [1, 2]}}}\n"
    )
    spec = load(text)

    with pytest.raises(SpecError) as caught:
        check_all(spec, propose(spec))

    (problem,) = caught.value.problems
    assert problem.where == "trial t0000 (optim.nesterov=true, optim.momentum=0, seed=1) and 1 more"
    check_all(spec, propose(spec)[2:])


SAME_BATCHES = {
    "name": "other",
    "storage": "/elsewhere",
    "model.freeze_depth": 3,
    "optim.name": "adam",
    "optim.learning_rate": 0.5,
    "optim.warmup_epochs": 1.0,
    "train.epochs": 9,
    "train.label_smoothing": 0.1,
    "train.class_weights": "balanced",
    "train.clip_grad_norm": 1.0,
    "train.ema_decay": 0.9,
    "train.early_stopping": {"patience": 1},
    "train.unfreeze": {"at_epoch": 1, "freeze_depth": 2},
    "train.best_metric": "loss",
    "resources.num_workers": 2,
    "checkpoint.keep": 9,
}
OTHER_BATCHES = {
    "seed": 1,
    "model.name": "vgg16",
    "model.weights": "random",
    "model.batchnorm_momentum": 0.5,
    "data.train": "/b",
    "data.augment": "basic",
    "data.image_size": 64,
    "data.mixup": 0.2,
    "data.split_seed": 3,
    "train.batch_size": 32,
    "train.accumulation_steps": 2,
    "train.precision": "bf16",
    "train.channels_last": False,
    "train.compile": True,
    "train.deterministic": True,
}


@pytest.mark.parametrize("key", SAME_BATCHES)
def test_lanes_that_differ_after_the_batch_share_it(key: str) -> None:
    assert cohort_key(replace(load(), {key: SAME_BATCHES[key]})) == cohort_key(load())


@pytest.mark.parametrize("key", OTHER_BATCHES)
def test_lanes_with_other_batches_or_arithmetic_stay_apart(key: str) -> None:
    assert cohort_key(replace(load(), {key: OTHER_BATCHES[key]})) != cohort_key(load())


def test_cohort_key_does_not_depend_on_the_sweep() -> None:
    spec = load(GRID)

    assert {cohort_key(apply(spec, trial)) for trial in propose(spec)} == {cohort_key(load())}


SPACE = """sweep:
  search: random
  num_trials: 4
  space:
    optim.learning_rate: {loguniform: [1e-5, 1e-1]}
    optim.momentum: {choice: [0.0, 0.9]}
    optim.name: {choice: [sgd, adam]}
    optim.betas: {choice: [[0.9, 0.99], [0.8, 0.99]]}
    model.freeze_depth: {choice: [all, 3]}
    train.batch_size: {quniform: [10, 70, 16]}
    train.label_smoothing: {uniform: [0, 0.2]}
"""


def test_domains_are_described_for_other_searchers() -> None:
    spec = load(SPACE)

    described = tune_space(spec)

    assert described["optim.learning_rate"] == ("loguniform", [1e-5, 0.1])
    assert described["train.batch_size"] == ("quniform", [16, 64, 16])
    assert described["optim.betas"] == ("choice", [[0.9, 0.99], [0.8, 0.99]])
    assert spec.sweep is not None
    assert list(described) == list(spec.sweep.space)


@pytest.mark.parametrize(
    ("scheduler", "keys"),
    [
        ("pbt", ["optim.learning_rate", "optim.momentum", "train.label_smoothing"]),
        ("pb2", ["optim.learning_rate", "train.label_smoothing"]),
    ],
)
def test_only_numbers_read_at_every_step_change_in_mid_training(scheduler: str, keys: list[str]) -> None:
    assert list(mutations(load(SPACE, f"sweep.scheduler={scheduler}"))) == keys


def test_values_found_elsewhere_are_settled() -> None:
    found = {"optim.learning_rate": 0.123456789, "train.batch_size": 33.3, "optim.name": "adam"}

    assert settled(load(SPACE), found) == {
        "optim.learning_rate": 0.1,
        "train.batch_size": 32,
        "optim.name": "adam",
    }


def test_sweep_survives_yaml_and_its_domains_are_leaves() -> None:
    spec = load(SPACE)

    assert parse_spec(dump_yaml(spec), where="again", base=Path("/")).spec == spec
    assert replace(spec, {}) == spec
    found = {dotted(path): value for path, value in leaves(spec)}
    assert found["sweep.space.optim.learning_rate"] == {"loguniform": [1e-5, 0.1]}


def test_set_reaches_a_domain_by_its_dotted_key() -> None:
    loaded = parse_spec(
        BEGINNING + GRID,
        where="j.yaml",
        base=Path("/"),
        sets=["sweep.space.optim.learning_rate.grid=[1]", "sweep.space.train.batch_size={choice: [8, 16]}"],
    )

    narrowed = replace(loaded.spec, {"sweep.space.model.freeze_depth": {"grid": [1]}})
    assert {trial.values["model.freeze_depth"] for trial in propose(narrowed)} == {1}
    assert len(propose(loaded.spec)) == 6
    assert loaded.origins["sweep.space.train.batch_size"] == "--set #2"
    assert loaded.origins["sweep.space.model.freeze_depth"] == "j.yaml:4:79"
