"""Manifests: objects that KubeRay and SkyPilot know the fields of, a spec that arrives unchanged, and no secret."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kuberay_fields import wrong_fields
from ruamel.yaml import YAML

from tltrain.errors import ResourceError, SpecError
from tltrain.jobs.clusters import KubeRayCluster, LoadedCluster, load_cluster, parse_cluster
from tltrain.jobs.kubernetes import MAX_NAME, SPEC_DIR, object_name
from tltrain.jobs.manifest import manifest_text
from tltrain.spec.load import LoadedSpec, dump_yaml, parse_spec

SPEC = "name: flowers\nmodel: {name: resnet18}\ndata: {train: 'torchvision:Flowers102'}\nstorage: s3://bucket/runs\n"
SMALL = """\
kind: kuberay
image: registry.example.org/tltrain
token_secret: token
worker_groups: [{name: cpu, replicas: 1, cpus: 2, memory: 4Gi}]
"""


def spec(text: str = SPEC, **sets: object) -> LoadedSpec:
    return parse_spec(text, where="spec.yaml", base=Path("/specs"), sets=[f"{key}={sets[key]}" for key in sets])


def cluster(text: str = SMALL) -> LoadedCluster:
    return LoadedCluster("k", Path("k.yaml"), parse_cluster(text, where="k.yaml", base=Path("/files")))


def objects(loaded: LoadedSpec, on: LoadedCluster) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the ConfigMap and the RayJob."""
    config_map, job = YAML(typ="safe").load_all(manifest_text(loaded, on))
    return config_map, job


@pytest.fixture
def shipped(project_dir: Path) -> LoadedCluster:
    """The Kubernetes cluster of cluster/."""
    return load_cluster(str(project_dir / "cluster/kubernetes.yaml"))


def test_objects_have_documented_fields_alone(shipped: LoadedCluster) -> None:
    for on in (shipped, cluster(), cluster(SMALL + "secrets: {KEY: 'env:X'}\ndeadline_s: 60\n")):
        config_map, job = objects(spec(), on)

        assert wrong_fields("ConfigMap", config_map) == []
        assert wrong_fields("RayJob", job) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [("spec.backofLimit", 1), ("spec.suspend", "no"), ("spec.rayClusterSpec.headGroupSpec", {"template": {}})],
)
def test_a_wrong_field_would_be_found(path: str, value: Any, shipped: LoadedCluster) -> None:
    _, job = objects(spec(), shipped)
    *parts, last = path.split(".")
    inside = job
    for part in parts:
        inside = inside[part]
    inside[last] = value

    assert wrong_fields("RayJob", job) != []


def test_the_spec_arrives_unchanged_where_the_job_looks_for_it() -> None:
    loaded = spec(f"{SPEC}seed: 7\n")
    config_map, job = objects(loaded, cluster())

    (name, text) = next(iter(config_map["data"].items()))
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert head["volumes"][0]["configMap"]["name"] == config_map["metadata"]["name"]
    assert head["containers"][0]["volumeMounts"][0]["mountPath"] == SPEC_DIR
    assert job["spec"]["entrypoint"] == f"python -m tltrain.run {SPEC_DIR}/{name}"
    # The far side reads what was asked for here, but for the home folder, which is its own.
    assert dump_yaml(parse_spec(text, where="x", base=Path("/")).spec) == dump_yaml(loaded.spec)
    assert "root: ~/.cache/tltrain/data" in text


def test_the_cluster_file_decides_about_deadline_retries_queue_and_token(shipped: LoadedCluster) -> None:
    on = shipped.cluster
    assert isinstance(on, KubeRayCluster)
    config_map, job = objects(spec(), shipped)

    own = job["spec"]
    assert (own["activeDeadlineSeconds"], own["backoffLimit"], own["suspend"]) == (on.deadline_s, on.max_retries, True)
    assert (own["shutdownAfterJobFinishes"], own["ttlSecondsAfterFinished"]) == (True, on.keep_s)
    assert own["rayClusterSpec"]["authOptions"] == {"mode": "token", "secretName": on.token_secret}
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == on.queue
    assert {config_map["metadata"]["namespace"], job["metadata"]["namespace"]} == {on.namespace}

    _, plain = objects(spec(), cluster())
    assert "activeDeadlineSeconds" not in plain["spec"]
    assert plain["spec"]["suspend"] is False
    assert "kueue.x-k8s.io/queue-name" not in plain["metadata"]["labels"]
    _, queued = objects(spec(), cluster(f"{SMALL}queue: team\n"))
    assert queued["spec"]["suspend"] is True


def test_secrets_travel_as_references(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_KEY", "hunter2")
    text = manifest_text(spec(), cluster(SMALL + "secrets: {WANDB_API_KEY: 'env:WANDB_KEY'}\n"))

    assert "hunter2" not in text
    assert "env:WANDB_KEY" in text


@pytest.mark.parametrize(
    ("run", "name"),
    [("flowers", "flowers"), ("7-flowers", "run-7-flowers"), ("a" * 47, "a" * 47), ("a-", "a")],
)
def test_names_are_those_that_kuberay_takes(run: str, name: str) -> None:
    assert object_name(run) == name


def test_long_names_stay_apart() -> None:
    names = {object_name(f"{'a' * 60}{end}") for end in ("", "b", "c")} | {object_name("9" * 63)}

    assert len(names) == 4
    assert all(re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name) and len(name) <= MAX_NAME for name in names)


