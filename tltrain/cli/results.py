"""The verbs around a finished run: evaluate, report."""

from __future__ import annotations

import json
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
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Fit the model's temperature to these images and save it in model.json.")
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write the numbers there as JSON.")] = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate the model of a run, or of a sweep's winner, on other images."""
    from tltrain.report.evaluation_lines import evaluation_lines
    from tltrain.storage import Folder
    from tltrain.train.reevaluate import evaluate_model

    numbers = evaluate_model(run, data, calibrate=calibrate)
    text = json.dumps(numbers, indent=2, ensure_ascii=False)
    print(text if as_json else "\n".join(evaluation_lines(numbers)))
    if out is not None:
        Folder.open(str(out.parent)).write_bytes(out.name, (text + "\n").encode())


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
