"""The verbs around a sweep: plan, sweep extend."""

from __future__ import annotations

from typing import Annotated

import typer

from tltrain.cli import completion
from tltrain.cli.arguments import AsJson, AsJsonLines, RunFolderName, Sets, SpecPath, load
from tltrain.cli.render import is_quiet

sweeps = typer.Typer(name="sweep", help="Go on with a finished sweep.", no_args_is_help=True)


def add_verbs(app: typer.Typer) -> None:
    """Add the verbs of this file to the program."""
    app.command()(plan)
    app.add_typer(sweeps)


def plan(
    spec: SpecPath,
    sets: Sets = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            "--cluster",
            metavar="NAME",
            help="Cluster file whose price gives the cost.",
            autocompletion=completion.clusters,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show trials, time and cost of a sweep, without training."""
    loaded = load(spec, sets)
    from tltrain.run import plan as plan_spec

    raise typer.Exit(plan_spec(loaded, cluster, as_json=as_json))


@sweeps.command()
def extend(
    run: RunFolderName,
    trials: Annotated[int, typer.Option("--trials", metavar="N", min=1, help="How many trials to add.")],
    sets: Sets = None,
    as_json: AsJsonLines = False,
) -> None:
    """Add trials to a sweep; no configuration is run twice."""
    from tltrain.output import Output
    from tltrain.run import extend as extend_run

    raise typer.Exit(extend_run(run, trials, sets or [], Output(as_json=as_json, quiet=is_quiet())))
