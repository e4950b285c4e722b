"""A job for SkyPilot: a task file that starts Ray on its nodes and trains; the spec stands in it."""

from __future__ import annotations

import io
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import LiteralScalarString

from tltrain.errors import Problem, SpecError
from tltrain.jobs.cluster_kinds import KubeRayCluster, WorkerGroup

_END = "END_OF_SPEC"  # no line of a spec is this word: each has a colon or a dash

# The spec travels quoted, so the shell changes nothing in it.
_SETUP = """\
mkdir -p ~/.tltrain
cat > ~/.tltrain/spec.yaml <<'{end}'
{spec}{end}
"""

# SkyPilot has a Ray of its own on the nodes (ports 6380, 8266 and Ray's defaults), so ours has other ports and
# is ended by its id: `ray stop` would end both.
_RUN = """\
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN RAY_USAGE_STATS_ENABLED=0 PYTHONUNBUFFERED=1
head_ip=$(echo "$SKYPILOT_NODE_IPS" | head -n 1)
own_ports="--min-worker-port 0 --max-worker-port 0 --dashboard-agent-listen-port 52465"
if [ "$SKYPILOT_NODE_RANK" != 0 ]; then
  until ray health-check --address "$head_ip:6379" >/dev/null 2>&1; do sleep 2; done
  ray start --block --address "$head_ip:6379" $own_ports || true  # ends with the head
  exit 0
fi
ray start --block --head --port 6379 --dashboard-host 127.0.0.1 --ray-client-server-port 20001 $own_ports &
ray_id=$!
until ray health-check --address "$head_ip:6379" >/dev/null 2>&1; do
  kill -0 "$ray_id" || exit 1
  sleep 2
done
status=0
RAY_ADDRESS="$head_ip:6379" python -m tltrain.run ~/.tltrain/spec.yaml || status=$?
kill "$ray_id"
wait "$ray_id" || true
exit "$status"
"""


def task(run: str, spec_text: str, cluster: KubeRayCluster) -> str:
    """A task file for `sky launch`. Raises SpecError where the cluster file says too little or too much for it."""
    (group, *others) = cluster.worker_groups
    if others:
        raise SpecError(Problem("SkyPilot's nodes are of one kind", "Keep one worker group", key="worker_groups"))
    if cluster.volumes:
        action = "Leave `volumes` out, and let the spec name a bucket"
        raise SpecError(Problem("SkyPilot mounts no PersistentVolumeClaim", action, key="volumes"))
    values: dict[str, Any] = {
        "name": run,
        "num_nodes": group.replicas,
        "resources": _resources(group, cluster),
        "secrets": dict.fromkeys(_secrets(cluster)),
        "setup": LiteralScalarString(_SETUP.format(spec=spec_text, end=_END)),
        "run": LiteralScalarString(_RUN),
    }
    yaml = YAML()
    yaml.width = 4096
    yaml.representer.add_representer(type(None), lambda own, _: own.represent_scalar("tag:yaml.org,2002:null", "null"))
    stream = io.StringIO()
    yaml.dump(values, stream)
    return stream.getvalue()


def _resources(group: WorkerGroup, cluster: KubeRayCluster) -> dict[str, Any]:
    resources: dict[str, Any] = {
        "image_id": f"docker:{cluster.image}",
        "cpus": f"{group.cpus}+",
        "memory": f"{_gigabytes(group.memory)}+",
    }
    if group.gpus:
        if group.accelerator is None:
            action = "Write accelerator: L4, or what `sky show-gpus` lists"
            raise SpecError(Problem("SkyPilot asks for the kind of GPU", action, key="worker_groups.0.accelerator"))
        resources["accelerators"] = f"{group.accelerator}:{group.gpus}"
    return resources


def _secrets(cluster: KubeRayCluster) -> list[str]:
    """Variables whose values `sky launch --secret NAME` takes from the environment; the file holds none."""
    return ["RAY_AUTH_TOKEN", *cluster.secrets]


def _gigabytes(quantity: str) -> int:
    """Whole gigabytes (2^30 bytes) that hold an amount in Kubernetes' words."""
    units = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
    number = quantity.rstrip("KMGTkiB")
    return -(-int(float(number) * units[quantity[len(number) :]]) // 2**30)
