"""The kinds of clusters: every setting of each, its type, its default and its meaning."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, Field

from tltrain.jobs.cluster_checks import (
    check_claim,
    check_host,
    check_quantity,
    check_reference,
    check_url,
    check_variable,
)
from tltrain.spec.schema import NAME_PATTERN, Count, NonNegative, Section

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
