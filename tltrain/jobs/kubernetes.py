"""A job for Kubernetes: a RayJob of the KubeRay operator, and a ConfigMap in which its spec travels."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shlex
from importlib.metadata import version
from typing import Any, TypeAlias

from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import LiteralScalarString

from tltrain.jobs.cluster_kinds import KubeRayCluster, WorkerGroup
from tltrain.jobs.request import SECRETS_VARIABLE

Json: TypeAlias = dict[str, Any]

SPEC_DIR = "/etc/tltrain"
SPEC_FILE = "spec.yaml"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
MAX_NAME = 47  # KubeRay's limit for a RayJob; its pods' names are made from it
_LABELS = {"app.kubernetes.io/managed-by": "tltrain"}


def manifest(run: str, spec_text: str, cluster: KubeRayCluster) -> str:
    """The ConfigMap and the RayJob of a run, as YAML for `kubectl apply`."""
    yaml = YAML()
    yaml.explicit_start = True
    yaml.width = 4096
    stream = io.StringIO()
    yaml.dump_all([config_map(run, spec_text, cluster), ray_job(run, cluster)], stream)
    return stream.getvalue()


def object_name(run: str) -> str:
    """The run's name as KubeRay takes it: beginning with a letter, not too long, and another for another run."""
    name = run if run[0].isalpha() else f"run-{run}"
    if len(name) > MAX_NAME:
        name = f"{name[: MAX_NAME - 9].rstrip('-')}-{hashlib.sha256(run.encode()).hexdigest()[:8]}"
    return re.sub(r"-+$", "", name)


def config_map(run: str, spec_text: str, cluster: KubeRayCluster) -> Json:
    """The object that carries the spec."""
    metadata = {"name": f"{object_name(run)}-spec", "namespace": cluster.namespace, "labels": dict(_LABELS)}
    data = {SPEC_FILE: LiteralScalarString(spec_text)}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def ray_job(run: str, cluster: KubeRayCluster) -> Json:
    """The object that runs it: a cluster of its own, which is deleted after the job."""
    labels = dict(_LABELS) | ({QUEUE_LABEL: cluster.queue} if cluster.queue else {})
    spec: Json = {
        "entrypoint": shlex.join(["python", "-m", "tltrain.run", f"{SPEC_DIR}/{SPEC_FILE}"]),
        "runtimeEnvYAML": LiteralScalarString(_runtime_env(cluster)),
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": cluster.keep_s,
        "backoffLimit": cluster.max_retries,
        "suspend": cluster.suspend or cluster.queue is not None,
    }
    if cluster.deadline_s is not None:
        spec["activeDeadlineSeconds"] = cluster.deadline_s
    spec["rayClusterSpec"] = _ray_cluster(run, cluster)
    metadata = {"name": object_name(run), "namespace": cluster.namespace, "labels": labels}
    return {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": metadata, "spec": spec}


def _runtime_env(cluster: KubeRayCluster) -> str:
    variables = {"PYTHONUNBUFFERED": "1"}
    if cluster.secrets:  # references alone; the far side reads the values
        variables[SECRETS_VARIABLE] = json.dumps(cluster.secrets, sort_keys=True)
    lines = (f"  {name}: {json.dumps(value)}\n" for name, value in variables.items())
    return f"env_vars:\n{''.join(lines)}"


def _ray_cluster(run: str, cluster: KubeRayCluster) -> Json:
    return {
        "rayVersion": cluster.ray_version or version("ray"),
        "authOptions": {"mode": "token", "secretName": cluster.token_secret},
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0"},  # workers train in the other pods
            "template": _head_pod(run, cluster),
        },
        "workerGroupSpecs": [_worker_group(group, cluster) for group in cluster.worker_groups],
    }


def _head_pod(run: str, cluster: KubeRayCluster) -> Json:
    mount = {"name": "spec", "mountPath": SPEC_DIR, "readOnly": True}
    volume = {"name": "spec", "configMap": {"name": f"{object_name(run)}-spec"}}
    ports = {"gcs-server": 6379, "dashboard": 8265, "client": 10001}
    container: Json = {
        "name": "ray-head",
        "ports": [{"name": name, "containerPort": port} for name, port in ports.items()],
        "resources": _resources({"cpu": str(cluster.head.cpus), "memory": cluster.head.memory}),
    }
    return _pod(container, cluster, [mount], [volume], {})


def _worker_group(group: WorkerGroup, cluster: KubeRayCluster) -> Json:
    amounts = {"cpu": str(group.cpus), "memory": group.memory}
    if group.gpus:
        amounts["nvidia.com/gpu"] = str(group.gpus)
    mount = {"name": "shared-memory", "mountPath": "/dev/shm"}
    volume = {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": group.shared_memory}}
    container: Json = {"name": "ray-worker", "resources": _resources(amounts)}
    return {
        "groupName": group.name,
        "replicas": group.replicas,
        "minReplicas": group.replicas,
        "maxReplicas": group.replicas,
        "rayStartParams": {},
        "template": _pod(container, cluster, [mount], [volume], group.node_selector),
    }


def _resources(amounts: dict[str, str]) -> Json:
    """Requests equal to limits, so that Kubernetes takes nothing back from a pod."""
    return {"requests": dict(amounts), "limits": dict(amounts)}


def _pod(
    container: Json, cluster: KubeRayCluster, mounts: list[Json], volumes: list[Json], node_selector: dict[str, str]
) -> Json:
    """A pod's template: one container with the cluster's image, secrets and volumes."""
    for index, (folder, claim) in enumerate(cluster.volumes.items()):
        mounts = [*mounts, {"name": f"volume-{index}", "mountPath": folder}]
        volumes = [*volumes, {"name": f"volume-{index}", "persistentVolumeClaim": {"claimName": claim}}]
    container = {
        **container,
        "image": cluster.image,
        "securityContext": {"allowPrivilegeEscalation": False},
        "volumeMounts": mounts,
    }
    if cluster.environment_secrets:
        container["envFrom"] = [{"secretRef": {"name": name}} for name in cluster.environment_secrets]
    spec: Json = {"containers": [container], "volumes": volumes}
    if cluster.service_account is not None:
        spec["serviceAccountName"] = cluster.service_account
    if node_selector:
        spec["nodeSelector"] = dict(node_selector)
    return {"metadata": {"labels": dict(_LABELS)}, "spec": spec}
