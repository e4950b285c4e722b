"""The verbs around runs in a storage: runs, compare, rm-run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from tltrain.cli.arguments import AsJson, RunFolderName
from tltrain.errors import SpecError

SHOWN = 100
"""Most runs of a list for which no number was given."""


def add_verbs(app: typer.Typer) -> None:
    """Add the verbs of this file to the program."""
    app.command()(runs)
    app.command()(compare)
    app.command(name="rm-run")(remove)


def runs(
    storage: Annotated[
        str | None, typer.Argument(metavar="STORAGE", help="Where runs stand; `runs` if left out.")
    ] = None,
    newest: Annotated[
        int | None, typer.Option("-n", "--newest", metavar="N", min=1, help="Show only so many of the newest.")
    ] = None,
    all_runs: Annotated[bool, typer.Option("-a", "--all", help=f"Show all, not the newest {SHOWN} alone.")] = False,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Read every run anew.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the runs in a storage, the newest first."""
    from tltrain.cli.run_tables import run_lines, width
    from tltrain.jobs.runs import list_runs
    from tltrain.storage import Folder

    if all_runs and newest is not None:
        raise typer.BadParameter("--all and --newest exclude each other")
    folder = Folder.open(default_storage() if storage is None else storage)
    shown = SHOWN if newest is None and not all_runs and not as_json else None
    found = list_runs(folder, rebuild=rebuild, newest=newest if shown is None else shown + 1)
    if as_json:
        print(json.dumps([{**vars(run), "uri": folder.child(run.name).uri} for run in found], indent=2))
    elif found:
        print("\n".join(run_lines(found[:shown], width())))
        if shown is not None and len(found) > shown:
            typer.echo("There are older runs as well; --all shows them.", err=True)
    else:
        typer.echo(f"No runs in {folder}.", err=True)


def compare(
    names: Annotated[list[str], typer.Argument(metavar="RUN RUN...", help="The runs' folders.")],
    page: Annotated[Path | None, typer.Option("--page", metavar="FILE", help="Also write a page to look at.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show how runs differ, their numbers side by side, and whether their accuracies differ by more than chance."""
    from dataclasses import asdict

    from tltrain.cli.run_tables import comparison_lines, width
    from tltrain.jobs.comparison import compare as compare_runs
    from tltrain.report.compare_page import build_comparison, difference_lines, find_differences
    from tltrain.run_folder import RunFolder
    from tltrain.storage import Folder

    if len(names) < 2:
        raise SpecError("a single run cannot be compared", "Name two or more: tltrain compare RUN RUN")
    folders = [RunFolder.open(name) for name in names]
    comparison = compare_runs(folders)
    differences = find_differences(folders, comparison.runs)
    if as_json:
        found = [{**asdict(one), "is_clear": one.is_clear} for one in differences]
        print(json.dumps({**asdict(comparison), "differences": found}, indent=2))
    else:
        print("\n".join([*comparison_lines(comparison, width()), *difference_lines(differences)]))
    if page is not None:
        text = build_comparison(folders, comparison.runs, comparison.spec, differences)
        Folder.open(str(page.parent)).write_bytes(page.name, text.encode())
        typer.echo(f"Wrote {page}", err=True)


def remove(
    run: RunFolderName,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete without asking.")] = False,
) -> None:
    """Delete a run with all that is in it."""
    from tltrain.jobs.runs import check_removable, remove_run
    from tltrain.run_folder import RunFolder

    folder = RunFolder.open(run)
    check_removable(folder)
    if not yes:
        if not has_terminal():
            raise SpecError("deleting a run cannot be undone, and there is no terminal to ask at", "Add --yes")
        state = folder.state().get("state", "never started")
        typer.confirm(f"Delete the run {folder.folder} ({state}) and everything in it?", abort=True, err=True)
    remove_run(folder)
    typer.echo(f"Deleted {folder.folder}", err=True)


def default_storage() -> str:
    """Where runs stand that a spec gives no other place."""
    from tltrain.spec.schema import Spec  # takes a moment, and lists with a storage given do without

    return Spec.model_fields["storage"].default


def has_terminal() -> bool:
    """Whether there is somebody to ask."""
    return sys.stdin.isatty()
