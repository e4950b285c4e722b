"""A job as text for another program to start: checked against the cluster first, its spec made fit to travel."""

from __future__ import annotations

import logging
from pathlib import PurePosixPath
from typing import Any

from tltrain.errors import Problem, ResourceError, SpecError
from tltrain.jobs import kubernetes, skypilot
from tltrain.jobs.cluster_kinds import KubeRayCluster, WorkerGroup
from tltrain.jobs.clusters import LoadedCluster
from tltrain.jobs.request import check_no_secrets, local_paths
from tltrain.spec.load import LoadedSpec, dump_yaml
from tltrain.spec.schema import DataSpec, ElasticWorkers, ResourcesSpec, Spec
from tltrain.spec.wording import nearest
from tltrain.spec.yaml_text import printable

logger = logging.getLogger(__name__)

_WRITERS = {"rayjob": kubernetes.manifest, "skypilot": skypilot.task}


def manifest_text(loaded: LoadedSpec, cluster: LoadedCluster, form: str = "rayjob") -> str:
    """A RayJob and its ConfigMap for kubectl, or a task for SkyPilot.

    Raises SpecError where spec or cluster do not suit, and ResourceError where the pods cannot hold the workers.
    """
    if form not in _WRITERS:
        close = nearest(form, _WRITERS) or list(_WRITERS)
        raise SpecError(f"there is no format {printable(form)}", f"Known: rayjob, skypilot. Did you mean {close[0]}?")
    if not isinstance(cluster.cluster, KubeRayCluster):
        what = f"a cluster of kind {cluster.cluster.kind} takes jobs by `tltrain submit`"
        raise SpecError(Problem(what, "Name one of kind kuberay, which says image and pods", str(cluster.path)))
    spec = _travelling(loaded)
    check_no_secrets(spec)
    _check_paths(spec, cluster.cluster)
    _check_room(spec.resources, cluster.cluster.worker_groups)
    return _WRITERS[form](spec.name, dump_yaml(spec), cluster.cluster)


def _travelling(loaded: LoadedSpec) -> Spec:
    """The spec without what is only true here: the home folder in the default place of data sets."""
    if loaded.origins.get("data.root") != "default":
        return loaded.spec
    update: dict[str, Any] = {"root": DataSpec.model_fields["root"].default}
    return loaded.spec.model_copy(update={"data": loaded.spec.data.model_copy(update=update)})


def _check_paths(spec: Spec, cluster: KubeRayCluster) -> None:
    """Results must outlive the pods; other paths need only be in the image. Raises SpecError."""
    for key, path in local_paths(spec, ()):
        if any(PurePosixPath(path).is_relative_to(folder) for folder in cluster.volumes):
            continue
        if key == "storage":
            mounted = f"below a volume ({', '.join(cluster.volumes)})" if cluster.volumes else "on a volume"
            action = f"Give an address such as s3://bucket/runs, or a path {mounted}"
            raise SpecError(Problem(f"{path} would vanish with the pods", action, key=key))
        logger.warning("%s: %s must be in the image, for no volume holds it", key, path)


def _check_room(resources: ResourcesSpec, groups: list[WorkerGroup]) -> None:
    """Compare what the run asks for with the pods. Raises ResourceError with the arithmetic."""
    wanted = resources.num_workers
    least = wanted.min if isinstance(wanted, ElasticWorkers) else wanted
    gpus = resources.gpus_per_worker
    gpus = int(any(group.gpus for group in groups)) if gpus == "auto" else gpus
    cpus = resources.cpus_per_worker
    room = sum(group.replicas * min(group.cpus // cpus, group.gpus // gpus if gpus else group.cpus) for group in groups)
    if room < least:
        pods = ", ".join(f"{group.replicas} x ({group.cpus} CPUs, {group.gpus} GPUs)" for group in groups)
        what = f"{least} workers of {cpus} CPUs and {gpus} GPUs do not fit: the pods, {pods}, hold {room}"
        raise ResourceError(what, "Ask for fewer workers, or raise replicas in the cluster file")
