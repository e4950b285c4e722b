"""Runs on data with bad images: those are left out and listed, and the rest trains as if they had never been there."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow.parquet as pq
import pytest
import ranks
import torch
from hostile_images import IMAGES
from PIL import Image
from sklearn.datasets import load_digits
from tiny import tiny_spec

import tltrain.run as far_side
from tltrain.data import waiting
from tltrain.errors import DataError, LostError, SpecError
from tltrain.progress import Wait, read_progress_and_waits
from tltrain.run_folder import RunFolder
from tltrain.spec.load import dump_yaml, load_spec
from tltrain.spec.schema import DataSpec, Spec
from tltrain.train import skipped
from tltrain.train.distributed import Group
from tltrain.train.lane_group import LaneGroup
from tltrain.train.session import fine_tune

ALONE = Group(0, 1, 0, 1, torch.device("cpu"))
NUM_TRAIN, NUM_TEST = 64, 30
BAD = ("zero_bytes", "jpeg_cut", "png_cut", "text", "png_of_50000_by_50000", "tiff_not_a_number", "jpeg_of_no_height")
LISTED = {
    "0/broken.png": "the link is broken",
    "1/leaving.jpg": "the link leaves the data folder for /etc/passwd",
    "2/pipe.gif": "it is a pipe, a socket or a device",
    "3/\\xff.png": "the name is no UTF-8 text",
    "4/zero_bytes.jpg": "is empty (0 bytes)",
}


def write_digits(root: Path, *, bad: bool, num_train: int = NUM_TRAIN) -> None:
    """Write train/ and test/ with a folder per digit; `bad`: with eleven bad images of as many kinds in train/."""
    digits: Any = load_digits(n_class=5)
    for part, first, count in (("train", 0, num_train), ("test", 500, NUM_TEST)):
        for number in range(first, first + count):
            folder = root / part / str(digits.target[number])
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray((digits.images[number] * 15.9).astype(np.uint8)).save(folder / f"{number:04}.png")
    if not bad:
        return
    train = root / "train"
    for index, name in enumerate(BAD):
        (train / str((index + 4) % 5) / f"{name}.jpg").write_bytes(IMAGES[name]())
    (train / "0" / "broken.png").symlink_to("gone.png")
    (train / "1" / "leaving.jpg").symlink_to("/etc/passwd")
    os.mkfifo(train / "2" / "pipe.gif")
    Path(os.fsdecode(os.fsencode(train / "3") + b"/\xff.png")).write_bytes(b"")


def digits_spec(root: Path, changes: dict[str, Any] | None = None, *, name: str = "tiny") -> Spec:
    data = {"train": str(root / "train"), "test": str(root / "test"), "val": None, "image_size": 32, "resize_size": 32}
    more = {"num_loader_workers": 0, "on_bad_image": "skip", "max_bad_fraction": 0.2}
    values = {"data": {**data, **more}, "train.best_metric": "loss", "track": [], **(changes or {})}
    (root / "train.parquet").touch()  # not needed
    return tiny_spec(root, values, name=name)


def execute(root: Path, spec: Spec, *sets: str) -> int:
    path = root / f"{spec.name}.yaml"
    path.write_text(dump_yaml(spec))
    return far_side.execute(load_spec(path, sets), local=True)


def model(spec: Spec) -> bytes:
    return RunFolder.at(spec.storage, spec.name).model.read_bytes("model.safetensors")


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with good images alone, and a run on them that is called clean."""
    root = tmp_path_factory.mktemp("clean")
    write_digits(root, bad=False)
    execute(root, digits_spec(root, name="clean"))
    return root


