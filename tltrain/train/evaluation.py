"""The numbers of an evaluation, from the results of every single sample."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor
from torch.nn import functional

from tltrain.errors import DataError, DivergedError
from tltrain.storage import Folder
from tltrain.train.bootstrap import bootstrap_intervals

NUM_BINS = 15
_Z_95 = 1.959963984540054  # 97.5 % quantile of the normal distribution


@dataclass(frozen=True)
class Predictions:
    """Results of n samples; all arrays have shape [n]."""

    positions: np.ndarray
    """int64: index of the sample in its data set."""
    labels: np.ndarray
    """int64: the true class."""
    predicted: np.ndarray
    """int64: the class with the highest score; of equal ones the first."""
    probability: np.ndarray
    """float32: softmax probability of the predicted class."""
    loss: np.ndarray
    """float32: cross-entropy, without class weights or label smoothing."""
    rank: np.ndarray
    """int64: how many classes come before the true one; 0 is a hit, below 5 a hit among the top 5."""
    brier: np.ndarray
    """float32: squared distance between the probabilities of all classes and the true one's 1, from 0 to 2."""

    def __len__(self) -> int:
        return len(self.positions)

    @classmethod
    def from_logits(cls, logits: Tensor, labels: Tensor, positions: Tensor, *, temperature: float = 1.0) -> Predictions:
        """Results of one batch. logits: float [b, C]; labels, positions: int [b]; on any device.

        temperature: what logits are divided by before they become probabilities; which class is predicted comes from
        the logits as they are. Raises DivergedError where a logit is not finite.
        """
        logits = logits.detach().float()
        log_probabilities = functional.log_softmax(logits / temperature, dim=1).cpu().numpy()
        scores, true = logits.cpu().numpy(), labels.cpu().numpy().astype(np.int64)
        bad = int((~np.isfinite(scores)).any(axis=1).sum())
        if bad:
            what = f"the network's scores of {bad} of {len(scores)} images are not finite"
            raise DivergedError(what, "Lower optim.learning_rate, or use train.precision bf16 or fp32")
        row, predicted = np.arange(len(scores)), scores.argmax(axis=1)
        return cls(
            positions=positions.cpu().numpy().astype(np.int64),
            labels=true,
            predicted=predicted.astype(np.int64),
            probability=np.exp(log_probabilities[row, predicted]),
            loss=-log_probabilities[row, true],
            rank=_rank(scores, true),
            brier=_brier(np.exp(log_probabilities), true),
        )

    @classmethod
    def concatenate(cls, batches: Sequence[Predictions]) -> Predictions:
        """All results, sorted by position. A sample that padding gave to several ranks counts once."""
        assert batches
        joined = {f.name: np.concatenate([getattr(b, f.name) for b in batches]) for f in fields(cls)}
        _, first = np.unique(joined["positions"], return_index=True)
        return cls(**{name: values[first] for name, values in joined.items()})


def evaluate(predictions: Predictions, classes: Sequence[str]) -> dict[str, Any]:
    """The numbers of evaluation.json, from a non-empty set of results. Raises DataError where it is empty.

    Averages and counts go over all classes. A ratio without a denominator (a class that is not among the
    labels, or never predicted) is 0, as with scikit-learn's zero_division=0. `loss` is the negative log-likelihood;
    `accuracy_interval_95` is Wilson's, and `bootstrap` has intervals from images drawn again.
    """
    num_images, num_classes = len(predictions), len(classes)
    if num_images == 0:
        raise DataError("There are no images to evaluate", "Check the source of the test images")
    hits = predictions.labels == predictions.predicted
    confusion = _confusion_matrix(predictions, num_classes)
    scores = _class_scores(confusion)
    few = num_classes < 6
    return {
        "num_images": num_images,
        "accuracy": float(hits.mean()),
        "accuracy_interval_95": _wilson_interval(int(hits.sum()), num_images),
        "top5_accuracy": None if few else float((predictions.rank < 5).mean()),
        "top5_note": f"with {num_classes} classes, the first five always hold the true one" if few else None,
        "loss": float(predictions.loss.mean(dtype=np.float64)),
        "brier_score": float(predictions.brier.mean(dtype=np.float64)),
        "bootstrap": bootstrap_intervals(confusion),
        "macro": _average(scores, np.full(num_classes, 1 / num_classes)),
        "weighted": _average(scores, scores["support"] / num_images),
        **_calibration(predictions.probability, hits),
        "per_class": _per_class(scores, classes),
        "confusion_matrix": confusion.tolist(),
    }


