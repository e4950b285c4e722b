"""The verbs around one run: validate, init, schema, explain, run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from tltrain.cli.arguments import AsJson, AsJsonLines, Sets, SpecPath, load
from tltrain.cli.render import is_quiet, short_origins
from tltrain.errors import Problem, SpecError


def add_verbs(app: typer.Typer) -> None:
    """Add the verbs of this file to the program."""
    for verb in (init, validate, explain, run, schema):
        app.command()(verb)


def init(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="The file to write.")] = Path("spec.yaml"),
    start: Annotated[
        tuple[str, str] | None,
        typer.Option("--from", metavar="imagefolder DIR", help="Look at a folder of images, and write what fits them."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file if it is there.")] = False,
) -> None:
    """Write a commented spec to start from."""
    text = _starter(path, start)
    try:
        with path.open("w" if force else "x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        raise SpecError(Problem("is there already", "Choose another path, or --force", str(path))) from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise SpecError(Problem(f"cannot be written: {reason}", "Check the path", str(path))) from error
    verb = "run" if start else "validate"
    typer.echo(f"Wrote {path}. {'Read' if start else 'Edit'} it, then: tltrain {verb} {path}", err=True)


def _starter(path: Path, start: tuple[str, str] | None) -> str:
    """The text of the spec that `init` writes."""
    if start is None:
        from tltrain.spec.starter import starter_text

        return starter_text()
    kind, folder = start
    if kind != "imagefolder":
        raise SpecError(f"--from {kind}: there is no such kind", "Write --from imagefolder DIR")
    from tltrain.data.proposal import propose
    from tltrain.environment import num_cores
    from tltrain.machine import num_gpus

    return propose(folder, path, num_cores=num_cores(), num_gpus=num_gpus())


def validate(spec: SpecPath, sets: Sets = None, as_json: AsJson = False) -> None:
    """Check a spec and show where each value comes from."""
    from tltrain.spec.emit import annotated_yaml

    loaded = load(spec, sets)
    if as_json:
        warnings = [str(warning) for warning in loaded.warnings]
        fields = {"spec": loaded.spec.model_dump(), "origins": loaded.origins, "warnings": warnings}
        print(json.dumps(fields, indent=2))
    else:
        print(annotated_yaml(loaded.spec, short_origins(loaded.origins)), end="")


def schema() -> None:
    """Print the JSON Schema of a spec, for editors."""
    from tltrain.spec.load import json_schema

    print(json.dumps(json_schema(), indent=2))


def explain(spec: SpecPath, sets: Sets = None, as_json: AsJson = False) -> None:
    """Show stages, rates, costs and data, without training."""
    loaded = load(spec, sets)
    from tltrain.run import explain as explain_spec

    raise typer.Exit(explain_spec(loaded, as_json=as_json))


def run(
    spec: SpecPath,
    sets: Sets = None,
    local: Annotated[bool, typer.Option("--local", help="Train in this process, without Ray.")] = False,
    as_json: AsJsonLines = False,
) -> None:
    """Train and evaluate; goes on where it was stopped."""
    loaded = load(spec, sets)
    from tltrain.output import Output
    from tltrain.run import execute

    raise typer.Exit(execute(loaded, local=local, output=Output(as_json=as_json, quiet=is_quiet())))
