"""What a shell may put behind a verb: specs, runs and clusters that are near; else it offers its own files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

_YAML = (".yaml", ".yml")
_MAX_FOLDERS, _MAX_FOUND = 200, 100


def specs(incomplete: str) -> list[str]:
    """Return the YAML files that begin with what is typed, in that folder and in those right below it."""
    return _near(incomplete, lambda entry: entry.is_file() and entry.name.endswith(_YAML))


def runs(incomplete: str) -> list[str]:
    """Return the folders of runs that begin with what is typed, in that folder and in those right below it."""
    return _near(incomplete, lambda entry: entry.is_dir() and os.path.exists(os.path.join(entry.path, "run.json")))


def clusters(incomplete: str) -> list[str]:
    """Return the names of the cluster files that begin with what is typed."""
    from tltrain.jobs.clusters import cluster_folders

    names = {name.removesuffix(".yaml") for folder in cluster_folders() for name in _names(str(folder))}
    return sorted(name for name in names if name.startswith(incomplete))


def _names(folder: str) -> list[str]:
    return [entry.name for entry in _entries(folder) if entry.name.endswith(".yaml")]


def _near(incomplete: str, is_wanted: Callable[[os.DirEntry[str]], bool]) -> list[str]:
    folder, begun = os.path.split(incomplete)
    found: list[str] = []
    for number, entry in enumerate(_entries(folder or ".")):
        if not entry.name.startswith(begun):
            continue
        path = os.path.join(folder, entry.name)
        if is_wanted(entry):
            found.append(path)
        elif entry.is_dir() and number < _MAX_FOLDERS:
            found += [os.path.join(path, below.name) for below in _entries(path) if is_wanted(below)]
        if len(found) >= _MAX_FOUND:
            break
    return found


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    """Yield what stands in a folder, without hidden names; nothing where it cannot be read."""
    try:
        with os.scandir(os.path.expanduser(folder)) as entries:
            yield from sorted((one for one in entries if not one.name.startswith(".")), key=lambda one: one.name)
    except OSError:
        return