def test_storage_that_would_vanish_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    local = SPEC.replace("s3://bucket/runs", "/data/runs")
    with pytest.raises(SpecError, match=r"storage: /data/runs would vanish with the pods\. Give an address such as"):
        manifest_text(spec(local), cluster())
    with pytest.raises(SpecError, match="would vanish"):
        manifest_text(spec(local), cluster(SMALL + "volumes: {/dat: claim}\n"))

    with caplog.at_level(logging.WARNING):
        manifest_text(spec(local), cluster(SMALL + "volumes: {/data: claim}\n"))
        assert "must be in the image" not in caplog.text.replace("data.root", "")


def test_images_that_only_this_machine_may_have_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        manifest_text(spec(SPEC.replace("'torchvision:Flowers102'", "images")), cluster())

    assert "data.train: /specs/images must be in the image, for no volume holds it" in caplog.text


def test_workers_that_do_not_fit_are_refused_with_the_arithmetic(shipped: LoadedCluster) -> None:
    manifest_text(spec(f"{SPEC}resources: {{num_workers: 2}}\n"), shipped)
    said = r"3 workers of 1 CPUs and 1 GPUs do not fit: the pods, 2 x \(8 CPUs, 1 GPUs\), hold 2"
    with pytest.raises(ResourceError, match=said):
        manifest_text(spec(f"{SPEC}resources: {{num_workers: 3}}\n"), shipped)
    manifest_text(spec(f"{SPEC}resources: {{num_workers: {{min: 2, max: 9}}}}\n"), shipped)


def test_other_kinds_and_formats_are_refused(project_dir: Path, shipped: LoadedCluster) -> None:
    with pytest.raises(SpecError, match="takes jobs by `tltrain submit`"):
        manifest_text(spec(), load_cluster(str(project_dir / "cluster/local.yaml")))
    with pytest.raises(SpecError, match=r"there is no format rayjo\. .* Did you mean rayjob\?"):
        manifest_text(spec(), shipped, "rayjo")


# SkyPilot.

ACCELERATED = """\
kind: kuberay
image: registry.example.org/tltrain
token_secret: token
worker_groups: [{name: gpu, replicas: 2, cpus: 8, gpus: 1, memory: 32Gi, accelerator: L4}]
secrets: {WANDB_API_KEY: 'env:WANDB_KEY'}
"""


def test_a_task_says_what_the_nodes_are_and_holds_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_KEY", "hunter2")
    text = manifest_text(spec(), cluster(ACCELERATED), "skypilot")
    task = YAML(typ="safe").load(text)

    assert (task["name"], task["num_nodes"]) == ("flowers", 2)
    assert task["resources"] == {
        "image_id": "docker:registry.example.org/tltrain",
        "cpus": "8+",
        "memory": "32+",
        "accelerators": "L4:1",
    }
    assert task["secrets"] == {"RAY_AUTH_TOKEN": None, "WANDB_API_KEY": None}
    assert "hunter2" not in text
    assert "ray stop" not in text


@pytest.mark.parametrize("script", ["setup", "run"])
def test_the_scripts_of_a_task_are_shell(script: str) -> None:
    task = YAML(typ="safe").load(manifest_text(spec(), cluster(ACCELERATED), "skypilot"))

    checked = subprocess.run(["bash", "-n"], input=task[script], text=True, capture_output=True, check=False)

    assert (checked.returncode, checked.stderr) == (0, "")


def test_the_spec_of_a_task_is_written_unchanged(tmp_path: Path) -> None:
    odd = SPEC.replace("'torchvision:Flowers102'", "\"/data/$(touch x) `touch y` ${HOME} 'q' \\\\\"")
    task = YAML(typ="safe").load(manifest_text(spec(odd), cluster(ACCELERATED), "skypilot"))

    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    subprocess.run(["bash", "-e"], input=task["setup"], text=True, env=environment, cwd=tmp_path, check=True)

    written = (tmp_path / ".tltrain/spec.yaml").read_text("utf-8")
    assert parse_spec(written, where="x", base=Path("/")).spec.data.train == spec(odd).spec.data.train
    assert [path.name for path in tmp_path.iterdir()] == [".tltrain"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (ACCELERATED.replace(", accelerator: L4", ""), "SkyPilot asks for the kind of GPU"),
        (ACCELERATED + "volumes: {/data: claim}\n", "SkyPilot mounts no PersistentVolumeClaim"),
        (
            ACCELERATED.replace("worker_groups: [", "worker_groups: [{name: x, replicas: 1, cpus: 1, memory: 1Gi}, "),
            "one",
        ),
    ],
)
def test_what_a_task_cannot_say_is_refused(text: str, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        manifest_text(spec(), cluster(text), "skypilot")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_skypilots_own_parser_takes_a_task(tmp_path: Path) -> None:
    python = tmp_path / "env/bin/python"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "env")], check=True)
    installed = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "skypilot"], capture_output=True, check=False
    )
    if installed.returncode != 0:
        pytest.skip("skypilot cannot be installed here")
    path = tmp_path / "task.yaml"
    path.write_text(manifest_text(spec(), cluster(ACCELERATED), "skypilot"))
    code = "import sys, sky; t = sky.Task.from_yaml(sys.argv[1]); r, = t.resources\n"
    code += "print(t.name, t.num_nodes, r.cpus, r.memory, r.accelerators, r.image_id)"
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
    environment |= {"RAY_AUTH_TOKEN": "x", "WANDB_API_KEY": "x"}

    parsed = subprocess.run(
        [python, "-c", code, str(path)], env=environment, capture_output=True, text=True, check=False
    )

    expected = "flowers 2 8+ 32+ {'L4': 1} {None: 'docker:registry.example.org/tltrain'}"
    assert (parsed.returncode, parsed.stdout.strip().splitlines()[-1:]) == (0, [expected]), parsed.stderr
