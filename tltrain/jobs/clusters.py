"""Cluster files: finding the one that a name means, reading it, and saying what is wrong with it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tltrain.errors import Problem, SpecError
from tltrain.jobs.cluster_checks import connection_problems
from tltrain.jobs.cluster_kinds import (
    KINDS,
    AddressCluster,
    Cluster,
    KubeRayCluster,
    LocalCluster,
    RayUpCluster,
    SshTunnel,
)
from tltrain.spec.load import read_text
from tltrain.spec.schema import NAME_PATTERN
from tltrain.spec.translate import validate_as
from tltrain.spec.wording import kind, nearest, show
from tltrain.spec.yaml_text import Document, dotted, parse_document, printable

__all__ = [
    "AddressCluster",
    "Cluster",
    "KubeRayCluster",
    "LoadedCluster",
    "LocalCluster",
    "RayUpCluster",
    "cluster_folders",
    "load_cluster",
    "parse_cluster",
]

# Stands for a required value that is wrong, so that what is between the others is told in the same go.
_STAND_INS: dict[str, Any] = {
    "config": "x",
    "token": "env:X",
    "image": "x",
    "token_secret": "x",
    "worker_groups": [{"name": "x", "replicas": 1, "cpus": 1, "memory": "1Gi"}],
}


@dataclass(frozen=True)
class LoadedCluster:
    """A valid cluster file: the cluster's name is the file's, and paths in it are absolute."""

    name: str
    path: Path
    cluster: Cluster


def cluster_folders() -> tuple[Path, Path]:
    """Where cluster files are looked for: `cluster/` here, then the user's configuration."""
    config = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path("cluster"), Path(config).expanduser() / "tltrain" / "cluster"


def load_cluster(name_or_path: str, *, folders: Sequence[Path] | None = None) -> LoadedCluster:
    """Read a cluster file by its name, looked for in `folders`, or by its path.

    Raises SpecError with all problems.
    """
    path = _find(name_or_path, cluster_folders() if folders is None else folders)
    if re.fullmatch(NAME_PATTERN, path.stem) is None:
        what = f"the file's name {printable(path.stem)} is the cluster's, and is no name"
        raise SpecError(Problem(what, "Use lower-case letters, digits and hyphens alone", str(path)))
    cluster = parse_cluster(read_text(path), where=str(path), base=path.absolute().parent)
    return LoadedCluster(path.stem, path, cluster)


def parse_cluster(text: str, *, where: str, base: Path) -> Cluster:
    """Read a cluster file from text; paths in it are relative to `base`. Raises SpecError with all problems."""
    document = parse_document(text, where)
    if not isinstance(document.values, dict):
        said = "the file is empty" if document.values is None else f"the file is {kind(document.values)}"
        raise SpecError(Problem(said, f"Begin with `kind:`, one of {', '.join(KINDS)}", document.where))
    cls = _kind(document)
    cluster, findings = validate_as(cls, document)
    problems = document.problems + [finding.problem for finding in findings]
    wrong = {problem.key.partition(".")[0] for problem in problems}
    problems += _between(cluster or _without(cls, document, wrong), document, wrong)
    if problems or cluster is None:
        raise SpecError(problems)
    return _absolute(cluster, base)


def _find(name_or_path: str, folders: Sequence[Path]) -> Path:
    if "/" in name_or_path or name_or_path.endswith((".yaml", ".yml")):
        return Path(name_or_path).expanduser()
    for folder in folders:
        if (path := folder / f"{name_or_path}.yaml").is_file():
            return path
    known = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
    close = nearest(name_or_path, known)
    guess = f"Did you mean {close[0]}? " if close else ""
    action = f"{guess}Known: {', '.join(known)}" if known else "Write one; docs/clusters.md shows how"
    places = " or ".join(str(folder) for folder in folders)
    raise SpecError(f"there is no cluster {printable(name_or_path)} in {places}", action)


def _kind(document: Document) -> type[Cluster]:
    given = document.values.get("kind")
    if isinstance(given, str) and given in KINDS:
        return KINDS[given]
    kinds = f"one of {', '.join(KINDS)}"
    if given is None:
        raise SpecError([*document.problems, Problem("is missing", f"Give {kinds}", document.where, "kind")])
    close = nearest(given, KINDS, cutoff=0.5) if isinstance(given, str) else []
    action = f"{f'Did you mean {close[0]}? ' if close else ''}It is {kinds}"
    problem = Problem(f"{show(given)} is no kind of cluster", action, document.place(("kind",)), "kind")
    raise SpecError([*document.problems, problem])


def _without(cls: type[Cluster], document: Document, wrong: set[str]) -> Cluster | None:
    """The cluster with the faulty settings left out."""
    values = {key: value for key, value in document.values.items() if key not in wrong}
    values |= {key: _STAND_INS[key] for key in wrong if key in cls.model_fields and key in _STAND_INS}
    return validate_as(cls, Document(values))[0]


def _between(cluster: Cluster | None, document: Document, wrong: set[str]) -> Iterator[Problem]:
    """What is wrong between settings, where those that it reads are right."""
    if isinstance(cluster, AddressCluster):
        for problem in connection_problems(cluster, wrong):
            path = tuple(problem.key.split("."))
            yield Problem(problem.what, problem.action, document.place(path), dotted(path))


def _absolute(cluster: Cluster, base: Path) -> Cluster:
    """A copy whose paths are absolute: relative ones are relative to the file's folder."""

    def absolute(text: str) -> str:
        return os.path.abspath(base / os.path.expanduser(text))

    update: dict[str, Any] = {}
    for key in ("config", "ca_file"):
        if text := getattr(cluster, key, None):
            update[key] = absolute(text)
    if (token := getattr(cluster, "token", None)) and token.startswith("file:"):
        update["token"] = "file:" + absolute(token.removeprefix("file:"))
    tunnel: SshTunnel | None = getattr(cluster, "ssh_tunnel", None)
    if tunnel and tunnel.identity_file:
        update["ssh_tunnel"] = tunnel.model_copy(update={"identity_file": absolute(tunnel.identity_file)})
    return cluster.model_copy(update=update)
