"""Loading a spec: values, origins, paths, warnings, copies and the way back to YAML."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path

import pytest

from tltrain.errors import SpecError
from tltrain.spec.load import differences, dump_yaml, load_spec, parse_spec, replace
from tltrain.spec.schema import ElasticWorkers, Spec
from tltrain.spec.unused import RULES

BEGINNING = "name: x\nmodel: {name: resnet50}\ndata: {train: a}\n"

FULL = """
name: everything
seed: 7
model: {name: efficientnet_lite0, weights: random, freeze_depth: stage 2, batchnorm_momentum: 0.1}
data:
  train: torchvision:CIFAR10
  val: 0.2
  test: "s3://bucket/test set.parquet"
  mean: [0.5, 0.5, 0.5]
  std: [1e-5, 1, 0.5]
optim: {name: adamw, learning_rate: 1e-5, betas: [0, 0.99]}
train:
  class_weights: {"T-shirt: short": 1, "yes": 0.5, "1e3": 2}
  early_stopping: {patience: 2}
  unfreeze:
    - {at_epoch: 1, freeze_depth: 4}
    - {at_epoch: 2, freeze_depth: layer1, learning_rate_factor: 0.1}
resources: {num_workers: {min: 1, max: 2}}
checkpoint: {every_epochs: null, every_steps: 100}
storage: "s3://bucket/runs?scheme=http&endpoint_override=127.0.0.1:99"
"""


def load(text: str, *sets: str, base: Path = Path("/specs")) -> Spec:
    """Parse a spec that is valid."""
    return parse_spec(text, where="j.yaml", base=base, sets=sets).spec


def test_numbers_are_those_of_yaml_1_2() -> None:
    spec = load(BEGINNING + "optim: {learning_rate: 1e-3, weight_decay: 5E-4}\nseed: 017\n")

    assert (spec.optim.learning_rate, spec.optim.weight_decay, spec.seed) == (0.001, 0.0005, 17)


def test_dumped_spec_loads_to_an_equal_spec() -> None:
    spec = load(FULL)

    assert load(dump_yaml(spec), base=Path("/elsewhere")) == spec


def test_every_leaf_has_an_origin() -> None:
    loaded = parse_spec(FULL, where="j.yaml", base=Path("/"), sets=["train.epochs=9"])

    assert loaded.origins["optim.learning_rate"] == "j.yaml:11:37"
    assert loaded.origins["train.unfreeze.1.freeze_depth"] == "j.yaml:17:35"
    assert loaded.origins["resources.num_workers.max"] == "j.yaml:18:40"
    assert loaded.origins["train.epochs"] == "--set #1"
    assert loaded.origins["train.batch_size"] == "default"
    assert set(loaded.origins.values()) > {"default", "--set #1"}


SETS = [
    (("optim.learning_rate=1e-3",), "optim.learning_rate", 0.001),
    (("model.freeze_depth=all",), "model.freeze_depth", "all"),
    (("model.freeze_depth=3",), "model.freeze_depth", 3),
    (("data.val=null",), "data.val", None),
    (("resources.num_workers={min: 1, max: 2}",), "resources.num_workers", ElasticWorkers(min=1, max=2)),
    (("resources.num_workers=3",), "resources.num_workers", 3),
    (("train.epochs=3", "train.epochs=4"), "train.epochs", 4),
    (("optim.betas=[0.8, 0.9]", "optim.name=adam"), "optim.betas", [0.8, 0.9]),
    (("storage=s3://bucket/a=b",), "storage", "s3://bucket/a=b"),
]


@pytest.mark.parametrize(("sets", "key", "expected"), SETS, ids=[sets[-1] for sets, _, _ in SETS])
def test_set_replaces_a_value_before_validation(sets: tuple[str, ...], key: str, expected: object) -> None:
    loaded = parse_spec(BEGINNING, where="j.yaml", base=Path("/"), sets=sets)

    value: object = loaded.spec
    for part in key.split("."):
        value = getattr(value, part)
    assert value == expected
    assert loaded.origins.get(key, loaded.origins.get(f"{key}.min")) == f"--set #{1 if 'betas' in key else len(sets)}"


def test_set_mends_a_faulty_value_of_the_file() -> None:
    assert load(BEGINNING + "optim:\ntrain: {epochs: -1}\n", "optim.momentum=0", "train.epochs=2").train.epochs == 2


def test_set_reaches_parts_of_elastic_workers_and_items_of_phases() -> None:
    spec = load(
        BEGINNING + "train: {unfreeze: [{at_epoch: 1, freeze_depth: 2}]}\nresources: {num_workers: 2}\n",
        "resources.num_workers.min=1",
        "resources.num_workers.max=3",
        "train.unfreeze.0.at_epoch=3",
    )

    assert spec.resources.num_workers == ElasticWorkers(min=1, max=3)
    assert spec.train.unfreeze_phases[0].at_epoch == 3


def test_set_of_a_section_replaces_all_of_it() -> None:
    loaded = parse_spec(
        BEGINNING + "optim: {momentum: 0.5}\n", where="j.yaml", base=Path("/"), sets=["optim={name: sgd}"]
    )

    assert loaded.spec.optim.momentum == 0.9
    assert loaded.origins["optim.momentum"] == "default"
    assert loaded.origins["optim.name"] == "--set #1"


def test_paths_of_the_file_are_relative_to_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "jobs"
    (folder / "earlier-run").mkdir(parents=True)
    path = folder / "j.yaml"
    path.write_text(
        "name: x\nmodel: {name: resnet50, weights: earlier-run}\n"
        "data: {train: a, val: ../b, test: torchvision:CIFAR10, root: ~/c}\nstorage: runs\n"
    )

    spec = load_spec("jobs/j.yaml").spec

    assert spec.data.train == str(folder / "a")
    assert spec.data.val == str(tmp_path / "b")
    assert spec.data.test == "torchvision:CIFAR10"
    assert spec.data.root == os.path.expanduser("~/c")
    assert spec.model.weights == str(folder / "earlier-run")
    assert spec.storage == str(tmp_path / "runs")


def test_paths_of_a_set_are_relative_to_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    spec = load(BEGINNING, "data.train=b", "model.weights=w.safetensors", "data.test=s3://bucket/c")

    assert spec.data.train == str(tmp_path / "b")
    assert spec.model.weights == str(tmp_path / "w.safetensors")
    assert spec.data.test == "s3://bucket/c"


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ("default", "default"),
        ("random", "random"),
        ("IMAGENET1K_V2", "IMAGENET1K_V2"),
        ("ResNet50_Weights.IMAGENET1K_V2", "ResNet50_Weights.IMAGENET1K_V2"),
        ("https://example.org/w.pth", "https://example.org/w.pth"),
        ("w.pt", "/specs/w.pt"),
        ("../runs/first", "/runs/first"),
        ("~/w", os.path.expanduser("~/w")),
    ],
)
def test_weights_are_a_path_only_where_they_look_like_one(weights: str, expected: str) -> None:
    assert load(BEGINNING, base=Path("/specs")).model.weights == "default"
    text = BEGINNING.replace("resnet50}", f"resnet50, weights: {weights}}}")

    assert load(text).model.weights == expected


WARNINGS = {
    "optim.momentum": "optim: {name: adamw, momentum: 0.9}",
    "optim.nesterov": "optim: {name: adamw, nesterov: true}",
    "optim.betas": "optim: {betas: [0.9, 0.99]}",
    "optim.decay_norm_and_bias": "optim: {decay_norm_and_bias: false}",
    "optim.step_epochs": "optim: {step_epochs: 3}",
    "optim.step_factor": "optim: {schedule: constant, step_factor: 0.5}",
    "optim.final_factor": "optim: {schedule: step, final_factor: 0.5}",
    "optim.layer_decay": "optim: {layer_decay: 0.9}",
    "train.best_metric": "train: {best_metric: loss}\ndata: {train: a, val: null}",
    "data.image_column": "data: {train: a, image_column: img}",
    "data.label_column": "data: {train: torchvision:CIFAR10, label_column: fine}",
    "data.root": "data: {train: a.csv, root: b}",
    "data.download": "data: {train: a.parquet, download: false}",
    "data.max_bad_fraction": "data: {train: a, max_bad_fraction: 0.1}",
    "cache.views": "cache: {views: 2}",
    "cache.dir": "cache: {budget_gb: 0, dir: a}",
    "sweep.grace_epochs": "sweep: {space: {seed: {grid: [1]}}, grace_epochs: 2}\ndata: {train: a, split_seed: 0}",
    "sweep.num_trials": "sweep: {space: {optim.learning_rate: {grid: [1, 2]}}, num_trials: 2}",
}


def test_every_rule_has_a_case() -> None:
    assert set(WARNINGS) == {rule.key for rule in RULES}


@pytest.mark.parametrize("key", WARNINGS)
def test_setting_without_effect_is_warned_about(key: str) -> None:
    lines = WARNINGS[key]
    data = "" if "data:" in lines else "data: {train: a}\n"

    loaded = parse_spec(f"name: x\nmodel: {{name: vgg16}}\n{data}{lines}\n", where="j.yaml", base=Path("/specs"))

    assert [warning.key for warning in loaded.warnings] == [key]
    assert str(loaded.warnings[0]).startswith("j.yaml:")
    assert ": has no effect: " in str(loaded.warnings[0])


def test_useful_settings_give_no_warning() -> None:
    text = """name: x
