"""Images from a Python function of the user's, where a spec allows code."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from tltrain.data.base import Source, digest
from tltrain.errors import DataError, Problem, SpecError
from tltrain.user_code import imported, last_place


class PythonSource(Source):
    """A data set with `len`, items `(image, label)` and `classes`, as a user's function returned it."""

    thread_safe = False

    def __init__(self, name: str, dataset: Any, labels: np.ndarray, classes: Sequence[str]) -> None:
        """Take a data set, its labels, int64 [N], and its name for ids."""
        self.classes = tuple(classes)
        self.labels = labels
        self._name = name
        self._dataset = dataset

    def read(self, index: int) -> bytes | Image.Image:
        """Return the image of an item: bytes, an image, or one made of uint8 [H, W] or [H, W, 3]."""
        try:
            image = self._dataset[index][0]
            if isinstance(image, np.ndarray):
                image = Image.fromarray(image)
        except Exception as error:  # the user's own code
            problem = Problem(f"cannot be read: {last_place(error)}", "Correct the code", where=self.identity(index))
            raise DataError(problem) from error
        if not isinstance(image, bytes | Image.Image):
            what = f"is a {type(image).__name__}, not an image"
            action = "Return bytes, a PIL image or an array, uint8 [H, W] or [H, W, 3]"
            raise DataError(Problem(what, action, where=self.identity(index)))
        return image

    def identity(self, index: int) -> str:
        """Return `MODULE:FUNCTION/SPLIT#INDEX`."""
        return f"{self._name}#{index}"

    def fingerprint(self) -> str:
        """Return a sha256 over name, classes and labels."""
        return digest("python", self.classes, self.labels, names=[self._name])


def open_python(reference: str, split: str, *, allow_code: bool) -> PythonSource:
    """Open what `package.module:function` returns; it is called with the split where it takes an argument `split`.

    The result has `len`, items `(image, label)`, numbers from 0 as labels, and `classes`, their names. Its attribute
    `labels` or `targets` spares reading every item once.

    Raises SpecError where code is not allowed or cannot be imported, DataError where it fails or returns another
    thing.
    """
    key = f"data.{split}"
    if not allow_code:
        action = "Set allow_code: true in the spec if you trust that code"
        raise SpecError(Problem(f"{reference} is Python code, and this spec allows none", action, key=key))
    function = imported(reference, key)
    try:
        takes_split = "split" in inspect.signature(function).parameters
        dataset = function(split=split) if takes_split else function()
        classes = [str(name) for name in dataset.classes]
        labels = _labels(dataset)
        count = len(dataset)
    except Exception as error:  # the user's own code
        action = "Return an object with len, items (image, label) and classes"
        raise DataError(Problem(f"{reference} failed: {last_place(error)}", action, key=key)) from error
    if len(labels) != count:
        raise DataError(Problem(f"{reference} has {len(labels)} labels for {count} images", "", key=key))
    if count and not 0 <= labels.min() <= labels.max() < len(classes):
        what = f"{reference}: labels {labels.min()} to {labels.max()} do not fit {len(classes)} classes"
        raise DataError(Problem(what, "Number the classes from 0", key=key))
    return PythonSource(f"{reference}/{split}" if takes_split else reference, dataset, labels, classes)


def _labels(dataset: Any) -> np.ndarray:
    """Return labels, int64 [N], without reading images where the data set keeps them apart."""
    values = getattr(dataset, "labels", None)
    values = getattr(dataset, "targets", None) if values is None else values
    if values is None:
        values = [dataset[index][1] for index in range(len(dataset))]
    return np.asarray(values).astype(np.int64, casting="same_kind").reshape(-1)
