"""The numbers of an evaluation equal those of their definitions, and exist for odd inputs too."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics
from torch.nn import functional

from tltrain.errors import DataError, DivergedError
from tltrain.storage import Folder
from tltrain.train.evaluation import Predictions, evaluate, write_predictions

CLASSES = [f"class-{index}" for index in range(8)]


def made_up(n: int, num_classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [n, C] that are right more often than by chance, and labels [n]."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_classes, (n,), generator=generator)
    logits = torch.randn(n, num_classes, generator=generator) * 2
    return logits + functional.one_hot(labels, num_classes) * 2, labels


def predictions_of(labels: list[int], predicted: list[int], num_classes: int) -> Predictions:
    logits = functional.one_hot(torch.tensor(predicted), num_classes).float()
    return Predictions.from_logits(logits, torch.tensor(labels), torch.arange(len(labels)))


def numbers(value: Any) -> list[float]:
    """Every number in a nested value."""
    if isinstance(value, dict | list):
        items = value.values() if isinstance(value, dict) else value
        return [number for item in items for number in numbers(item)]
    return [value] if isinstance(value, int | float) else []


def test_results_of_a_batch_equal_their_definitions() -> None:
    logits, labels = made_up(200, 8)
    results = Predictions.from_logits(logits, labels, torch.arange(200))
    probabilities = logits.double().softmax(1)
    assert results.predicted.tolist() == logits.argmax(1).tolist()
    assert results.probability == pytest.approx(probabilities.max(1).values.numpy(), rel=1e-5)
    losses = functional.cross_entropy(logits.double(), labels, reduction="none").numpy()
    assert results.loss == pytest.approx(losses, rel=1e-4, abs=1e-6)
    order = logits.argsort(1, descending=True)
    assert results.rank.tolist() == (order == labels[:, None]).int().argmax(1).tolist()
    kinds = {name: str(values.dtype) for name, values in vars(results).items()}
    assert kinds == dict.fromkeys(("positions", "labels", "predicted", "rank"), "int64") | {
        "probability": "float32",
        "loss": "float32",
        "brier": "float32",
    }
    brier = ((probabilities - functional.one_hot(labels, 8)) ** 2).sum(1).numpy()
    assert results.brier == pytest.approx(brier, rel=1e-4, abs=1e-6)


@given(st.lists(st.lists(st.integers(-2, 2), min_size=7, max_size=7), min_size=1, max_size=6), st.data())
def test_a_hit_is_rank_0_even_among_equal_scores(scores: list[list[int]], data: st.DataObject) -> None:
    labels = data.draw(st.lists(st.integers(0, 6), min_size=len(scores), max_size=len(scores)))
    logits = torch.tensor(scores, dtype=torch.float32)
    results = Predictions.from_logits(logits, torch.tensor(labels), torch.arange(len(labels)))
    assert ((results.predicted == results.labels) == (results.rank == 0)).all()
    for label in range(7):  # ranks of all classes of an image are 0..6, each once
        again = Predictions.from_logits(logits[:1].expand(7, -1), torch.arange(7), torch.arange(7))
        assert sorted(again.rank) == list(range(7)), label


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_scores_that_are_not_finite_are_no_predictions(bad: float) -> None:
    logits, labels = made_up(4, 3)
    logits[1, 2] = bad
    with pytest.raises(DivergedError, match="1 of 4 images are not finite"):
        Predictions.from_logits(logits, labels, torch.arange(4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_results_do_not_depend_on_the_dtype_of_exact_scores(dtype: torch.dtype) -> None:
    logits, labels = torch.tensor([[1.0, 2.0, 0.5]]), torch.tensor([0])
    full, half = (Predictions.from_logits(x, labels, labels) for x in (logits, logits.to(dtype)))
    assert all(np.array_equal(a, b) for a, b in zip(vars(full).values(), vars(half).values(), strict=True))


@given(st.integers(1, 30), st.integers(1, 4), st.randoms())
def test_every_sample_counts_once_however_it_was_spread(n: int, ranks: int, random: Any) -> None:
    logits, labels = made_up(n, 8)
    whole = Predictions.from_logits(logits, labels, torch.arange(n))
    shares = [[p % n for p in range(rank, -(-n // ranks) * ranks, ranks)] for rank in range(ranks)]
    random.shuffle(shares)
    parts = [Predictions.from_logits(logits[s], labels[s], torch.tensor(s)) for s in shares]
    joined = Predictions.concatenate(parts)
    assert joined.positions.tolist() == list(range(n))
    assert joined.predicted.tolist() == whole.predicted.tolist()
    assert joined.loss == pytest.approx(whole.loss, rel=1e-5)


@pytest.mark.parametrize("average", ["macro", "weighted"])
@pytest.mark.parametrize("seed", range(3))
def test_averages_equal_those_of_scikit_learn(average: str, seed: int) -> None:
    logits, labels = made_up(60, 8, seed)
    labels[labels == 3] = 2  # class 3 has no support
    logits[:, 5] = -100  # class 5 is never predicted
    results = Predictions.from_logits(logits, labels, torch.arange(60))
    expected = metrics.precision_recall_fscore_support(
        results.labels,
        results.predicted,
        labels=range(8),
        average=average,  # type: ignore[arg-type]
        zero_division=0,  # type: ignore[arg-type]
    )
    found = evaluate(results, CLASSES)[average]
    assert [found["precision"], found["recall"], found["f1"]] == pytest.approx(expected[:3])


def test_classes_and_confusion_equal_those_of_scikit_learn() -> None:
    logits, labels = made_up(200, 8)
    labels[labels == 3] = 2
    results = Predictions.from_logits(logits, labels, torch.arange(200))
    found = evaluate(results, CLASSES)
    expected = metrics.classification_report(
        results.labels,
        results.predicted,
        labels=range(8),
        target_names=CLASSES,
        output_dict=True,
        zero_division=0,  # type: ignore[arg-type]
    )
    assert isinstance(expected, dict)
    for row in found["per_class"]:
        theirs = expected[row["class"]]
        assert [row["precision"], row["recall"], row["f1"], row["support"]] == pytest.approx(
            [theirs["precision"], theirs["recall"], theirs["f1-score"], theirs["support"]]
        )
    matrix = metrics.confusion_matrix(results.labels, results.predicted, labels=range(8))
    assert found["confusion_matrix"] == matrix.tolist()
    assert found["accuracy"] == metrics.accuracy_score(results.labels, results.predicted)
    top5 = metrics.top_k_accuracy_score(results.labels, logits.numpy(), k=5, labels=range(8))
    assert found["top5_accuracy"] == pytest.approx(top5)
    assert found["loss"] == pytest.approx(functional.cross_entropy(logits, labels).item(), rel=1e-5)


def test_rows_of_the_confusion_matrix_are_true_classes() -> None:
    found = evaluate(predictions_of([0, 0, 1], [1, 1, 1], 2), ["cat", "dog"])
    assert found["confusion_matrix"] == [[0, 2], [0, 1]]
    assert found["per_class"][0] == {"class": "cat", "support": 2, "precision": 0, "recall": 0, "f1": 0}


@pytest.mark.parametrize(
    ("labels", "predicted", "num_classes"),
    [([0], [0], 1), ([0], [1], 2), ([1, 1], [1, 1], 9), ([0, 1, 2], [2, 0, 1], 3)],
    ids=["one class", "all wrong", "one class of nine", "three classes"],
)
def test_odd_results_give_strict_json_within_bounds(labels: list[int], predicted: list[int], num_classes: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = evaluate(predictions_of(labels, predicted, num_classes), [str(name) for name in range(num_classes)])
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    others = ("num_images", "loss", "brier_score", "confusion_matrix", "bootstrap")
    assert 0 <= found["brier_score"] <= 2
    shares = {key: value for key, value in found.items() if key not in others}
    shares["per_class"] = [{**row, "support": 0} for row in found["per_class"]]
    shares["calibration_bins"] = [{**row, "count": 0} for row in found["calibration_bins"]]
    assert all(0 <= number <= 1 for number in numbers(shares))


def test_no_images_are_no_evaluation() -> None:
    empty = Predictions.from_logits(torch.zeros(0, 3), torch.zeros(0).long(), torch.zeros(0).long())
    with pytest.raises(DataError, match="no images to evaluate"):
        evaluate(empty, ["a", "b", "c"])


@pytest.mark.parametrize("num_classes", [2, 5, 6])
def test_top_5_is_left_out_where_it_says_nothing(num_classes: int) -> None:
    found = evaluate(predictions_of([0], [1], num_classes), [str(name) for name in range(num_classes)])
    if num_classes < 6:
        assert found["top5_accuracy"] is None
        assert f"with {num_classes} classes" in found["top5_note"]
    else:
        assert found["top5_accuracy"] == 1.0
        assert found["top5_note"] is None


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (10, 10), (1, 1), (81, 263), (400, 500)])
def test_the_interval_of_the_accuracy_is_wilsons(hits: int, n: int) -> None:
    found = evaluate(predictions_of([0] * n, [0] * hits + [1] * (n - hits), 2), ["a", "b"])
    interval = stats.binomtest(hits, n).proportion_ci(0.95, method="wilson")
    assert found["accuracy_interval_95"] == pytest.approx([interval.low, interval.high], abs=1e-12)


def test_calibration_error_by_hand() -> None:
    zeros = np.zeros(4, dtype=np.int64)
    probability = np.array([0.9, 0.9, 0.6, 1 / 15], dtype=np.float32)
    results = Predictions(np.arange(4), zeros, np.array([0, 1, 0, 0]), probability, zeros.astype(float), zeros, zeros)
    found = evaluate(results, ["a", "b"])
    # Bins: two samples at .9 (one right), one right at .6, one right at 1/15.
    expected = (2 * abs(0.5 - 0.9) + abs(1 - 0.6) + abs(1 - 1 / 15)) / 4
    assert found["expected_calibration_error"] == pytest.approx(expected, rel=1e-6)
    bins = found["calibration_bins"]
    assert len(bins) == 15
    assert [b["count"] for b in bins if b["count"]] == [1, 1, 2]
    assert (bins[13]["lower"], bins[13]["accuracy"]) == (pytest.approx(13 / 15), 0.5)
    assert bins[5]["accuracy"] is None


def test_right_answers_given_with_certainty_have_no_calibration_error() -> None:
    logits = torch.eye(6) * 1000
    results = Predictions.from_logits(logits, torch.arange(6), torch.arange(6))
    assert evaluate(results, CLASSES[:6])["expected_calibration_error"] == 0.0


def test_the_table_has_a_row_per_image_under_its_own_name(tmp_path: Path) -> None:
    logits, labels = made_up(5, 3)
    positions = torch.tensor([4, 0, 2, 1, 3])
    results = Predictions.concatenate([Predictions.from_logits(logits, labels, positions)])
    folder = Folder.open(str(tmp_path))
    write_predictions(folder, results, [f"image-{n}.png" for n in range(5)], CLASSES[:3])
    table = pq.read_table(io.BytesIO(folder.read_bytes("predictions.parquet")))
    assert table.column("id").to_pylist() == [f"image-{n}.png" for n in range(5)]
    row = table.to_pylist()[4]
    assert row == {
        "id": "image-4.png",
        "label": CLASSES[int(labels[0])],
        "prediction": CLASSES[int(logits[0].argmax())],
        "probability": pytest.approx(logits[0].softmax(0).max().item()),
        "correct": bool(logits[0].argmax() == labels[0]),
    }
    metadata = pq.ParquetFile(tmp_path / "predictions.parquet").metadata
    assert metadata.row_group(0).column(0).compression == "ZSTD"