model: {name: vgg16, freeze_depth: 2}
data: {train: a.csv, image_column: img, test: torchvision:CIFAR10, root: b, download: false}
optim: {momentum: 0.5, nesterov: true, schedule: step, step_epochs: 2, weight_decay: 1, decay_norm_and_bias: false,
        layer_decay: 0.9}
train: {best_metric: loss}
"""
    assert parse_spec(text, where="j.yaml", base=Path("/")).warnings == ()


def test_searched_setting_without_effect_is_warned_about_unless_another_searched_value_needs_it() -> None:
    momentum = BEGINNING + "optim: {name: adam}\nsweep: {space: {optim.momentum: {grid: [0.1, 0.9]}%s}}\n"

    alone = parse_spec(momentum % "", where="j.yaml", base=Path("/")).warnings
    beside = parse_spec(momentum % ", optim.name: {grid: [adam, sgd]}", where="j.yaml", base=Path("/")).warnings

    assert [str(warning) for warning in alone] == [
        "j.yaml:5:17 sweep.space.optim.momentum: has no effect: only sgd and rmsprop have a momentum. Leave it out."
    ]
    assert beside == ()


LIKELY_NOT_MEANT = {
    "sweep.grace_epochs": "train: {epochs: 1}\nsweep: {space: {optim.momentum: {grid: [0]}}, scheduler: asha}",
    "sweep.mode": "sweep: {space: {optim.momentum: {grid: [0]}}, metric: val_loss, mode: max}",
    "sweep.space.seed": "sweep: {space: {seed: {grid: [0, 1]}}}",
}


@pytest.mark.parametrize("key", LIKELY_NOT_MEANT)
def test_sweep_that_is_likely_not_meant_is_warned_about(key: str) -> None:
    text = f"name: x\nmodel: {{name: vgg16}}\ndata: {{train: a}}\n{LIKELY_NOT_MEANT[key]}\n"

    loaded = parse_spec(text, where="j.yaml", base=Path("/specs"))

    assert [warning.key for warning in loaded.warnings] == [key]
    assert str(loaded.warnings[0]).startswith("j.yaml:")


def test_defaults_never_warn() -> None:
    assert parse_spec(BEGINNING + "optim: {name: adamw}\n", where="j.yaml", base=Path("/")).warnings == ()


def test_differences_name_the_leaves_that_changed() -> None:
    old = load(BEGINNING + "resources: {num_workers: 2}\n")
    new = load(BEGINNING + "resources: {num_workers: {min: 1, max: 2}}\noptim: {learning_rate: 0.1}\n")

    assert sorted(differences(old, new)) == [
        ("optim.learning_rate", 0.01, 0.1),
        ("resources.num_workers", 2, None),
        ("resources.num_workers.max", None, 2),
        ("resources.num_workers.min", None, 1),
    ]
    assert differences(old, old) == []


def test_replace_gives_a_valid_copy_and_leaves_the_first_as_it_is() -> None:
    spec = load(BEGINNING)

    changed = replace(spec, {"optim.learning_rate": 0.5, "model.freeze_depth": 2, "optim.betas": [0.1, 0.2]})

    assert {key: value for key, _, value in differences(spec, changed)} == {
        "model.freeze_depth": 2,
        "optim.betas": [0.1, 0.2],
        "optim.learning_rate": 0.5,
    }
    assert spec.optim.learning_rate == 0.01
    assert replace(spec, {}) == spec


def test_replace_tells_every_faulty_key() -> None:
    with pytest.raises(SpecError) as caught:
        replace(load(BEGINNING), {"optim.lr": 1, "train.epochs": 0, "model.name": "resnet5o", "": 1})

    assert sorted(problem.key for problem in caught.value.problems) == ["", "model.name", "optim.lr", "train.epochs"]


def test_error_survives_pickling_with_its_problems() -> None:
    with pytest.raises(SpecError) as caught:
        load("a: 1")

    assert pickle.loads(pickle.dumps(caught.value)).problems == caught.value.problems


def problem_of_file(path: Path | str) -> str:
    """Return the one problem of loading a file."""
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    assert len(caught.value.problems) == 1
    return str(caught.value)


def test_missing_file_suggests_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "flowers.yaml").touch()

    said = problem_of_file(tmp_path / "flower.yaml")

    assert said == f"{tmp_path}/flower.yaml: there is no such file. Did you mean {tmp_path}/flowers.yaml?"
    assert "is not there either" in problem_of_file(tmp_path / "no" / "flower.yaml")


def test_folder_and_null_character_and_large_file_are_refused(tmp_path: Path) -> None:
    large = tmp_path / "large.yaml"
    large.write_bytes(b"#" * (1 << 20) + b"\n")

    assert problem_of_file(tmp_path) == f"{tmp_path}: is a folder. Give the YAML file in it."
    assert "cannot be read" in problem_of_file("a\0b")
    assert problem_of_file(large) == f"{large}: is larger than 1 MiB. A spec has a few lines."


def test_unreadable_file_tells_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, mode: str) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "open", refuse)

    assert "cannot be read: Permission denied" in problem_of_file(tmp_path / "j.yaml")


def test_text_that_is_not_utf_8_is_refused_at_its_place(tmp_path: Path) -> None:
    path = tmp_path / "j.yaml"
    path.write_bytes(b"name: x\nmodel: \xff\n")

    assert problem_of_file(path) == f"{path}:2:8: is not UTF-8 text. Save it as UTF-8."


def test_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    path = tmp_path / "j.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + BEGINNING.encode())

    assert load_spec(path).spec.name == "x"
