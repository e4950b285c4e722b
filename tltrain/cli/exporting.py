"""The verb export: a run's model in formats that other programs read."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tltrain.cli.arguments import AsJson, RunFolderName

if TYPE_CHECKING:
    from tltrain.export.exporter import Exported


class Format(str, Enum):
    """What a model can be exported to."""

    safetensors = "safetensors"
    torch = "torch"
    onnx = "onnx"
    huggingface = "huggingface"


def add_verbs(app: typer.Typer) -> None:
    """Add the verbs of this file to the program."""
    app.command()(export)


def export(
    run: RunFolderName,
    format_: Annotated[Format, typer.Option("--format", help="What to make of it.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="The folder to write, instead of NAME-FORMAT.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", metavar="SOURCE", help="Images to check it on, as for predict, instead of the run's own."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
    as_json: AsJson = False,
) -> None:
    """Export a run's model, checked on real images."""
    from dataclasses import asdict

    from tltrain.export.exporter import export_model

    typer.echo(f"Exporting {run} as {format_.value} ...", err=True)
    exported = export_model(run, format_.value, out, force=force, data=data)
    typer.echo(json.dumps(asdict(exported), indent=2) if as_json else "\n".join(_lines(exported)))


def _lines(exported: Exported) -> list[str]:
    check, files = exported.check, exported.files
    width = max(map(len, files))
    return [
        f"Model     {exported.architecture} of {exported.name}, {exported.num_classes:,} classes",
        f"Folder    {exported.out}",
        *(f"          {name:<{width}}  {_size(num_bytes)}" for name, num_bytes in files.items()),
        f"Checked   with {check.runtime} on {check.num_images} images ({check.images})",
        f"          largest difference {check.logit_difference:.2g} in a logit ({check.logit_tolerance:.2g} allowed),",
        f"          {check.probability_difference:.2g} in a probability",
    ]


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB" if num_bytes >= 1e5 else f"{num_bytes / 1e3:,.1f} kB"
