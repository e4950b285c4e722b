"""Shell metacharacters in every text of a spec and of a cluster file: none reaches a shell, none becomes an option."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from canaries import shell_texts
from ruamel.yaml import YAML

from tltrain.errors import SpecError
from tltrain.jobs.cluster_kinds import KINDS, AddressCluster, KubeRayCluster, RayUpCluster
from tltrain.jobs.clusters import Cluster, LoadedCluster, parse_cluster
from tltrain.jobs.endpoint import dashboard_command, ssh_command
from tltrain.jobs.launcher import launcher_command
from tltrain.jobs.manifest import manifest_text
from tltrain.jobs.request import build_package, build_request, new_job_id
from tltrain.jobs.upload import unpack
from tltrain.spec.keys import bare, branches, hints, is_section
from tltrain.spec.load import LoadedSpec, parse_spec
from tltrain.spec.schema import Section, Spec

PROGRAM = "python -m tltrain.run spec.yaml"
SPEC = Spec.model_validate(
    {"name": "x", "model": {"name": "resnet18"}, "data": {"train": "/data"}, "storage": "s3://bucket/runs"}
)


def texts_of(section: type[Section], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the path of every setting that may be a text, or a mapping of texts; `*` stands for any key or place."""
    for name, hint in hints(section).items():
        for branch in branches(hint):
            kind = bare(branch)
            if is_section(branch):
                yield from texts_of(kind, (*path, name))
            elif kind is str:
                yield (*path, name)
            elif str(kind).startswith(("dict", "list")) and "str" in str(kind):
                yield (*path, name, "*")


def placed(values: Mapping[str, Any], path: tuple[str, ...], text: str) -> dict[str, Any]:
    """A copy of plain values with a text at a path."""
    copy: dict[str, Any] = json.loads(json.dumps(values))
    place = copy
    for name in path[:-1]:
        if not isinstance(place.get(name), dict):
            place[name] = {}
        place = place[name]
    place[path[-1] if path[-1] != "*" else text] = text
    return copy


SPEC_TEXTS = sorted(set(texts_of(Spec)))
CLUSTER_TEXTS = sorted({(kind, *path) for kind, section in KINDS.items() for path in texts_of(section)})
MARK = Path(os.environ.get("TMPDIR", "/tmp"), f"tltrain-shell-mark-{os.getpid()}")
"""What every text here creates where it is run."""


@pytest.fixture(autouse=True)
def nothing_runs() -> Iterator[None]:
    yield
    assert not MARK.exists()


def test_every_text_is_found() -> None:
    found = {".".join(path) for path in SPEC_TEXTS}
    assert {"name", "storage", "model.name", "model.weights", "data.train", "cache.dir", "data.root"} <= found
    assert len(found) >= 15
    assert len(CLUSTER_TEXTS) >= 20


@pytest.mark.parametrize("path", SPEC_TEXTS, ids=".".join)
def test_a_text_of_a_spec_is_refused_or_travels_as_it_is(path: tuple[str, ...], tmp_path: Path) -> None:
    values = SPEC.model_dump(mode="json")
    for text in shell_texts(MARK):
        try:
            spec = parse_spec(json.dumps(placed(values, path, text)), where="x", base=tmp_path).spec
            package = build_package(spec, with_tltrain=False)
        except SpecError:
            continue
        request = build_request(new_job_id(spec.name), 1, package)

        assert request.entrypoint == PROGRAM
        assert text not in json.dumps(request.body())
        (travelled,) = (entry.source for entry in unpack(package.content))
        assert isinstance(travelled, bytes)
        assert parse_spec(travelled.decode(), where="x", base=tmp_path).spec == spec


@pytest.mark.parametrize("text", shell_texts(MARK), ids=[f"text {i}" for i in range(len(shell_texts(MARK)))])
def test_what_is_set_on_the_command_line_arrives_word_for_word(text: str, tmp_path: Path) -> None:
    """As Ray does: the entrypoint is given to a shell."""
    program = tmp_path / "python"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    request = build_request("tiny-012345", 1, build_package(SPEC, with_tltrain=False), sets=[f"name={text}"])

    said = subprocess.run(
        ["sh", "-c", request.entrypoint],
        env={"PATH": f"{tmp_path}:{os.defpath}"},
        capture_output=True,
        text=True,
        check=True,
    )

    assert said.stdout.splitlines() == ["-m", "tltrain.run", "spec.yaml", "--set", f"name={text}"]


CLUSTERS: dict[str, dict[str, Any]] = {
    "local": {"kind": "local"},
    "address": {"kind": "address", "token": "env:T", "ssh_tunnel": {"host": "head", "user": "ray"}},
    "ray-up": {"kind": "ray-up", "config": "up.yaml", "token": "env:T"},
    "kuberay": {
        **{"kind": "kuberay", "image": "x", "token_secret": "t", "volumes": {"/data": "claim"}},
        "worker_groups": [{"name": "x", "replicas": 1, "cpus": 2, "memory": "1Gi"}],
    },
}


def commands(cluster: Cluster) -> list[list[str]]:
    """The commands that a cluster makes this machine run."""
    if isinstance(cluster, RayUpCluster):
        return [
            dashboard_command(cluster, 1),
            launcher_command("up", cluster.config),
            launcher_command("down", cluster.config),
        ]
    if isinstance(cluster, AddressCluster) and cluster.ssh_tunnel is not None:
        return [ssh_command(cluster.ssh_tunnel, 1)]
    return []


@pytest.mark.parametrize("path", CLUSTER_TEXTS, ids=".".join)
def test_a_text_of_a_cluster_file_is_refused_or_is_one_argument(path: tuple[str, ...], tmp_path: Path) -> None:
    kind, *rest = path
    for text in shell_texts(MARK):
        try:
            file = json.dumps(placed(CLUSTERS[kind], tuple(rest), text))
            cluster = parse_cluster(file, where="x", base=tmp_path)
        except SpecError:
            continue
        for command in commands(cluster):
            assert not [argument for argument in command if text in argument and argument.startswith("-")]
        if isinstance(cluster, KubeRayCluster):
            check_manifest(cluster, tmp_path)


def check_manifest(cluster: KubeRayCluster, folder: Path) -> None:
    """A manifest is data alone: its entrypoint is the constant one."""
    text = manifest_text(LoadedSpec(SPEC, {}, ()), LoadedCluster("k", folder / "k.yaml", cluster))
    job = list(YAML(typ="safe").load_all(text))[1]
    assert job["spec"]["entrypoint"] == "python -m tltrain.run /etc/tltrain/spec.yaml"
