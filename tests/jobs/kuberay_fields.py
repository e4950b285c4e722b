"""The documented fields of what a manifest is made of, and holding an object against them."""

from __future__ import annotations

from typing import Any

# KubeRay 1.7's API reference (docs/reference/api.md, ray.io/v1)
# and, for pods, Kubernetes' own. A name leads to the type of the field; a list stands for a list of it, a dict without
# fields for a mapping of names to texts. Manifests were also held against the whole schema of KubeRay 1.7's RayJob.
FIELDS: dict[str, dict[str, Any]] = {
    "ConfigMap": {"apiVersion": str, "kind": str, "metadata": "ObjectMeta", "data": dict, "immutable": bool},
    "RayJob": {"apiVersion": str, "kind": str, "metadata": "ObjectMeta", "spec": "RayJobSpec"},
    "ObjectMeta": {"name": str, "namespace": str, "labels": dict, "annotations": dict},
    "RayJobSpec": {
        "activeDeadlineSeconds": int,
        "backoffLimit": int,
        "rayClusterSpec": "RayClusterSpec",
        "submitterPodTemplate": "PodTemplateSpec",
        "metadata": dict,
        "clusterSelector": dict,
        "submitterConfig": "SubmitterConfig",
        "managedBy": str,
        "deletionStrategy": "DeletionStrategy",
        "entrypoint": str,
        "runtimeEnvYAML": str,
        "jobId": str,
        "submissionMode": str,
        "entrypointResources": str,
        "entrypointNumCpus": float,
        "entrypointNumGpus": float,
        "ttlSecondsAfterFinished": int,
        "preRunningDeadlineSeconds": int,
        "shutdownAfterJobFinishes": bool,
        "suspend": bool,
    },
    "SubmitterConfig": {"backoffLimit": int},
    "RayClusterSpec": {
        "upgradeStrategy": "UpgradeStrategy",
        "authOptions": "AuthOptions",
        "suspend": bool,
        "managedBy": str,
        "autoscalerOptions": "AutoscalerOptions",
        "headServiceAnnotations": dict,
        "enableInTreeAutoscaling": bool,
        "gcsFaultToleranceOptions": "GcsFaultToleranceOptions",
        "headGroupSpec": "HeadGroupSpec",
        "rayVersion": str,
        "workerGroupSpecs": ["WorkerGroupSpec"],
    },
    "AuthOptions": {"enableK8sTokenAuth": bool, "secretName": str, "mode": str},
    "HeadGroupSpec": {
        "template": "PodTemplateSpec",
        "headService": "Service",
        "enableIngress": bool,
        "resources": dict,
        "labels": dict,
        "rayStartParams": dict,
        "serviceType": str,
    },
    "WorkerGroupSpec": {
        "suspend": bool,
        "groupName": str,
        "replicas": int,
        "minReplicas": int,
        "maxReplicas": int,
        "idleTimeoutSeconds": int,
        "resources": dict,
        "labels": dict,
        "rayStartParams": dict,
        "template": "PodTemplateSpec",
        "scaleStrategy": "ScaleStrategy",
        "numOfHosts": int,
    },
    "PodTemplateSpec": {"metadata": "ObjectMeta", "spec": "PodSpec"},
    "PodSpec": {
        "containers": ["Container"],
        "volumes": ["Volume"],
        "serviceAccountName": str,
        "nodeSelector": dict,
    },
    "Container": {
        "name": str,
        "image": str,
        "ports": ["ContainerPort"],
        "env": ["EnvVar"],
        "envFrom": ["EnvFromSource"],
        "resources": "ResourceRequirements",
        "securityContext": "SecurityContext",
        "volumeMounts": ["VolumeMount"],
    },
    "ContainerPort": {"name": str, "containerPort": int},
    "EnvFromSource": {"secretRef": "SecretReference"},
    "SecretReference": {"name": str, "optional": bool},
    "ResourceRequirements": {"requests": dict, "limits": dict},
    "SecurityContext": {"allowPrivilegeEscalation": bool, "runAsNonRoot": bool},
    "VolumeMount": {"name": str, "mountPath": str, "readOnly": bool, "subPath": str},
    "Volume": {
        "name": str,
        "configMap": "ConfigMapVolumeSource",
        "emptyDir": "EmptyDirVolumeSource",
        "persistentVolumeClaim": "PersistentVolumeClaimVolumeSource",
    },
    "ConfigMapVolumeSource": {"name": str, "items": list, "optional": bool},
    "EmptyDirVolumeSource": {"medium": str, "sizeLimit": str},
    "PersistentVolumeClaimVolumeSource": {"claimName": str, "readOnly": bool},
}
REQUIRED = {
    "RayClusterSpec": {"headGroupSpec"},
    "HeadGroupSpec": {"template", "rayStartParams"},
    "WorkerGroupSpec": {"groupName", "template", "rayStartParams", "minReplicas", "maxReplicas"},
    "Container": {"name", "image"},
}


def wrong_fields(kind: Any, value: Any, path: str = "") -> list[str]:
    """Return the places where a value is not of a documented type, or lacks what is required."""
    if isinstance(kind, list):
        if not isinstance(value, list):
            return [f"{path} is no list"]
        return [text for index, item in enumerate(value) for text in wrong_fields(kind[0], item, f"{path}.{index}")]
    if isinstance(kind, str):
        known = FIELDS[kind]
        missing = [f"{path}.{name} is missing" for name in REQUIRED.get(kind, set()) - set(value)]
        unknown = [f"{path}.{name} is unknown" for name in set(value) - set(known)]
        inside = [wrong_fields(known[name], value[name], f"{path}.{name}") for name in set(value) & set(known)]
        return [*missing, *unknown, *(text for texts in inside for text in texts)]
    if kind is dict:
        is_right = isinstance(value, dict) and all(isinstance(each, str) for each in value.values())
    else:
        is_right = type(value) is kind
    return [] if is_right else [f"{path} is {value!r}"]
