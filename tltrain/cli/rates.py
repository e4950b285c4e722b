"""The verb lr-find: which learning rate to take."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Annotated

import typer

from tltrain.cli.arguments import AsJson, Sets, SpecPath, load


def add_verbs(app: typer.Typer) -> None:
    """Add the verb of this file to the program."""
    app.command("lr-find")(lr_find)


def lr_find(
    spec: SpecPath,
    sets: Sets = None,
    freeze_depth: Annotated[
        list[str] | None,
        typer.Option("--freeze-depth", metavar="D", help="Stages to freeze, as in a spec; may be given again."),
    ] = None,
    rates: Annotated[int, typer.Option("--rates", metavar="N", help="How many rates.")] = 20,
    lowest: Annotated[float, typer.Option("--from", metavar="RATE", help="The lowest rate.")] = 1e-5,
    highest: Annotated[float, typer.Option("--to", metavar="RATE", help="The highest rate.")] = 1.0,
    steps: Annotated[int, typer.Option("--steps", metavar="N", min=4, help="Most steps of a rate.")] = 16,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="The page to write, instead of NAME-lr-find.html.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Try many learning rates at once, each for a few steps; suggest one."""
    loaded = load(spec, sets)
    from tltrain.output import Output
    from tltrain.report.rate_lines import rate_lines
    from tltrain.report.rate_page import rate_page
    from tltrain.settle import settled_here
    from tltrain.spec.yaml_text import parse_scalar
    from tltrain.storage import Folder
    from tltrain.train.lr_find import find_here, rates_between, searched_depths

    settled = settled_here(loaded.spec, Output().batch_size)
    depths = [parse_scalar(depth) for depth in freeze_depth or ()] or searched_depths(loaded.spec)
    tell = logging.getLogger("tltrain").info
    found = find_here(settled, rates_between(lowest, highest, rates), depths, steps=steps, tell=tell).to_dict()
    page = out or Path(f"{loaded.spec.name}-lr-find.html")
    Folder.open(str(page.parent)).write_bytes(page.name, rate_page(loaded.spec.name, found).encode())
    print(json.dumps(found, indent=2) if as_json else "\n".join([*rate_lines(found), "", f"Picture     {page}"]))