def test_a_run_ends_well_without_the_bad_images_and_says_what_it_left_out(
    tmp_path: Path, clean: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_digits(tmp_path, bad=True)
    assert execute(tmp_path, digits_spec(tmp_path)) == 0
    output = capsys.readouterr()
    assert f"Left out    11 of {NUM_TRAIN + 11 + NUM_TEST} images: skipped.json" in output.out
    assert f"{NUM_TRAIN} train" in output.err
    assert "11 of 105 images cannot be used and are left out" in " ".join(output.err.split())
    run = RunFolder.at(str(tmp_path / "runs"), "tiny")
    train, test = run.read_json(skipped.FILE)["sources"]
    listed = {one["id"]: one["reason"] for one in train["skipped"]}
    assert (train["key"], train["images"], len(listed)) == ("data.train", NUM_TRAIN + 11, 11)
    assert listed.items() >= LISTED.items()
    assert (test["key"], test["images"], test["skipped"]) == ("data.test", NUM_TEST, [])
    assert (run.state()["num_skipped"], run.read_json("header.json")["num_train"]) == (11, NUM_TRAIN)
    assert model(digits_spec(tmp_path)) == model(digits_spec(clean, name="clean"))


def test_three_in_a_hundred_are_left_out_by_a_spec_that_says_no_more_than_skip(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_digits(tmp_path, bad=True, num_train=356)
    spec = digits_spec(tmp_path, {"train.epochs": 1})
    default = DataSpec.model_fields["max_bad_fraction"].default
    assert execute(tmp_path, spec, f"data.max_bad_fraction={default}") == 0
    assert f"Left out    11 of {356 + 11 + NUM_TEST} images: skipped.json" in capsys.readouterr().out
    assert skipped.read_looks(RunFolder.at(spec.storage, spec.name))[0].fraction == pytest.approx(0.03, abs=1e-4)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_the_lanes_of_a_sweep_on_ray_train_without_them(tmp_path: Path, clean: Path) -> None:
    write_digits(tmp_path, bad=True)
    space = {"optim.learning_rate": {"grid": [0.01, 0.05]}, "model.freeze_depth": {"grid": [2, "all"]}}
    found = []
    for root in (clean, tmp_path):
        changes = {"data.val": str(root / "test"), "data.test": None, "sweep": {"space": space}}
        spec = digits_spec(root, changes, name="sweep")
        path = root / "sweep.yaml"
        path.write_text(dump_yaml(spec))
        assert far_side.execute(load_spec(path), local=False) == 0
        run = RunFolder.at(spec.storage, spec.name)
        losses = [(row["lane"], row["epoch"], row["train_loss"], row["val_loss"]) for row in run.metrics()]
        weights = RunFolder.open(f"{run.uri}/winner").model.read_bytes("model.safetensors")
        found.append((sorted(losses), weights))
    assert found[0] == found[1]
    assert len(found[0][0]) == 4 * 2
    train, _ = run.read_json(skipped.FILE)["sources"]
    assert (train["images"], len(train["skipped"]), run.state()["num_skipped"]) == (NUM_TRAIN + 11, 11, 11)


@pytest.mark.slow
def test_bad_test_images_are_no_part_of_the_result(tmp_path: Path) -> None:
    write_digits(tmp_path, bad=False)
    (tmp_path / "test" / "0" / "x.png").write_bytes(b"")
    execute(tmp_path, digits_spec(tmp_path))
    run = RunFolder.at(str(tmp_path / "runs"), "tiny")
    ids = pq.read_table(tmp_path / "runs" / "tiny" / "predictions.parquet").column("id").to_pylist()
    assert run.state()["evaluation"]["num_images"] == len(ids) == NUM_TEST
    assert "0/x.png" not in ids


def test_too_many_bad_images_end_the_run_before_it_trains(tmp_path: Path) -> None:
    write_digits(tmp_path, bad=False)
    for index in range(12):
        (tmp_path / "train" / "0" / f"bad{index:02}.png").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        execute(tmp_path, digits_spec(tmp_path), "data.max_bad_fraction=0.1")
    (problem,) = caught.value.problems
    assert problem.what.startswith("12 of 76 images cannot be used: 0/bad00.png is empty (0 bytes); 0/bad01.png is")
    assert "0/bad09.png is empty (0 bytes); and 2 more" in problem.what
    assert problem.key == "data.train"
    run = RunFolder.at(str(tmp_path / "runs"), "tiny")
    assert (run.state()["state"], run.state()["cause"], run.metrics()) == ("failed", "data", [])
    assert execute(tmp_path, digits_spec(tmp_path), "data.max_bad_fraction=0.2") == 0


def train_ranks(group: Group, root: str, name: str) -> None:
    fine_tune(digits_spec(Path(root), name=name), RunFolder.at(f"{root}/runs", name), group)


@pytest.mark.slow
def test_two_ranks_leave_out_the_same_images(tmp_path: Path, clean: Path) -> None:
    write_digits(tmp_path, bad=True)
    ranks.run(2, train_ranks, str(tmp_path), "two")
    ranks.run(2, train_ranks, str(clean), "two")
    assert model(digits_spec(tmp_path, name="two")) == model(digits_spec(clean, name="two"))


@pytest.mark.slow
def test_a_run_that_goes_on_leaves_out_the_same_images_and_does_not_look_again(
    tmp_path: Path, clean: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_digits(tmp_path, bad=True)
    spec = digits_spec(tmp_path)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tltrain.train.session.finish_lane", stop)
        with pytest.raises(KeyboardInterrupt):
            execute(tmp_path, spec)
    monkeypatch.setattr(skipped, "bad_images", None)
    monkeypatch.setattr("tltrain.train.session.Session._train_epoch", None)
    assert execute(tmp_path, spec) == 0
    assert model(spec) == model(digits_spec(clean, name="clean"))


@pytest.mark.slow
@pytest.mark.parametrize("repair", [True, False], ids=["repaired", "left out"])
def test_a_bad_test_image_does_not_cost_the_training(
    tmp_path: Path, clean: Path, monkeypatch: pytest.MonkeyPatch, repair: bool
) -> None:
    write_digits(tmp_path, bad=False)
    bad = tmp_path / "test" / "0" / "bad.png"
    bad.write_bytes(b"")
    spec = digits_spec(tmp_path)
    with pytest.raises(DataError, match=r"0/bad.png: is empty.* data.on_bad_image: skip leaves them out"):
        execute(tmp_path, spec, "data.on_bad_image=fail")
    monkeypatch.setattr("tltrain.train.session.Session._train_epoch", None)
    if repair:
        shutil.copy(next((tmp_path / "test" / "0").glob("0*.png")), bad)
    assert execute(tmp_path, spec, f"data.on_bad_image={'fail' if repair else 'skip'}") == 0
    assert model(spec) == model(digits_spec(clean, name="clean"))


@pytest.mark.slow
def test_lanes_of_a_sweep_take_what_the_sweep_knows_and_its_winner_lists_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_digits(tmp_path, bad=True)
    spec = digits_spec(tmp_path)
    run = RunFolder.at(spec.storage, "sweep")
    skipped.write_looks(run, skipped.look_at_images(spec, [], ALONE))
    monkeypatch.setattr(skipped, "bad_images", None)
    lanes = LaneGroup(spec, run, ALONE, index=0, passes=2)
    for trial in ("t0", "t1"):
        lanes.add(trial, spec, None)
    rows, errors = lanes.train_epoch(["t0", "t1"], 0)
    assert (len(rows), errors) == (2, {})
    lanes.finish(spec, "winner")
    lanes.close()
    winner = RunFolder(run.folder.child("winner"))
    assert winner.read_json(skipped.FILE) == run.read_json(skipped.FILE)
    assert json.loads(winner.model.read_bytes("model.json"))["data"]["num_train"] == NUM_TRAIN


def test_the_fraction_has_no_effect_where_bad_images_end_the_run(tmp_path: Path) -> None:
    text = "name: x\nmodel: {name: resnet50}\ndata: {train: a, max_bad_fraction: 0.1}\n"
    path = tmp_path / "x.yaml"
    path.write_text(text)
    (warning,) = load_spec(path).warnings
    assert warning.key == "data.max_bad_fraction"
    with pytest.raises(SpecError, match=r"sweep.space.data.on_bad_image"):
        load_spec(path, ["sweep={space: {data.on_bad_image: {choice: [fail, skip]}}}"])


def test_a_look_that_never_ends_is_told_of_and_given_up_and_nothing_is_left_out_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_digits(tmp_path, bad=True)
    spec = digits_spec(tmp_path, {"resources.loader_timeout_s": 2.0})
    folder, waits = RunFolder.at(spec.storage, spec.name).folder, list[Wait]()

    def never_decoded(*_: object) -> NoReturn:
        while not waits:
            waits.extend(read_progress_and_waits(folder)[1])
            time.sleep(0.1)
        time.sleep(3600)
        raise AssertionError

    monkeypatch.setattr(waiting, "LOOK_S", 0.05)
    with monkeypatch.context() as patch:
        patch.setattr(skipped, "decode", never_decoded)
        with pytest.raises(LostError, match=r"images from .* on: not read within 2 s\. .*resources\.loader_timeout_s"):
            execute(tmp_path, spec)
    state = RunFolder.at(spec.storage, spec.name).state()
    assert (state["state"], state["cause"]) == ("failed", "node lost")
    assert waits[0].what.startswith("images, of which none have come for 1 s: images from ")
    assert execute(tmp_path, spec) == 0
    assert len(skipped.read_looks(RunFolder.at(spec.storage, spec.name))[0].bad) == len(BAD) + len(LISTED) - 1
