"""Small copies of the test images that tell most about a model: its surest mistakes, and where it was least sure."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tltrain.data.decode import decode
from tltrain.data.splits import Split
from tltrain.errors import DataError
from tltrain.storage import Folder
from tltrain.train.evaluation import Predictions

FILE = "thumbnails.parquet"
SIZE = 96
"""Pixels of the longer side, at most."""
QUALITY = 82
logger = logging.getLogger(__name__)


def write_thumbnails(
    folder: Folder, split: Split, predictions: Predictions, classes: Sequence[str], count: int
) -> None:
    """Write thumbnails.parquet: at most `count` images of each kind, as JPEG of at most SIZE pixels.

    Columns: kind (`mistake`, surest first; `uncertain`, least sure first), id, label, prediction, probability of the
    predicted class, image. An image that cannot be read any more is left out, with a warning.
    """
    chosen = [("mistake", row) for row in surest_mistakes(predictions, count)]
    chosen += [("uncertain", row) for row in most_uncertain(predictions, count)]
    rows = [found for kind, row in chosen if (found := _row(kind, split, predictions, row, classes)) is not None]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), sink)
    folder.write_bytes(FILE, sink.getvalue().to_pybytes())


_SCHEMA = pa.schema(
    [
        ("kind", pa.string()),
        ("id", pa.string()),
        ("label", pa.string()),
        ("prediction", pa.string()),
        ("probability", pa.float32()),
        ("image", pa.binary()),
    ]
)


def surest_mistakes(predictions: Predictions, count: int) -> list[int]:
    """Return the rows of at most `count` wrong predictions, the surest first."""
    wrong = np.flatnonzero(predictions.labels != predictions.predicted)
    return wrong[np.argsort(-predictions.probability[wrong], kind="stable")][:count].tolist()


def most_uncertain(predictions: Predictions, count: int) -> list[int]:
    """Return the rows of the `count` predictions, right or wrong, with the lowest probability, the lowest first."""
    return np.argsort(predictions.probability, kind="stable")[:count].tolist()


def _row(
    kind: str, split: Split, predictions: Predictions, row: int, classes: Sequence[str]
) -> dict[str, object] | None:
    position = int(predictions.positions[row])
    identity = split.identity(position)
    try:
        image = decode(split.read(position), identity)
    except DataError as error:
        logger.warning("no thumbnail of %s: %s", identity, error)
        return None
    return {
        "kind": kind,
        "id": identity,
        "label": classes[predictions.labels[row]],
        "prediction": classes[predictions.predicted[row]],
        "probability": float(predictions.probability[row]),
        "image": thumbnail(image),
    }


def thumbnail(image: Image.Image) -> bytes:
    """Return an RGB image as JPEG of at most SIZE pixels; smaller ones keep their size, and no metadata is kept."""
    small = image.copy()
    small.thumbnail((SIZE, SIZE), Image.Resampling.LANCZOS)
    pixels = Image.fromarray(np.asarray(small))  # a copy without comments, which Pillow would write again
    sink = io.BytesIO()
    pixels.save(sink, "JPEG", quality=QUALITY, subsampling=0)
    return sink.getvalue()
