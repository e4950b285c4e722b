"""The verbs around images: data check, data pack."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tltrain.cli.arguments import AsJson, Sets
from tltrain.environment import num_cores
from tltrain.errors import DataError, Problem, SpecError

if TYPE_CHECKING:
    from tltrain.data.parts import Parts

data = typer.Typer(name="data", help="Look at images before they are used, and pack them.", no_args_is_help=True)
Source = Annotated[str, typer.Argument(metavar="SOURCE", help="A spec, or images as in data.train of one.")]
SplitNames = Annotated[
    list[str] | None,
    typer.Option("--split", metavar="SPLIT", help="train, val or test; or for example test=photos/test."),
]
Workers = Annotated[
    int | None, typer.Option("--workers", metavar="N", min=1, help="Threads; one per CPU core if left out.")
]


def add_verbs(app: typer.Typer) -> None:
    """Add the verbs of this file to the program."""
    app.add_typer(data)


@data.command()
def check(
    source: Source,
    splits: SplitNames = None,
    sets: Sets = None,
    page: Annotated[Path | None, typer.Option("--page", metavar="FILE", help="Write a page with examples.")] = None,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Look at every image: what is there, and what would break a run."""
    from tltrain.cli.data_views import check_lines
    from tltrain.cli.run_tables import width
    from tltrain.data.check import check_parts

    parts = _opened(source, splits, sets)
    with _counted("images checked", sum(map(len, parts.splits.values()))) as advance:
        findings, problems = check_parts(parts, num_threads=workers or num_cores(), advance=advance)
    findings = {"source": source, **findings}
    print(json.dumps(findings, indent=2) if as_json else "\n".join(check_lines(findings, width())))
    if page is not None:
        _write_page(page, findings, parts)
    if problems:
        raise DataError(problems)


@data.command()
def pack(
    source: Source,
    out: Annotated[str, typer.Argument(metavar="OUT", help="A folder, or s3://, gs://, ... address.")],
    splits: SplitNames = None,
    sets: Sets = None,
    shard_mb: Annotated[
        int, typer.Option("--shard-mb", metavar="N", min=1, help="Megabytes (2^20 bytes) of images in each shard.")
    ] = 128,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Pack images into Parquet shards; goes on where it was stopped."""
    from tltrain.data.pack import pack_split
    from tltrain.storage import Folder

    parts, folder = _opened(source, splits, sets), Folder.open(out)
    if parts.problems:
        raise DataError(parts.problems)
    packed = {}
    for name, split in parts.splits.items():
        place = folder if len(parts.splits) == 1 else folder.child(name)
        with _counted(f"{name}: images packed", len(split)) as advance:
            done = pack_split(
                split,
                parts.classes,
                place,
                num_threads=workers or num_cores(),
                shard_bytes=shard_mb << 20,
                advance=advance,
            )
        packed[name] = {"uri": place.uri.partition("?")[0], **vars(done)}
    if as_json:
        print(json.dumps(packed, indent=2))
        return
    for name, done in packed.items():
        kept = f", {done['num_kept']} of them there already" if done["num_kept"] else ""
        size = f"{done['num_bytes'] / 2**20:.1f} MiB"
        typer.echo(f"{name}: {done['num_images']:,} images in {done['num_shards']} shards, {size}{kept}: {done['uri']}")


def _opened(source: str, splits: list[str] | None, sets: list[str] | None) -> Parts:
    """The splits that are asked for. Raises DataError where none can be opened."""
    from tltrain.data.parts import open_parts, spec_of

    spec, names = spec_of(source, splits or (), sets or ())
    parts = open_parts(spec, names)
    if not parts.splits:
        raise DataError(parts.problems)
    return parts


def _write_page(path: Path, findings: dict, parts: Parts) -> None:
    from tltrain.data.samples import sample_images
    from tltrain.report.data_page import build_page

    try:
        path.write_text(build_page(findings, sample_images(parts.splits, parts.classes, findings)), encoding="utf-8")
    except OSError as error:
        reason = error.strerror or str(error)
        raise SpecError(Problem(f"cannot be written: {reason}", "Check the path", str(path))) from error
    typer.echo(f"Wrote {path}", err=True)


@contextlib.contextmanager
def _counted(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield what is told how many are done; a terminal shows that as a bar."""
    if not sys.stderr.isatty() or logging.getLogger("tltrain").level > logging.INFO:
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)
