"""Predictions: the same numbers as the run's evaluation, in parts that are not done twice, past bad images."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from trained import train_tiny

from tltrain.data.loader import eval_batches
from tltrain.data.splits import open_split
from tltrain.errors import DataError, ResourceError, RunError, SpecError, StorageError
from tltrain.inference import parts
from tltrain.inference.finished import FinishedModel, find_model, open_model
from tltrain.inference.images import open_images
from tltrain.inference.parts import Outcome, PredictionFile
from tltrain.inference.predict import Classified, batches_of, classify, collect
from tltrain.inference.ranking import rank
from tltrain.lease import hold
from tltrain.run_folder import RunFolder
from tltrain.storage import Folder
from tltrain.train.reevaluate import evaluate_model

BATCH_SIZE = 4


@pytest.fixture(scope="module")
def model(finished_run: RunFolder) -> FinishedModel:
    return open_model(finished_run.uri)


class Cut(Exception):
    """Stands for whatever ends a prediction."""


def predict(
    model: FinishedModel, sources: Sequence[str], out: str, *, cut_after: int | None = None, force: bool = False
) -> tuple[Outcome, list[int]]:
    """Write `out`; return what came of it and the positions that were asked for."""
    images, file = open_images(sources), PredictionFile(out)
    asked: list[int] = []

    def here(requests: list[np.ndarray]) -> Generator[Classified, None, None]:
        for number, batch in enumerate(classify(model, images.source, requests, num_workers=0)):
            if number == cut_after:
                raise Cut
            asked.extend([*batch.positions.tolist(), *batch.bad])
            yield batch

    file.prepare(force=force)
    return file.write(images, model.classes, "digest", BATCH_SIZE, here, lambda done, kept: None), asked


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_SIZE", 10)  # rounded up to three batches


@pytest.mark.parametrize("num_workers", [0, 1])
def test_predictions_equal_those_of_the_runs_evaluation(
    model: FinishedModel, finished_run: RunFolder, digits_folder: Path, num_workers: int
) -> None:
    expected = pq.read_table(f"{finished_run.uri}/predictions.parquet").to_pydict()
    source = open_images([str(digits_folder / "test.parquet")]).source

    batches = classify(model, source, batches_of(np.arange(len(source)), 16), num_workers=num_workers)
    table, bad = collect(list(batches), source, model.classes)

    assert np.ptp(expected["probability"]) > 0.01, "all images look the same to the model, so nothing is compared"
    assert bad == []
    assert table.column("id").to_pylist() == expected["id"]
    assert table.column("prediction").to_pylist() == expected["prediction"]
    np.testing.assert_allclose(table.column("probability").to_numpy(), expected["probability"], rtol=1e-5)


@pytest.mark.slow
def test_predictions_equal_an_evaluation_of_the_shipped_test_images(tmp_path: Path, fashion_dir: Path) -> None:
    data = {f"data.{part}": str(fashion_dir / f"{part}.parquet") for part in ("train", "test")}
    run = train_tiny(tmp_path, {**data, "train.epochs": 1, "train.batch_size": 50})
    expected = pq.read_table(f"{run.uri}/predictions.parquet").to_pydict()

    outcome, _ = predict(open_model(run.uri), [data["data.test"]], str(tmp_path / "out.parquet"))

    found = pq.read_table(tmp_path / "out.parquet").to_pydict()
    hits = np.mean([a == b for a, b in zip(found["prediction"], expected["label"], strict=True)])
    assert outcome.num_images == 500
    assert (found["id"], found["prediction"]) == (expected["id"], expected["prediction"])
    np.testing.assert_allclose(found["probability"], expected["probability"], rtol=1e-5)
    assert hits == pytest.approx(evaluate_model(run.uri, data["data.test"])["accuracy"])


def test_images_reach_the_network_to_the_bit_as_in_an_evaluation(model: FinishedModel, digits_folder: Path) -> None:
    path = str(digits_folder / "test.parquet")
    assert model.place.data is not None
    split = open_split(path, model.place.data, model.classes)
    sizes = {"batch_size": 45, "rank": 0, "world_size": 1, "num_workers": 0, "pin_memory": False}
    (batch,) = eval_batches(split, model.network.preprocessing, **sizes)
    seen: list[torch.Tensor] = []
    hook = model.network.module.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))

    list(classify(model, open_images([path]).source, [np.arange(45)], num_workers=0))
    model.logits(batch.images)
    hook.remove()

    assert torch.equal(*seen)


def test_the_most_probable_classes_are_ranked_and_of_equal_ones_the_first_comes_first() -> None:
    ranking = rank(torch.tensor([[0.0, 2.0, 2.0, 1.0, 0.0, -1.0, 0.0]]))

    assert ranking.classes.tolist() == [[1, 2, 3, 0, 4]]
    assert ranking.probabilities[0] == pytest.approx(torch.softmax(torch.tensor([2.0, 2, 1, 0, 0, 0, -1]), 0)[:5])
    warm = rank(torch.tensor([[0.0, 2.0, 4.0]]), temperature=2.0)
    assert warm.probabilities[0] == pytest.approx(torch.softmax(torch.tensor([2.0, 1, 0]), 0))
    assert rank(torch.zeros(2, 3)).classes.tolist() == [[0, 1, 2]] * 2
    with pytest.raises(RunError, match="scores of 1 of 2 images are not finite"):
        rank(torch.tensor([[0.0, 1.0], [0.0, float("nan")]]))


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("name", ["out.parquet", "out.csv"])
def test_an_interrupted_prediction_goes_on_and_equals_one_that_was_not(
    model: FinishedModel, digits_folder: Path, tmp_path: Path, name: str
) -> None:
    sources = [str(digits_folder / "test.parquet")]  # 45 images: four parts
    with pytest.raises(Cut):
        predict(model, sources, str(tmp_path / name), cut_after=7)  # one batch into the third part
    assert not (tmp_path / name).exists()

    outcome, asked = predict(model, sources, str(tmp_path / name))
    predict(model, sources, str(tmp_path / f"whole-{name}"))

    assert asked == list(range(24, 45))
    assert (outcome.num_images, outcome.num_kept, outcome.num_bad) == (45, 24, 0)
    assert digest(tmp_path / name) == digest(tmp_path / f"whole-{name}")
    assert sorted(path.name for path in tmp_path.iterdir()) == [name, f"whole-{name}"]


def test_who_classifies_is_closed_when_a_prediction_is_cut_short(
    model: FinishedModel, digits_folder: Path, tmp_path: Path
) -> None:
    images = open_images([str(digits_folder / "test.parquet")])
    closed = False

    def here(requests: list[np.ndarray]) -> Generator[Classified, None, None]:
        nonlocal closed
        try:
            yield from classify(model, images.source, requests, num_workers=0)
        finally:
            closed = True

    def report(done: int, kept: int) -> None:
        if done:
            raise Cut

    with pytest.raises(Cut) as kept:  # a traceback that is kept holds the frames of all that was called
        PredictionFile(str(tmp_path / "a.parquet")).write(images, model.classes, "digest", BATCH_SIZE, here, report)
    assert closed, kept


def test_parts_in_any_order_make_the_same_file(model: FinishedModel, digits_folder: Path, tmp_path: Path) -> None:
    sources = [str(digits_folder / "test.parquet")]
    predict(model, sources, str(tmp_path / "a.parquet"))
    images = open_images(sources)

    def backwards(requests: list[np.ndarray]) -> Generator[Classified, None, None]:
        yield from reversed(list(classify(model, images.source, requests, num_workers=0)))

    file = PredictionFile(str(tmp_path / "b.parquet"))
    file.write(images, model.classes, "digest", BATCH_SIZE, backwards, lambda done, kept: None)

    assert digest(tmp_path / "a.parquet") == digest(tmp_path / "b.parquet")


@pytest.fixture
def spoiled(digits_folder: Path, tmp_path: Path) -> Path:
    """A folder of 14 images, of which 11 are bad."""
    folder = tmp_path / "images"
    folder.mkdir()
    images = pq.read_table(digits_folder / "test.parquet").column("image").to_pylist()
    for number in range(14):
        (folder / f"{number:02d}.png").write_bytes(images[number] if number in (1, 6, 13) else b"no image")
    return folder


def test_bad_images_are_listed_and_stop_nothing(model: FinishedModel, spoiled: Path, tmp_path: Path) -> None:
    outcome, _ = predict(model, [str(spoiled)], str(tmp_path / "out.csv"))

    with open(tmp_path / "out.csv", newline="") as file:
        assert [row["id"] for row in csv.DictReader(file)] == ["01.png", "06.png", "13.png"]
    with open(tmp_path / "out.bad.csv", newline="") as file:
        bad = list(csv.DictReader(file))
    assert len(bad) == outcome.num_bad == 11
    assert [vars(one) for one in outcome.bad] == bad[:10]
    assert "cannot be decoded" in bad[0]["reason"]
    assert outcome.num_images == 3


def test_a_batch_of_bad_images_alone_is_no_trouble(model: FinishedModel, spoiled: Path, tmp_path: Path) -> None:
    for name in ("01.png", "06.png", "13.png"):
        (spoiled / name).unlink()

    outcome, _ = predict(model, [str(spoiled)], str(tmp_path / "out.parquet"))

    assert (outcome.num_images, outcome.num_bad) == (0, 11)
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 0


def test_parts_of_another_prediction_are_not_mixed_in(model: FinishedModel, spoiled: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out.parquet")
    with pytest.raises(Cut):
        predict(model, [str(spoiled)], out, cut_after=3)
    (spoiled / "99.png").write_bytes(b"one more")

    with pytest.raises(SpecError, match=r"out.parquet.parts: holds parts .* another images.*--force"):
        predict(model, [str(spoiled)], out)
    assert len(predict(model, [str(spoiled)], out, force=True)[1]) == 15
    with pytest.raises(SpecError, match="is there already"):
        predict(model, [str(spoiled)], out)


def test_two_predictions_do_not_write_the_same_file(model: FinishedModel, spoiled: Path, tmp_path: Path) -> None:
    with hold(Folder.open(str(tmp_path / "out.csv.parts"))), pytest.raises(ResourceError, match="being written"):
        predict(model, [str(spoiled)], str(tmp_path / "out.csv"))


@pytest.mark.parametrize("out", ["out", "out.txt", ".csv", "s3://bucket/out.json?region=x"])
def test_another_suffix_is_refused(out: str) -> None:
    with pytest.raises(SpecError, match=r"written as .parquet or .csv"):
        PredictionFile(out)


def test_cloud_storage_is_read_and_written(model: FinishedModel, spoiled: Path, s3_uri: str, tmp_path: Path) -> None:
    root, (address, _, query) = Folder.open(s3_uri), s3_uri.partition("?")
    for path in spoiled.iterdir():
        root.child("images").write_file(path.name, path)

    outcome, _ = predict(model, [f"{address}/images?{query}"], f"{address}/out.parquet?{query}")
    predict(model, [str(spoiled)], str(tmp_path / "out.parquet"))

    assert root.read_bytes("out.parquet") == (tmp_path / "out.parquet").read_bytes()
    assert root.read_bytes("out.bad.csv") == (tmp_path / "out.bad.csv").read_bytes()
    assert "=" not in outcome.uri
    assert root.names() == ["images", "out.bad.csv", "out.parquet"]


class Silent:
    """A source whose storage does not answer."""

    labels = np.zeros(1)
    fork_safe = True

    def identity(self, index: int) -> str:
        return "x.png"

    def read(self, index: int) -> bytes:
        raise OSError("the network is unreachable")


def test_a_storage_that_does_not_answer_is_no_bad_image(model: FinishedModel) -> None:
    silent: Any = Silent()

    with pytest.raises(StorageError, match="network is unreachable"):
        list(classify(model, silent, [np.array([0])], num_workers=0))


def test_a_model_is_found_in_a_run_a_sweep_and_its_own_folder(finished_run: RunFolder, tmp_path: Path) -> None:
    sweep = RunFolder(Folder.open(str(tmp_path / "sweep")))
    sweep.write_spec(finished_run.spec_text())
    sweep.update(state="running")
    with pytest.raises(SpecError, match="has no finished model"):
        find_model(sweep.uri)
    winner = sweep.folder.child("winner")
    for name in ("model.json", "model.safetensors"):
        winner.child("model").write_bytes(name, finished_run.model.read_bytes(name))
    RunFolder(winner).write_spec(finished_run.spec_text())
    sweep.update(winner_run="winner")

    found = find_model(sweep.uri)
    assert (found.folder, found.name, found.uri) == (winner.child("model"), "winner", winner.uri)
    alone = find_model(winner.child("model").uri)
    assert (alone.spec, alone.allow_code) == (None, False)
    assert found.digest() == alone.digest() == find_model(finished_run.uri).digest()
    with pytest.raises(SpecError):
        find_model(str(tmp_path / "nowhere"))
    winner.child("model").write_bytes("model.json", b"{")
    with pytest.raises(DataError, match=r"model.json is damaged"):
        found.card()
