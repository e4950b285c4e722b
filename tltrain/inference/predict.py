"""Classify the images of a source, batch by batch, in this process."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from tltrain.data.bad import BadImage
from tltrain.data.base import Source
from tltrain.data.loader import resolve_loader_workers
from tltrain.inference.decoding import Reader, decoded_batches
from tltrain.inference.finished import FinishedModel
from tltrain.inference.ranking import TOP, Ranking


@dataclass(frozen=True, eq=False)
class Classified:
    """What came of one batch. positions: int64 [g], indices into the source, one for each row of `ranking`.

    bad: position -> why the image could not be read.
    """

    positions: np.ndarray
    ranking: Ranking
    bad: dict[int, str]


def classify(
    model: FinishedModel, source: Source, requests: Iterable[np.ndarray], *, num_workers: int
) -> Generator[Classified, None, None]:
    """Yield the classes of the images at each of `requests`, positions int64 [b], in their order.

    num_workers: processes that decode, while this one computes; 0 for all in this one. Raises StorageError where the
    storage does not answer, RunError where the network gives no finite scores.
    """
    reader = Reader(source, model.network.preprocessing)
    pin_memory = model.device.type == "cuda"
    for batch in decoded_batches(
        reader, requests, fork_safe=source.fork_safe, num_workers=num_workers, pin_memory=pin_memory
    ):
        yield Classified(batch.positions, model.rank(batch.images), batch.bad)


def choose_workers(num_images: int, batch_size: int) -> int:
    """Return how many processes decode: none for a batch, whose decoding is sooner done than they have started."""
    return 0 if num_images <= batch_size else resolve_loader_workers("auto")


def batches_of(positions: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """Yield `positions`, int64 [n], in batches."""
    for start in range(0, len(positions), batch_size):
        yield positions[start : start + batch_size]


def columns(num_classes: int) -> list[tuple[str, str]]:
    """Return the names of the columns of predictions, two for each of the most probable classes."""
    suffixes = ["", *(f"_{place}" for place in range(2, min(TOP, num_classes) + 1))]
    return [(f"prediction{suffix}", f"probability{suffix}") for suffix in suffixes]


def schema(num_classes: int) -> pa.Schema:
    """Return the columns of predictions: id, then prediction and probability of each of the most probable classes."""
    fields = [("id", pa.string())]
    for prediction, probability in columns(num_classes):
        fields += [(prediction, pa.string()), (probability, pa.float32())]
    return pa.schema(fields)


def collect(batches: Sequence[Classified], source: Source, classes: Sequence[str]) -> tuple[pa.Table, list[BadImage]]:
    """Return predictions with the columns of `schema`, and the bad images, both in order of position."""
    places = len(columns(len(classes)))
    positions = np.concatenate([np.empty(0, np.int64), *(batch.positions for batch in batches)])
    order = np.argsort(positions)
    empty = np.empty((0, places), np.float32)
    ranked = np.concatenate([empty.astype(np.int64), *(batch.ranking.classes for batch in batches)])[order]
    probabilities = np.concatenate([empty, *(batch.ranking.probabilities for batch in batches)])[order]
    names = pa.array(list(classes), pa.string())
    arrays = [pa.array([source.identity(position) for position in positions[order].tolist()], pa.string())]
    for place in range(places):
        arrays += [names.take(pa.array(ranked[:, place])), pa.array(probabilities[:, place])]
    bad = sorted((position, reason) for batch in batches for position, reason in batch.bad.items())
    table = pa.table(arrays, schema=schema(len(classes)))
    return table, [BadImage(source.identity(position), reason) for position, reason in bad]
