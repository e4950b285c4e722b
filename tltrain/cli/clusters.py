"""The verbs around clusters: cluster up, down, status; manifest."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tltrain.cli import completion
from tltrain.cli.arguments import AsJson, Sets, SpecPath, load
from tltrain.errors import Problem, SpecError

if TYPE_CHECKING:
    from tltrain.jobs.clusters import LoadedCluster

clusters = typer.Typer(name="cluster", help="Start, end and look at clusters.", no_args_is_help=True)
ClusterName = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="A file of cluster/ without .yaml, or its path.",
        autocompletion=completion.clusters,
    ),
]


def add_verbs(app: typer.Typer) -> None:
    """Add the verbs of this file to the program."""
    app.add_typer(clusters)
    app.command()(manifest)


@clusters.command()
def up(name: ClusterName) -> None:
    """Start a cluster; one that is up stays as it is."""
    from tltrain.jobs import launcher, local_cluster
    from tltrain.jobs.clusters import LocalCluster, RayUpCluster, load_cluster

    loaded = load_cluster(name)
    if isinstance(loaded.cluster, LocalCluster):
        state, is_new = local_cluster.up(loaded.name, loaded.cluster)
        typer.echo(f"{loaded.name} is up{'' if is_new else ' already'}: {state.url}")
    elif isinstance(loaded.cluster, RayUpCluster):
        launcher.launch(loaded.cluster)
        typer.echo(f"{loaded.name} is up.")
    else:
        raise _not_ours(loaded, "started")
    typer.echo(f"  next  tltrain submit SPEC --cluster {name}\n        tltrain cluster down {name}", err=True)


@clusters.command()
def down(name: ClusterName) -> None:
    """End a cluster and all that runs on it."""
    from tltrain.jobs import launcher, local_cluster
    from tltrain.jobs.clusters import LocalCluster, RayUpCluster, load_cluster

    loaded = load_cluster(name)
    if isinstance(loaded.cluster, LocalCluster):
        was_up = local_cluster.down(loaded.name)
        typer.echo(f"{loaded.name} is down{'' if was_up else ' already'}.")
    elif isinstance(loaded.cluster, RayUpCluster):
        launcher.terminate(loaded.cluster)
        typer.echo(f"{loaded.name} is down.")
    else:
        raise _not_ours(loaded, "ended")


@clusters.command()
def status(name: ClusterName, as_json: AsJson = False) -> None:
    """Show a cluster's state, its CPU cores and GPUs, and its jobs."""
    from tltrain.jobs.clusters import load_cluster

    facts = _facts(load_cluster(name))
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    print(f"{facts['name']}: {facts['state']}")
    for key in ("url", "cpus", "gpus", "jobs", "logs"):
        if key in facts:
            print(f"  {key:<5} {_shown(facts[key])}")
    if facts["state"] == "up" and "cpus" not in facts:
        print("  cpus  not counted yet")


def manifest(
    spec: SpecPath,
    cluster: Annotated[
        str,
        typer.Option(
            "--cluster",
            metavar="NAME",
            help="The cluster to write it for.",
            autocompletion=completion.clusters,
        ),
    ],
    format: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help="rayjob (Kubernetes) or skypilot.")
    ] = "rayjob",
    sets: Sets = None,
) -> None:
    """Print a job for kubectl or SkyPilot, instead of submitting it."""
    from tltrain.jobs.clusters import load_cluster
    from tltrain.jobs.manifest import manifest_text

    loaded_cluster = load_cluster(cluster)
    typer.echo(manifest_text(load(spec, sets), loaded_cluster, format), nl=False)


def _facts(loaded: LoadedCluster) -> dict[str, Any]:
    """What is known of a cluster now. Raises ResourceError where it should answer and does not."""
    from tltrain.jobs import local_cluster
    from tltrain.jobs.clusters import LocalCluster
    from tltrain.jobs.endpoint import reach
    from tltrain.jobs.ray_jobs import RayJobs

    facts: dict[str, Any] = {"name": loaded.name, "kind": loaded.cluster.kind, "state": "up"}
    if isinstance(loaded.cluster, LocalCluster):
        facts["state"] = local_cluster.state_of(loaded.name)
        if facts["state"] != "up":
            return facts | ({"logs": str(log)} if (log := local_cluster.log_path(loaded.name)).exists() else {})
    with reach(loaded) as endpoint:
        jobs = RayJobs(endpoint)
        usage, known = jobs.usage(), jobs.list()
        facts["url"] = endpoint.url
    if usage is not None:
        facts["cpus"] = {"total": usage.cpus, "free": usage.free_cpus}
        facts["gpus"] = {"total": usage.gpus, "free": usage.free_gpus}
    return facts | {"jobs": dict(sorted(Counter(job.status for job in known.values()).items()))}


def _shown(value: Any) -> str:
    if isinstance(value, dict) and "total" in value:
        return f"{value['total']:g} ({value['free']:g} free)"
    if isinstance(value, dict):
        return ", ".join(f"{count} {status.lower()}" for status, count in value.items()) or "none"
    return str(value)


def _not_ours(loaded: LoadedCluster, done: str) -> SpecError:
    kind = loaded.cluster.kind
    action = "The kinds local and ray-up are" if kind == "address" else "The KubeRay operator starts one for each job"
    return SpecError(Problem(f"a cluster of kind {kind} is not {done} by tltrain", action, str(Path(loaded.path))))
