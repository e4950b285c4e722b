"""The program `tltrain`: its global options, its verbs, and how errors leave it."""

from __future__ import annotations

import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from tltrain import messages
from tltrain.cli import (
    clusters,
    data,
    exporting,
    health,
    inference,
    jobs,
    rates,
    render,
    results,
    runs,
    sweeps,
    training,
    watch,
)
from tltrain.errors import EXIT_INTERRUPTED, TltrainError


class _Group(TyperGroup):
    """Turns our errors into messages and exit codes, in whatever verb they come up."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except TltrainError as error:
            if ctx.params.get("debug"):
                traceback.print_exc()
            messages.show_error(error)
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as interrupt:
            messages.show_interrupt(interrupt)
            raise typer.Exit(EXIT_INTERRUPTED) from interrupt


app = typer.Typer(
    name="tltrain",
    cls=_Group,
    help="Fine-tune pretrained vision models on Ray, from one spec.",
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help: it starts faster and pipes cleanly
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
for verbs in (training, sweeps, rates, jobs, clusters, results, exporting, inference, runs, watch, data, health):
    verbs.add_verbs(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"tltrain {version('tltrain')}")
        raise typer.Exit


@app.callback()
def _global_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Show more of what happens.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Show errors alone.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    if verbose and quiet:
        raise typer.BadParameter("--verbose and --quiet exclude each other")
    messages.set_up_logging(verbose - quiet)


def main() -> None:
    """Run the program on sys.argv and exit with its code."""
    render.set_up_streams()
    app()
