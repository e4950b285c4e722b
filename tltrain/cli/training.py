"""The verbs around one run: validate, init, schema, explain, run, evaluate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tltrain.cli import render
from tltrain.errors import Problem, SpecError

if TYPE_CHECKING:
    from tltrain.spec.load import LoadedSpec

SpecPath = Annotated[str, typer.Argument(metavar="SPEC", help="The spec, a YAML file.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace a setting, such as optim.learning_rate=1e-3."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def add_verbs(app: typer.Typer) -> None:
    """Add the verbs of this file to the program."""
    for verb in (init, validate, explain, run, evaluate, schema):
        app.command()(verb)


def init(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="The file to write.")] = Path("spec.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file if it is there.")] = False,
) -> None:
    """Write a commented spec to start from."""
    from tltrain.spec.starter import starter_text

    try:
        with path.open("w" if force else "x", encoding="utf-8") as stream:
            stream.write(starter_text())
    except FileExistsError:
        raise SpecError(Problem("is there already", "Choose another path, or --force", str(path))) from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise SpecError(Problem(f"cannot be written: {reason}", "Check the path", str(path))) from error
    typer.echo(f"Wrote {path}. Edit it, then: tltrain validate {path}", err=True)


def validate(spec: SpecPath, sets: Sets = None, as_json: AsJson = False) -> None:
    """Check a spec and show where each value comes from."""
    from tltrain.spec.emit import annotated_yaml

    loaded = _load(spec, sets)
    if as_json:
        warnings = [str(warning) for warning in loaded.warnings]
        fields = {"spec": loaded.spec.model_dump(), "origins": loaded.origins, "warnings": warnings}
        print(json.dumps(fields, indent=2))
    else:
        print(annotated_yaml(loaded.spec, render.short_origins(loaded.origins)), end="")


def schema() -> None:
    """Print the JSON Schema of a spec, for editors."""
    from tltrain.spec.load import json_schema

    print(json.dumps(json_schema(), indent=2))


def explain(spec: SpecPath, sets: Sets = None, as_json: AsJson = False) -> None:
    """Show stages, rates, costs and data, without training."""
    loaded = _load(spec, sets)
    from tltrain.run import explain as explain_spec

    raise typer.Exit(explain_spec(loaded, as_json=as_json))


def run(
    spec: SpecPath,
    sets: Sets = None,
    local: Annotated[bool, typer.Option("--local", help="Train in this process, without Ray.")] = False,
) -> None:
    """Train and evaluate; goes on where it was stopped."""
    loaded = _load(spec, sets)
    from tltrain.run import execute

    raise typer.Exit(execute(loaded, local=local))


def evaluate(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's folder.")],
    data: Annotated[str, typer.Option("--data", metavar="SOURCE", help="Images, as in data.test of a spec.")],
    as_json: AsJson = False,
) -> None:
    """Evaluate a run's model on other images."""
    from tltrain.run import evaluate_run

    raise typer.Exit(evaluate_run(run, data, as_json=as_json))


def _load(spec: str, sets: list[str] | None) -> LoadedSpec:
    from tltrain.spec.load import load_spec

    loaded = load_spec(spec, sets or ())
    render.show_warnings(loaded.warnings)
    return loaded
