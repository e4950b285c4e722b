"""The splits that a spec or a source names, opened to be looked at or packed: as much of them as can be opened."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from tltrain.data.base import Source, Split
from tltrain.data.folders import split_folders
from tltrain.data.locations import Location
from tltrain.data.sources import open_source, split_names
from tltrain.data.splits import load_splits
from tltrain.errors import DataError, Problem, SpecError
from tltrain.spec.load import load_spec, parse_spec
from tltrain.spec.names import source_parts
from tltrain.spec.schema import DataSpec, Spec

NAMES: tuple[Literal["train", "val", "test"], ...] = ("train", "val", "test")
_SPEC_SUFFIXES = (".yaml", ".yml")


@dataclass
class Parts:
    """Splits by name, labelled by the same classes, and what is wrong with them.

    problems: what would end a run; the splits that could not be opened are missing. max_bad_fraction: share of bad
    images that a run would leave out; 0 where they end it.
    """

    classes: tuple[str, ...]
    splits: dict[str, Split]
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    max_bad_fraction: float = 0.0


def spec_of(source: str, splits: Sequence[str], sets: Sequence[str]) -> tuple[Spec, list[str]]:
    """Return a spec for SOURCE, a spec's file or a source as in `data.train`, and the splits that are asked for.

    splits: names of splits, or `NAME=SOURCE`; without any, all that SOURCE has. sets: `KEY=VALUE`.

    Raises SpecError for names that are none and splits that SOURCE does not have, and DataError where it cannot be
    looked at.
    """
    wanted, others = _asked(splits)
    if source.endswith(_SPEC_SUFFIXES):
        if others:
            raise SpecError("a spec names its own sources", f"Use --set data.{next(iter(others))}=SOURCE")
        spec = load_spec(source, sets).spec
        present = [name for name in NAMES if name == "train" or getattr(spec.data, name)]
    else:
        named = {**_splits_in(source), **others}
        values = {"name": "data", "model": {"name": "resnet50"}, "data": {"val": None, **named}}
        spec = parse_spec(json.dumps(values), where=source, base=Path.cwd(), sets=sets).spec
        present = [name for name in NAMES if name in named]
    missing = [name for name in wanted if name not in present]
    if missing:
        raise SpecError(f"{source} has no split {' or '.join(missing)}", f"It has {', '.join(present)}")
    return spec, [name for name in present if name in wanted] if wanted else present


def _asked(splits: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return the names in `NAME` and `NAME=SOURCE`, and the sources of the latter."""
    others: dict[str, str] = {}
    names: list[str] = []
    for text in splits:
        name, mark, source = text.partition("=")
        if name not in NAMES or (mark and not source):
            action = f"Write {', '.join(NAMES)}, or for example test=photos/test"
            raise SpecError(f"--split {text}: {name or 'nothing'} is no split", action)
        names.append(name)
        if mark:
            others[name] = source
    return ([] if set(names) == set(others) else names), others


def _splits_in(source: str) -> dict[str, str]:
    """Return the source of each split that SOURCE holds: a data set's own, the folders of one, or train alone."""
    if source_parts(source)[0]:
        return dict.fromkeys(split_names(source, DataSpec(train=source)), source) or {"train": source}
    location = Location(source)
    folders = split_folders(location) if location.kind() == "folder" else {}
    return {name: os.path.join(source, folder) for name, folder in folders.items()} or {"train": source}


def open_parts(spec: Spec, names: Sequence[str]) -> Parts:
    """Open splits of a spec as a run would; where that fails, each source alone as far as it goes."""
    parts = _opened(spec, names)
    parts.max_bad_fraction = spec.data.max_bad_fraction if spec.data.on_bad_image == "skip" else 0.0
    return parts


def _opened(spec: Spec, names: Sequence[str]) -> Parts:
    try:
        splits = load_splits(spec.data, spec.seed, allow_code=spec.allow_code, check_leakage=False)
    except DataError as error:
        return _open_each(spec, names, list(error.problems))
    found = {name: part for name in names if (part := getattr(splits, name)) is not None}
    return Parts(splits.classes, found, [], list(splits.warnings))


def _open_each(spec: Spec, names: Sequence[str], problems: list[Problem]) -> Parts:
    sources: dict[str, Source] = {}
    for name in NAMES:
        uri = getattr(spec.data, name)
        if name not in names or not isinstance(uri, str):
            continue
        try:
            sources[name] = open_source(uri, spec.data, split=name, allow_code=spec.allow_code)
        except DataError as error:
            problems += [problem for problem in error.problems if problem not in problems]
    classes = list(dict.fromkeys(name for source in sources.values() for name in source.classes))
    warnings = [text for source in sources.values() for text in source.warnings]
    return Parts(
        tuple(classes), {name: _split(source, classes) for name, source in sources.items()}, problems, warnings
    )


def _split(source: Source, classes: Sequence[str]) -> Split:
    numbers: Mapping[str, int] = {name: number for number, name in enumerate(classes)}
    mapping = np.array([numbers[name] for name in source.classes], dtype=np.int64)
    return Split(source, np.arange(len(source), dtype=np.int64), mapping[source.labels])
