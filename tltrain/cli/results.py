"""The verbs around a finished run: evaluate, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tltrain.cli.arguments import AsJson, RunFolderName
from tltrain.errors import Problem, SpecError


def add_verbs(app: typer.Typer) -> None:
    """Add the verbs of this file to the program."""
    for verb in (evaluate, report):
        app.command()(verb)


def evaluate(
    run: RunFolderName,
    data: Annotated[str, typer.Option("--data", metavar="SOURCE", help="Images, as in data.test of a spec.")],
    as_json: AsJson = False,
) -> None:
    """Evaluate a run's model on other images."""
    from tltrain.run import evaluate_run

    raise typer.Exit(evaluate_run(run, data, as_json=as_json))


def report(
    run: RunFolderName,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="The file to write, instead of RUN/report.html.")
    ] = None,
) -> None:
    """Write a page of a run or sweep: its curves and numbers."""
    from tltrain.report.page import REPORT_FILE, build_report, write_report
    from tltrain.run_folder import RunFolder

    folder = RunFolder.open(run)
    if out is None:
        write_report(folder)
        typer.echo(f"{folder.folder}/{REPORT_FILE}")
        return
    page = build_report(folder)
    try:
        out.write_text(page, encoding="utf-8")
    except OSError as error:
        reason = error.strerror or str(error)
        raise SpecError(Problem(f"cannot be written: {reason}", "Check the path", str(out))) from error
    typer.echo(str(out))
