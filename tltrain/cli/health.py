"""The verb around this machine: doctor."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from tltrain.cli import completion
from tltrain.cli.arguments import AsJson
from tltrain.errors import ResourceError

if TYPE_CHECKING:
    from tltrain.doctor import Finding

_WIDTH = 14


def add_verbs(app: typer.Typer) -> None:
    """Add the verb of this file to the program."""
    app.command()(doctor)


def doctor(
    storage: Annotated[
        str | None, typer.Option("--storage", metavar="STORAGE", help="Where runs are to go; `runs` if left out.")
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            "--cluster",
            metavar="NAME",
            help="A cluster that is to be reached.",
            autocompletion=completion.clusters,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check this machine: versions, devices, memory, storage, clusters."""
    from tltrain.cli.run_tables import width
    from tltrain.doctor import examine
    from tltrain.spec.schema import Spec

    findings = []
    for finding in examine(storage or Spec.model_fields["storage"].default, cluster):
        findings.append(finding)
        if not as_json:
            print("\n".join(_lines(finding, width())), flush=True)
    if as_json:
        print(json.dumps([vars(finding) for finding in findings], indent=2))
    if any(finding.state == "problem" for finding in findings):
        raise typer.Exit(ResourceError.exit_code)


def _lines(finding: Finding, columns: int) -> Iterator[str]:
    """The finding on one line where it fits, and its advice below it."""
    head = f"{finding.state:<8} {finding.check:<{_WIDTH}} "
    for text, first in ((finding.what, head), (finding.advice, " " * len(head))):
        yield from textwrap.wrap(
            text, max(columns, 2 * len(head)), initial_indent=first, subsequent_indent=" " * (9 + _WIDTH + 1),
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip
