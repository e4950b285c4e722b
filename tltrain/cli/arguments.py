"""Arguments and options that several verbs have, and loading the spec that they name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tltrain.cli import completion, render

if TYPE_CHECKING:
    from tltrain.spec.load import LoadedSpec

SpecPath = Annotated[
    str, typer.Argument(metavar="SPEC", help="The spec, a YAML file.", autocompletion=completion.specs)
]
RunFolderName = Annotated[str, typer.Argument(metavar="RUN", help="A run's folder.", autocompletion=completion.runs)]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace a setting, such as optim.learning_rate=1e-3."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
AsJsonLines = Annotated[bool, typer.Option("--json", help="Print one JSON object a line, as things happen.")]


def load(spec: str, sets: list[str] | None) -> LoadedSpec:
    """Load a spec and show its warnings. Raises SpecError."""
    from tltrain.spec.load import load_spec

    loaded = load_spec(spec, sets or ())
    render.show_warnings(loaded.warnings)
    return loaded