def write_predictions(
    folder: Folder, predictions: Predictions, identities: Sequence[str], classes: Sequence[str]
) -> None:
    """Write predictions.parquet: id, label, prediction, probability and correct, one row per image.

    identities: what the image at each position of the data set is called.
    """
    names = pa.array(list(classes), pa.string())
    table = pa.table(
        {
            "id": pa.array([identities[position] for position in predictions.positions], pa.string()),
            "label": names.take(pa.array(predictions.labels)),
            "prediction": names.take(pa.array(predictions.predicted)),
            "probability": pa.array(predictions.probability, pa.float32()),
            "correct": pa.array(predictions.labels == predictions.predicted),
        }
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    folder.write_bytes("predictions.parquet", sink.getvalue().to_pybytes())


def _rank(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many classes come before the true one; of equal scores the lower class comes first. int64 [b]."""
    true = np.take_along_axis(scores, labels[:, None], axis=1)
    earlier = np.arange(scores.shape[1]) < labels[:, None]
    return ((scores > true) | ((scores == true) & earlier)).sum(axis=1)


def _brier(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Sum over the classes of (probability - whether it is the true one) squared (Brier 1950), float32 [b]."""
    true = np.take_along_axis(probabilities, labels[:, None], axis=1)[:, 0]
    return (probabilities**2).sum(axis=1) - 2 * true + 1


def _confusion_matrix(predictions: Predictions, num_classes: int) -> np.ndarray:
    """Counts, int64 [C, C]: rows are true classes, columns predicted ones."""
    cell = predictions.labels * num_classes + predictions.predicted
    return np.bincount(cell, minlength=num_classes**2).reshape(num_classes, num_classes)


def _class_scores(confusion: np.ndarray) -> dict[str, np.ndarray]:
    hits, support, predicted = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    return {
        "support": support,
        "precision": _ratio(hits, predicted),
        "recall": _ratio(hits, support),
        "f1": _ratio(2 * hits, support + predicted),
    }


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.zeros(len(numerator)), where=denominator > 0)


def _average(scores: Mapping[str, np.ndarray], weights: np.ndarray) -> dict[str, float]:
    return {name: float(scores[name] @ weights) for name in ("precision", "recall", "f1")}


def _per_class(scores: Mapping[str, np.ndarray], classes: Sequence[str]) -> list[dict[str, Any]]:
    columns = {name: values.tolist() for name, values in scores.items()}
    return [
        {"class": name, **{score: values[index] for score, values in columns.items()}}
        for index, name in enumerate(classes)
    ]


def _wilson_interval(hits: int, n: int) -> list[float]:
    """Confidence interval of a proportion (Wilson 1927), which stays within 0..1 for few samples too."""
    p, z = hits / n, _Z_95
    centre, scale = p + z**2 / (2 * n), 1 + z**2 / n
    half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return [max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)]


def _calibration(probability: np.ndarray, hits: np.ndarray) -> dict[str, Any]:
    """Expected calibration error in bins (lower, upper] of equal width (Guo et al. 2017, equation 3)."""
    bin_of = np.clip(np.ceil(probability.astype(np.float64) * NUM_BINS) - 1, 0, NUM_BINS - 1).astype(int)
    bins = [_bin(index, probability[bin_of == index], hits[bin_of == index]) for index in range(NUM_BINS)]
    gaps = [b["count"] * abs(b["accuracy"] - b["confidence"]) for b in bins if b["count"]]
    return {"expected_calibration_error": sum(gaps) / len(hits), "calibration_bins": bins}


def _bin(index: int, probability: np.ndarray, hits: np.ndarray) -> dict[str, Any]:
    count = len(hits)
    return {
        "lower": index / NUM_BINS,
        "upper": (index + 1) / NUM_BINS,
        "count": count,
        "accuracy": float(hits.mean()) if count else None,
        "confidence": float(probability.mean(dtype=np.float64)) if count else None,
    }
