"""Training, validation and test images of a run, labelled by the classes of its training data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tltrain.data.base import Source, Split
from tltrain.data.leakage import find_leaks
from tltrain.data.sources import evaluation_split, open_source
from tltrain.errors import DataError, Problem
from tltrain.spec.schema import DataSpec

__all__ = ["Split", "Splits", "load_splits", "open_split"]

_SHOWN = 10


@dataclass(frozen=True, eq=False)
class Splits:
    """All images of a run.

    classes: the training data's classes, which all labels refer to. fingerprint: sha256 over ids, sizes,
    labels and the division. learned_from: the same without the test images. warnings: what the user should know.
    """

    train: Split
    val: Split | None
    test: Split | None
    classes: tuple[str, ...]
    fingerprint: str
    learned_from: str
    warnings: tuple[str, ...]


Skipped = Mapping[str, Collection[str]]
"""Fingerprint of a source -> ids of its images that are left out."""


def load_splits(
    data: DataSpec,
    seed: int,
    *,
    allow_code: bool = False,
    check_leakage: bool = True,
    skipped: Skipped | None = None,
) -> Splits:
    """Open the sources of a spec and divide them.

    Fractions are taken out of the training images, class by class (at least one image where a class has
    more), the test's first: in each class the images are ranked by a hash of (seed, id), so that an image
    keeps its split when others are added. `data.split_seed` stands in for `seed` where it is given.
    `check_leakage` compares contents (see `leakage`); one rank is enough for that. `allow_code`: whether a user's
    function may be run (python:package.module:function). `skipped` images are left out of the part they belong to, so
    that the others stay where they are.

    Raises DataError if a source, its classes or a fraction cannot be used.
    """
    source = open_source(data.train, data, split="train", allow_code=allow_code)
    _check_training(source, data.train)
    _check_names(source.classes)
    _check_fractions(data)
    seed = seed if data.split_seed is None else data.split_seed
    warnings = [*source.warnings]
    rest = np.arange(len(source), dtype=np.int64)
    parts: dict[str, Split] = {}
    for name, setting in (("test", data.test), ("val", data.val)):
        if isinstance(setting, str):
            parts[name] = _other(setting, data, name, source.classes, warnings, allow_code, skipped)
        elif setting:
            taken = _take_fraction(source, rest, setting, seed)
            rest = np.setdiff1d(rest, taken, assume_unique=True)
            parts[name] = _without(Split(source, taken, source.labels[taken]), skipped)
            _check_not_empty(parts[name], name, setting)
    train = _without(Split(source, rest, source.labels[rest]), skipped)
    warnings += _empty_classes(train, source)
    if check_leakage:
        warnings += [text for name, part in parts.items() for text in find_leaks(train, part, name)]
    val, test = parts.get("val"), parts.get("test")
    return Splits(
        train,
        val,
        test,
        source.classes,
        _fingerprint(source.classes, [train, val, test]),
        _fingerprint(source.classes, [train, val]),
        tuple(warnings),
    )


def open_split(uri: str, data: DataSpec, classes: Sequence[str], *, allow_code: bool = False) -> Split:
    """Open other data for a trained model, labelled by its classes.

    Of a data set with splits of its own the test split is taken, or validation, or the whole, whichever there is first.
    Raises DataError if the source cannot be used or has classes that the model does not know.
    """
    source = open_source(uri, data, split=evaluation_split(uri, data), allow_code=allow_code)
    return _relabel(source, classes, uri, "data")


def _check_training(source: Source, uri: str) -> None:
    what = ""
    if len(source.classes) < 2:
        what = f"{uri} has {len(source.classes)} class; a classifier needs at least two"
    elif len(source) < len(source.classes):
        what = f"{uri} has {len(source)} images for {len(source.classes)} classes"
    if what:
        raise DataError(Problem(what, "Add images, at least one per class and more to learn from", key="data.train"))


def _check_names(classes: Sequence[str]) -> None:
    """Refuse names of classes that would break lines, tables and terminals."""
    wrong = [name for name in classes if not name.isprintable() or not name.strip()]
    if wrong:
        what = f"names of classes must be words on one line: {_names([repr(name) for name in wrong])}"
        raise DataError(Problem(what, "Rename them", key="data.train"))


def _check_fractions(data: DataSpec) -> None:
    fractions = [part for part in (data.val, data.test) if isinstance(part, float)]
    if sum(fractions) >= 1:
        what = f"the fractions {' and '.join(map(str, fractions))} leave no training images"
        raise DataError(Problem(what, "Make their sum smaller than 1", key="data.val"))


def _without(split: Split, skipped: Skipped | None) -> Split:
    return split.without(skipped.get(split.source.fingerprint(), ())) if skipped else split


def _empty_classes(train: Split, source: Source) -> list[str]:
    if not len(train):
        raise DataError(Problem("no training image is left", "Add images that can be used", key="data.train"))
    counts = np.bincount(train.labels, minlength=len(source.classes))
    empty = [source.classes[i] for i in np.flatnonzero(counts == 0)]
    return [f"data.train has no images of {_names(empty)}."] if empty else []


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _other(
    uri: str,
    data: DataSpec,
    name: str,
    classes: tuple[str, ...],
    warnings: list[str],
    allow_code: bool,
    skipped: Skipped | None,
) -> Split:
    """Open a separate source for validation or test, adding to `warnings`."""
    source = open_source(uri, data, split="val" if name == "val" else "test", allow_code=allow_code)
    split = _without(_relabel(source, classes, uri, f"data.{name}"), skipped)
    if not len(split):
        raise DataError(Problem(f"{uri} has no image left", "Give a source with images", key=f"data.{name}"))
    missing = [classes[i] for i in np.setdiff1d(np.arange(len(classes)), split.labels)]
    warnings.extend(source.warnings)
    if missing:
        warnings.append(f"data.{name} has no images of {_names(missing)}.")
    return split


def _relabel(source: Source, classes: Sequence[str], uri: str, key: str) -> Split:
    number = {name: i for i, name in enumerate(classes)}
    mapping = np.array([number.get(name, -1) for name in source.classes], dtype=np.int64)
    labels = mapping[source.labels] if len(source) else np.empty(0, np.int64)
    if not len(labels):
        raise DataError(Problem(f"{uri} has no images", "Give a source with images", key=key))
    unknown = [source.classes[i] for i in np.unique(source.labels[labels < 0])]
    if unknown:
        what = f"{uri} has classes that the training data does not have: {_names(unknown)}"
        action = f"Known are {_names(list(classes))}. Rename or remove the others"
        raise DataError(Problem(what, action, key=key))
    return Split(source, np.arange(len(source), dtype=np.int64), labels)


def _take_fraction(source: Source, rest: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Return indices out of `rest`, ascending: of each class the rounded share of its images."""
    rank = np.array([_hash(seed, source.identity(int(index))) for index in rest], dtype=np.uint64)
    ordered = rest[np.argsort(rank, kind="stable")]
    labels = source.labels[ordered]
    sizes = np.bincount(source.labels, minlength=len(source.classes))
    taken = []
    for number in range(len(source.classes)):
        members = ordered[labels == number]
        share = int(round(fraction * sizes[number], 9) + 0.5)
        taken.append(members[: min(max(share, 1), max(len(members) - 1, 0))])
    return np.sort(np.concatenate(taken))


def _hash(seed: int, identity: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}:{identity}".encode(), digest_size=8).digest(), "big")


def _check_not_empty(split: Split, name: str, fraction: float) -> None:
    if not len(split):
        what = f"the fraction {fraction} leaves no image for {name}: no class has enough images"
        raise DataError(Problem(what, "Add images or give another source", key=f"data.{name}"))


def _fingerprint(classes: Sequence[str], parts: Sequence[Split | None]) -> str:
    result = hashlib.sha256(json.dumps(list(classes)).encode())
    known: dict[int, str] = {}
    for part in parts:
        if part is None:
            result.update(b"none")
            continue
        known.setdefault(id(part.source), part.source.fingerprint())
        result.update(known[id(part.source)].encode())
        result.update(part.indices.astype("<i8").tobytes() + part.labels.astype("<i8").tobytes())
    return result.hexdigest()
