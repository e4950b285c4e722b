"""The verb watch: a live view of a run, a sweep or a storage, from their files alone."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from tltrain.cli.arguments import AsJson
from tltrain.cli.render import is_quiet
from tltrain.errors import StorageError

if TYPE_CHECKING:
    from tltrain.cli.watching import View, Watcher
    from tltrain.output import Output

LOCAL_INTERVAL_S, REMOTE_INTERVAL_S = 1.0, 5.0
"""Seconds between two looks while something changes, on a local disk and elsewhere."""
LONGEST_INTERVAL_S = 60.0
"""... where nothing changes, or the storage does not answer."""


def add_verbs(app: typer.Typer) -> None:
    """Add the verb of this file to the program."""
    app.command()(watch)


def watch(
    path: Annotated[
        str | None, typer.Argument(metavar="RUN|STORAGE", help="A run, a sweep, or where runs stand.")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Show how it is now, and end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show how runs go, whoever started them; end when they do."""
    from tltrain.cli.runs import default_storage
    from tltrain.cli.watching import make_watcher
    from tltrain.output import Output

    address = default_storage() if path is None else path
    watcher, output = make_watcher(address), Output(quiet=is_quiet())
    if once:
        view = watcher.look()
        print(json.dumps(view.facts, indent=2) if as_json else "\n".join(_whole(view)))
        return
    interval_s = REMOTE_INTERVAL_S if "://" in address else LOCAL_INTERVAL_S
    view = _follow_as_json(watcher, output, interval_s) if as_json else _follow(watcher, output, interval_s)
    for problem in view.problems:
        output.tell(f"error: {problem}")
    raise typer.Exit(view.exit_code)


def _whole(view: View) -> list[str]:
    """A view as lines, with all that can be seen in it now."""
    if view.ending is None:
        return [*view.header, *(view.table or view.news), *([str(view.bar)] if view.bar else [])]
    return [*view.header, *([] if view.table else view.news), *view.ending, *view.problems]


def _follow(watcher: Watcher, output: Output, interval_s: float) -> View:
    """Show views until the end: the table and the bar in place on a terminal, else what is new."""
    with output.live() as (show, is_in_place):
        patience = _Patience(interval_s, output)
        while True:
            view = patience.look(watcher)
            if view is not None:
                _print([*view.header, *([] if is_in_place and view.table else view.news)])
                if view.ending is not None:
                    break
                show(view.table, view.bar)
            patience.wait()
    if list(view.ending) != list(view.news):
        _print(view.ending)
    return view


def _print(texts: Sequence[str]) -> None:
    if texts:
        print("\n".join(texts), flush=True)


def _follow_as_json(watcher: Watcher, output: Output, interval_s: float) -> View:
    """Print the facts as a line each time that they have changed, until the end."""
    patience, before = _Patience(interval_s, output), None
    while True:
        view = patience.look(watcher)
        if view is not None and view.facts != before:
            before = view.facts
            print(json.dumps(view.facts), flush=True)
        if view is not None and view.ending is not None:
            return view
        patience.wait()


class _Patience:
    """Looks less often while nothing changes or nothing answers; on a local disk looking costs nothing."""

    def __init__(self, interval_s: float, output: Output) -> None:
        self._shortest_s = self._interval_s = interval_s
        self._output, self._before, self._is_silent = output, None, False

    def look(self, watcher: Watcher) -> View | None:
        """Return the next view, None where the storage does not answer."""
        try:
            view = watcher.look()
        except StorageError as error:
            if not self._is_silent:
                self._output.tell(f"{error}\nTrying again; Ctrl-C ends this.")
            self._is_silent = True
            self._slow_down()
            return None
        self._is_silent = False
        if view.facts != self._before:
            self._interval_s = self._shortest_s
        elif self._shortest_s > LOCAL_INTERVAL_S:
            self._slow_down()
        self._before = view.facts
        return view

    def _slow_down(self) -> None:
        self._interval_s = min(LONGEST_INTERVAL_S, 1.5 * self._interval_s)

    def wait(self) -> None:
        """Wait until it is time for another look."""
        time.sleep(self._interval_s)
