"""Cluster files: each fault is told at its place, all at once; the shipped ones are what they say."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tltrain.errors import SpecError
from tltrain.jobs.cluster_kinds import KINDS, AddressCluster, Cluster, KubeRayCluster, LocalCluster, RayUpCluster
from tltrain.jobs.clusters import load_cluster, parse_cluster
from tltrain.jobs.endpoint import dashboard_command
from tltrain.jobs.launcher import launcher_command, read_launcher_file, token_problems

ADDRESS = "kind: address\n"
KUBERAY = "kind: kuberay\nimage: x\ntoken_secret: t\n"
GROUP = "worker_groups: [{name: x, replicas: 1, cpus: 1, memory: 1Gi}]\n"

# (file, what is said of it, in any order; `...` stands for the rest of a message)
FAULTS: list[tuple[str, list[str]]] = [
    ("", ["c.yaml:1:1: the file is empty. Begin with `kind:`, one of local, address, ray-up, kuberay."]),
    ("- a\n", ["c.yaml:1:1: the file is a list. Begin with ..."]),
    ("num_cpus: 1\n", ["c.yaml:1:1 kind: is missing. Give one of local, address, ray-up, kuberay."]),
    ("kind: locl\n", ["c.yaml:1:7 kind: locl is no kind of cluster. Did you mean local? It is one of ..."]),
    ("kind: 3\n", ["c.yaml:1:7 kind: 3 is no kind of cluster. It is one of ..."]),
    ("kind: local\nnum_cpu: 2\n", ["c.yaml:2:1 num_cpu: there is no key num_cpu. Did you mean num_cpus? Keys: ..."]),
    ("kind: local\nnum_cpus: 0\n", ["c.yaml:2:11 num_cpus: 0 is not a whole number of at least 1. ..."]),
    ("kind: local\ndashboard_port: 70000\n", ["c.yaml:2:17 dashboard_port: 70000 is not a whole number of ..."]),
    ("kind: local\nsecrets: {KEY: hunter2}\n", ["c.yaml:2:1 secrets: this is no reference to a secret. ..."]),
    ("kind: local\nsecrets: {A-B: 'env:X'}\n", ["c.yaml:2:1 secrets: A-B is no name of an environment variable."]),
    ("kind: local\nsecrets: {A: 'file:x'}\n", ["c.yaml:2:1 secrets: the file of A is read on the cluster. ..."]),
    (ADDRESS, ["c.yaml:1:1 url: neither url nor ssh_tunnel is given. Give one of them."]),
    (
        f"{ADDRESS}url: http://127.0.0.1:1\nssh_tunnel: {{host: h}}\ntoken: env:T\n",
        ["c.yaml:2:6 url: url and ssh_tunnel are both given. Give one of them."],
    ),
    (
        f"{ADDRESS}url: https://ray.example.org\n",
        ["c.yaml:1:1 token: whoever reaches a Ray cluster without a token runs programs on it. Turn ..."],
    ),
    (f"{ADDRESS}ssh_tunnel: {{host: h}}\n", ["c.yaml:1:1 token: whoever reaches ..."]),
    (
        f"{ADDRESS}url: http://10.0.0.1:8265\ntoken: env:T\n",
        ["c.yaml:2:6 url: plain http to another host shows the token and the jobs to whoever listens. Use https ..."],
    ),
    (
        f"{ADDRESS}url: http://localhost.evil.org\ntoken: env:T\n",
        ["c.yaml:2:6 url: plain http to another host ..."],
    ),
    (
        f"{ADDRESS}url: http://10.0.0.1\ntoken: hunter2\n",
        ["c.yaml:3:1 token: this is no reference to a secret. ...", "c.yaml:2:6 url: plain http to another host ..."],
    ),
    (f"{ADDRESS}url: https://a:b@c.org\ntoken: env:T\n", ["c.yaml:2:1 url: a password stands in the address. ..."]),
    (f"{ADDRESS}url: ray://c.org\ntoken: env:T\n", ["c.yaml:2:1 url: ray://c.org is no http address. Write ..."]),
    (f"{ADDRESS}url: https://c.org:x\ntoken: env:T\n", ["c.yaml:2:1 url: the address cannot be read: ..."]),
    (f"{ADDRESS}url: https://c.org/?x=1\ntoken: env:T\n", ["c.yaml:2:1 url: an address ends before ? and #. ..."]),
    (
        f"{ADDRESS}url: http://[::1]:8265\nca_file: x\n",
        ["c.yaml:3:10 ca_file: plain http shows no certificate to check. Use https, or leave it out."],
    ),
    (
        f"{ADDRESS}ssh_tunnel: {{host: -oProxyCommand=x, usr: y}}\ntoken: env:T\n",
        [
            "c.yaml:2:14 ssh_tunnel.host: -oProxyCommand=x is no name of a host or user.",
            "c.yaml:2:38 ssh_tunnel.usr: there is no key usr in ssh_tunnel. Did you mean user? ...",
        ],
    ),
    ("kind: ray-up\n", ["c.yaml:1:1 config: is missing. Add it: ...", "c.yaml:1:1 token: is missing. Add it: ..."]),
    (KUBERAY, ["c.yaml:1:1 worker_groups: is missing. Add it: The pods that train."]),
    (f"{KUBERAY}worker_groups: []\n", ["c.yaml:4:16 worker_groups: nothing is in it. Give at least one value."]),
    (
        f"{KUBERAY}worker_groups: [{{name: x, replicas: 1, cpus: 1, memory: lots}}]\n",
        ["c.yaml:4:49 worker_groups.0.memory: lots is no amount of memory. Write for example 16Gi."],
    ),
    (f"{KUBERAY}{GROUP}volumes: {{data: c}}\n", ["c.yaml:5:1 volumes: data is no absolute path in the pods."]),
    (f"{KUBERAY}{GROUP}volumes: {{/data: C_}}\n", ["c.yaml:5:1 volumes: C_ is no name of a Persistent..."]),
    ("kind: local\nx: !!python/object:os.system {}\n", ["c.yaml:2:4 x: the tag ...", "c.yaml:2:1 x: there is no ..."]),
    ("kind: local\nkind: address\n", ["c.yaml:2:1 kind: the key stands here twice. Keep one ..."]),
]


def problems_of(text: str) -> list[str]:
    """Return what is said about a file; nothing where it is accepted."""
    try:
        parse_cluster(text, where="c.yaml", base=Path("/files"))
    except SpecError as error:
        return [str(problem) for problem in error.problems]
    return []


def parse(text: str) -> Cluster:
    return parse_cluster(text, where="c.yaml", base=Path("/files"))


@pytest.mark.parametrize(("text", "expected"), FAULTS, ids=[repr(text) for text, _ in FAULTS])
def test_each_fault_is_told_at_its_place(text: str, expected: list[str]) -> None:
    said = problems_of(text)

    assert len(said) == len(expected), said
    for wanted in expected:
        assert any(each.startswith(wanted.removesuffix("...").rstrip()) for each in said), said
    assert not any(word in each for each in said for word in ("hunter2", "pydantic", "Input should"))


def test_a_token_is_needed_on_other_hosts_alone() -> None:
    for url in ("http://127.0.0.1:8265", "http://localhost:8265", "http://[::1]:8265"):
        assert problems_of(f"{ADDRESS}url: '{url}'\n") == []
    assert problems_of(f"{ADDRESS}url: http://10.0.0.1\nallow_plain_http: true\ntoken: env:T\n") == []


def test_paths_are_relative_to_the_file() -> None:
    cluster = parse("kind: ray-up\nconfig: up/x.yaml\ntoken: file:../t\n")
    assert isinstance(cluster, RayUpCluster)
    assert (cluster.config, cluster.token) == ("/files/up/x.yaml", "file:/t")

    cluster = parse(f"{ADDRESS}ssh_tunnel: {{host: h, identity_file: ~/k}}\nca_file: a.pem\ntoken: env:T\n")
    assert isinstance(cluster, AddressCluster)
    assert cluster.ssh_tunnel is not None
    assert cluster.ssh_tunnel.identity_file == os.path.expanduser("~/k")
    assert (cluster.ca_file, cluster.token) == ("/files/a.pem", "env:T")


def test_a_name_is_looked_for_here_first_then_in_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "config/tltrain/cluster"
    own.mkdir(parents=True)
    (tmp_path / "cluster").mkdir()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    (own / "gpu.yaml").write_text("kind: local\nnum_cpus: 1\n")
    (own / "lab.yaml").write_text("kind: local\n")

    assert load_cluster("gpu").cluster == LocalCluster(kind="local", num_cpus=1)
    (tmp_path / "cluster/gpu.yaml").write_text("kind: local\nnum_cpus: 2\n")
    assert load_cluster("gpu").cluster == LocalCluster(kind="local", num_cpus=2)
    loaded = load_cluster(str(own / "lab.yaml"))
    assert (loaded.name, loaded.path) == ("lab", own / "lab.yaml")

    with pytest.raises(SpecError, match=r"there is no cluster gpq in .* Did you mean gpu\? Known: gpu, lab\."):
        load_cluster("gpq")


def test_a_file_whose_name_is_no_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "My Cluster.yaml"
    path.write_text("kind: local\n")
    with pytest.raises(SpecError, match="is the cluster's, and is no name"):
        load_cluster(str(path))


def test_a_cluster_shows_no_secret_for_it_has_none() -> None:
    assert "hunter2" not in repr(problems_of("kind: ray-up\nconfig: x\ntoken: hunter2\n"))


# The shipped files.


def shipped(project_dir: Path) -> dict[str, Cluster]:
    """Return the clusters of cluster/ by name."""
    return {path.stem: load_cluster(str(path)).cluster for path in (project_dir / "cluster").glob("*.yaml")}


def test_every_kind_has_an_example(project_dir: Path) -> None:
    clusters = shipped(project_dir)

    assert set(clusters) == {"local", "address", "aws-gpu", "gcp-gpu", "azure-gpu", "own-hosts", "kubernetes"}
    assert {cluster.kind for cluster in clusters.values()} == set(KINDS)


@pytest.fixture
def launcher_files(project_dir: Path) -> dict[str, Path]:
    """The launcher's files that the clusters of kind ray-up name, by the cluster's name."""
    clusters = shipped(project_dir)
    return {name: Path(each.config) for name, each in clusters.items() if isinstance(each, RayUpCluster)}


def test_ray_accepts_every_launcher_file(project_dir: Path, launcher_files: dict[str, Path]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    assert set(launcher_files.values()) == set((project_dir / "cluster/ray-up").glob("*.yaml"))
    providers = []
    for path in launcher_files.values():
        prepared = prepare_config(YAML(typ="safe").load(path))
        validate_config(prepared)
        providers.append(prepared["provider"]["type"])
    assert sorted(providers) == ["aws", "azure", "gcp", "local"]


def test_every_launcher_file_starts_ray_with_the_clusters_token(
    project_dir: Path, launcher_files: dict[str, Path]
) -> None:
    for name, path in launcher_files.items():
        text = (project_dir / f"cluster/{name}.yaml").read_text("utf-8")
        config = read_launcher_file(str(path))

        assert token_problems(config, "") == []
        (local_path,) = config["file_mounts"].values()
        assert f"token: file:{local_path}\n" in text
        (head,) = [command for command in config["head_start_ray_commands"] if "ray start" in command]
        assert "--dashboard-host=127.0.0.1" in head


@pytest.mark.parametrize(
    "text", ["%YAML 1.0\n---\n", "%YAML 1." + "9" * 5000 + "\n---\n", "{"], ids=["old", "long", "open"]
)
def test_a_launcher_file_that_cannot_be_read_says_so(text: str, tmp_path: Path) -> None:
    (path := tmp_path / "cluster.yaml").write_text(f"{text}provider: {{type: aws}}\n", "utf-8")

    with pytest.raises(SpecError, match=r"(?s)is not valid YAML: .*\. Correct it\."):
        read_launcher_file(str(path))


def test_launcher_files_install_what_tltrain_needs(project_dir: Path, launcher_files: dict[str, Path]) -> None:
    project = (project_dir / "pyproject.toml").read_text("utf-8").partition("dependencies = [")[2].partition("]\n")[0]
    needed = [line.strip(' ",').partition(">")[0].partition("[")[0] for line in project.splitlines() if line.strip()]

    assert len(needed) > 5
    for path in launcher_files.values():
        installed = " ".join(read_launcher_file(str(path))["setup_commands"])
        assert [name for name in needed if name not in installed] == []


def test_the_launcher_knows_the_options_that_it_is_given() -> None:
    from ray.scripts import scripts

    cluster = RayUpCluster(kind="ray-up", config="up.yaml", token="env:T")
    commands = [launcher_command("up", "up.yaml"), launcher_command("down", "up.yaml"), dashboard_command(cluster, 1)]
    for _, verb, _, *given in commands:
        known = {name for parameter in scripts.cli.commands[verb].params for name in parameter.opts}
        assert {option for option in given if option.startswith("--")} <= known


@pytest.mark.parametrize(
    "commands", [[], ["ray stop", "ray start --head"], ["RAY_AUTH_MODE=token ray start --head", "ray start --x"]]
)
def test_a_launcher_file_without_token_mode_is_refused(commands: list[str]) -> None:
    config: dict[str, Any] = {"worker_start_ray_commands": ["RAY_AUTH_MODE=token ray start"]}
    config["head_start_ray_commands"] = commands

    (problem,) = token_problems(config, "up.yaml")

    assert problem.key == "head_start_ray_commands"


def test_the_shipped_kubernetes_cluster_has_workers(project_dir: Path) -> None:
    cluster = shipped(project_dir)["kubernetes"]
    assert isinstance(cluster, KubeRayCluster)
    assert [group.gpus for group in cluster.worker_groups] == [1]
