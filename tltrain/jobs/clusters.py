"""Cluster files: what a cluster is, every setting of its kinds, and finding and reading the file that describes it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, Field

from tltrain.errors import Problem, SpecError
from tltrain.jobs.cluster_checks import (
    check_claim,
    check_host,
    check_quantity,
    check_reference,
    check_url,
    check_variable,
    connection_problems,
)
from tltrain.spec.load import read_text
from tltrain.spec.schema import NAME_PATTERN, Count, NonNegative, Section
from tltrain.spec.translate import validate_as
from tltrain.spec.wording import kind, nearest, show
from tltrain.spec.yaml_text import Document, dotted, parse_document, printable

Reference: TypeAlias = Annotated[str, AfterValidator(check_reference)]
Host: TypeAlias = Annotated[str, AfterValidator(check_host)]
Quantity: TypeAlias = Annotated[str, AfterValidator(check_quantity)]
Port: TypeAlias = Annotated[int, Field(ge=1, le=65535)]
Name: TypeAlias = Annotated[str, Field(pattern=NAME_PATTERN)]
DASHBOARD_PORT = 8265


class ClusterFile(Section):
    """What every kind of cluster may say."""

    price_per_worker_hour: NonNegative | None = None
    """What one worker costs in an hour, for estimates; null gives none."""
    currency: str = "USD"
    """The currency of the price."""
    secrets: Annotated[dict[str, str], AfterValidator(check_variable)] = Field(default={})
    """Environment variable of the job -> `env:NAME` or `file:/PATH` on the cluster, where the value is read."""


class LocalCluster(ClusterFile):
    """A Ray head on this machine, which `tltrain cluster up` starts."""

    kind: Literal["local"]
    """What kind of cluster it is."""
    num_cpus: Count | None = None
    """CPU cores that Ray may give away; null takes all."""
    num_gpus: Annotated[int, Field(ge=0)] | None = None
    """GPUs that Ray may give away; null takes all."""
    dashboard_port: Annotated[int, Field(ge=0, le=65535)] = 0
    """Port of the Jobs API on 127.0.0.1; 0 takes a free one."""


class SshTunnel(Section):
    """How to reach a Jobs API that listens on another host's own interface."""

    host: Host
    """The host to log in to, which may be one of `~/.ssh/config`."""
    user: Host | None = None
    """The user there; null leaves it to ssh."""
    port: Port | None = None
    """Port of its SSH server; null leaves it to ssh."""
    identity_file: str | None = None
    """Private key; null leaves it to ssh."""
    remote_host: Host = "127.0.0.1"
    """Where the Jobs API listens, as that host sees it."""
    remote_port: Port = DASHBOARD_PORT
    """Port of the Jobs API there."""


class AddressCluster(ClusterFile):
    """A Ray cluster that is up already."""

    kind: Literal["address"]
    """What kind of cluster it is."""
    url: Annotated[str, AfterValidator(check_url)] | None = None
    """Address of the dashboard, which is the Jobs API; null where `ssh_tunnel` leads to it."""
    token: Reference | None = None
    """Ray's token, `env:NAME` or `file:PATH` on this machine; null only on this machine's own interface."""
    ca_file: str | None = None
    """Certificates (PEM) that the server's is checked against; null takes the system's."""
    allow_plain_http: bool = False
    """Whether token and jobs may travel unencrypted to another host."""
    ssh_tunnel: SshTunnel | None = None
    """Reach the Jobs API through SSH instead of `url`."""


class RayUpCluster(ClusterFile):
    """A cluster that Ray's cluster launcher (`ray up`) starts; its Jobs API is reached through SSH."""

    kind: Literal["ray-up"]
    """What kind of cluster it is."""
    config: str
    """The cluster launcher's YAML file."""
    token: Reference
    """Ray's token, `env:NAME` or `file:PATH`; `cluster up` makes the file where it is missing."""
    remote_port: Port = DASHBOARD_PORT
    """Port of the Jobs API on the head."""


class HeadGroup(Section):
    """The pod that Ray's head runs in. No training worker runs there."""

    cpus: Count = 2
    """CPU cores."""
    memory: Quantity = "8Gi"
    """Memory, as Kubernetes writes it."""


class WorkerGroup(Section):
    """Pods of one size."""

    name: Name
    """Name of the group."""
    replicas: Count
    """How many pods."""
    cpus: Count
    """CPU cores of each."""
    gpus: Annotated[int, Field(ge=0)] = 0
    """NVIDIA GPUs of each."""
    accelerator: str | None = None
    """Kind of these GPUs as SkyPilot names it, such as L4 or A100-80GB; Kubernetes goes by `node_selector`."""
    memory: Quantity
    """Memory of each, as Kubernetes writes it."""
    shared_memory: Quantity = "2Gi"
    """Size of /dev/shm, which loaders and NCCL use."""
    node_selector: dict[str, str] = Field(default={})
    """Labels of the nodes that the pods may run on."""


class KubeRayCluster(ClusterFile):
    """Kubernetes with the KubeRay operator: each job is a RayJob with a cluster of its own."""

    kind: Literal["kuberay"]
    """What kind of cluster it is."""
    namespace: Name = "default"
    """Namespace of the RayJob."""
    image: str
    """Image with tltrain in it (see the Dockerfile)."""
    ray_version: str | None = None
    """Version of Ray in the image; null takes this machine's."""
    service_account: str | None = None
    """Service account of the pods; null takes the namespace's default."""
    head: HeadGroup = HeadGroup()
    """The pod that Ray's head runs in."""
    worker_groups: Annotated[list[WorkerGroup], Field(min_length=1)]
    """The pods that train."""
    token_secret: Name
    """Name of the Secret whose key `auth_token` is Ray's token."""
    environment_secrets: list[str] = Field(default=[])
    """Secrets whose keys become environment variables of all pods, such as a bucket's credentials."""
    volumes: Annotated[dict[str, str], AfterValidator(check_claim)] = Field(default={})
    """Folder in all pods -> PersistentVolumeClaim that is mounted there."""
    queue: str | None = None
    """Kueue's LocalQueue, which admits the job; null asks no queue."""
    suspend: bool = False
    """Whether the job waits until somebody (or the queue) sets `suspend: false`."""
    deadline_s: Count | None = None
    """Seconds after which Kubernetes ends the job; null sets no limit."""
    max_retries: Annotated[int, Field(ge=0)] = 3
    """How often the job is tried again on a new cluster; it goes on from its run folder."""
    keep_s: Annotated[int, Field(ge=0)] = 600
    """Seconds for which the pods stay after the job's end, for their logs."""


Cluster: TypeAlias = LocalCluster | AddressCluster | RayUpCluster | KubeRayCluster
KINDS: dict[str, type[Cluster]] = {
    "local": LocalCluster,
    "address": AddressCluster,
    "ray-up": RayUpCluster,
    "kuberay": KubeRayCluster,
}

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
