"""How `tltrain predict` goes: what is opened, who classifies, what is shown."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tltrain.cli.render import is_quiet
from tltrain.cli.run_tables import shortened, width
from tltrain.errors import DataError, SpecError, shown

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from tltrain.data.bad import BadImage
    from tltrain.inference.finished import ModelPlace
    from tltrain.inference.images import Images
    from tltrain.inference.parts import Outcome
    from tltrain.inference.predict import Classified

    Classify = Callable[[Sequence[np.ndarray]], Generator[Classified, None, None]]

FEW = 20
"""As many images are shown in a table."""
PLAIN_INTERVAL_S = 30.0
"""Seconds between two lines that say how far it is, where no bar can be drawn."""


@dataclass(frozen=True)
class Options:
    """What is to be classified, and where."""

    run: str
    sources: tuple[str, ...]
    image_column: str | None
    batch_size: int
    on_ray: bool
    workers: int | None


def predict_to_table(options: Options, *, as_json: bool) -> int:
    """Classify few images, or any number for JSON, and print what they are. Returns the exit code."""
    import numpy as np

    from tltrain.inference.predict import batches_of, collect

    place, images = _open(options)
    count = len(images.source)
    if count > FEW and not as_json:
        what = f"{count:,} images are too many for a table, which takes {FEW}"
        raise SpecError(what, "Add --out FILE.parquet, --out FILE.csv or --json")
    classes = place.card()["classes"]
    requests = list(batches_of(np.arange(count), options.batch_size))
    batches = _classifier(place, images, options)(requests) if requests else ()
    table, bad = collect(list(batches), images.source, classes)
    bad = [*images.bad, *bad]
    if as_json:
        fields = {"run": place.uri, "predictions": _as_json(table), "bad": [vars(one) for one in bad]}
        print(json.dumps(fields, indent=2, ensure_ascii=False))
    elif len(table):
        print("\n".join(table_lines(table, width())))
    return _tell_bad(bad, len(bad), None)


def predict_to_file(options: Options, out: str, *, force: bool, as_json: bool) -> int:
    """Classify images and write what they are into the file `out`. Returns the exit code."""
    from tltrain.inference.parts import PredictionFile

    file = PredictionFile(out)
    place, images = _open(options)
    file.prepare(force=force)
    began = time.monotonic()
    with _progress(len(images.source)) as report:
        classify = _classifier(place, images, options)
        try:
            outcome = file.write(images, place.card()["classes"], place.digest(), options.batch_size, classify, report)
        except KeyboardInterrupt as interrupt:
            raise KeyboardInterrupt("Run the same command again to go on: what is done is kept.") from interrupt
    seconds = time.monotonic() - began
    if as_json:
        bad = [vars(one) for one in outcome.bad]
        print(json.dumps({"run": place.uri, **vars(outcome), "bad": bad, "seconds": round(seconds, 2)}, indent=2))
    else:
        print("\n".join(outcome_lines(outcome, seconds)))
    return _tell_bad(outcome.bad, outcome.num_bad, outcome.bad_uri)


def _open(options: Options) -> tuple[ModelPlace, Images]:
    """Find the model and list the images; what is wrong with either shows before anything large is loaded."""
    from tltrain.inference.finished import find_model
    from tltrain.inference.images import open_images

    place = find_model(options.run)
    run_column = place.data.image_column if place.data else None
    return place, open_images(options.sources, options.image_column, run_column=run_column)


def _classifier(place: ModelPlace, images: Images, options: Options) -> Classify:
    """Return what classifies batches of positions: this process, or Ray Data."""

    def here(requests: Sequence[np.ndarray]) -> Generator[Classified, None, None]:
        from tltrain.inference.finished import open_model
        from tltrain.inference.predict import choose_workers, classify

        num_workers = choose_workers(sum(map(len, requests)), options.batch_size)
        return classify(open_model(place), images.source, requests, num_workers=num_workers)

    def on_ray(requests: Sequence[np.ndarray]) -> Generator[Classified, None, None]:
        from tltrain.engine.predict import classify_on_ray

        sizes = {"batch_size": options.batch_size, "workers": options.workers}
        return classify_on_ray(place, images.source, requests, **sizes)

    return on_ray if options.on_ray else here


def _tell_bad(bad: Sequence[BadImage], count: int, uri: str | None) -> int:
    """Name bad images on stderr. Returns the exit code."""
    if not count:
        return 0
    print(f"{count:,} of the images could not be read{':' if bad else ''}", file=sys.stderr)
    for one in bad[:10]:
        print(f"  {shown(one.id)}: {shown(one.reason)}", file=sys.stderr)
    if count > 10:
        print(f"  and {count - 10:,} more", file=sys.stderr)
    if uri is not None:
        print(f"All of them are listed in {uri}", file=sys.stderr)
    return DataError.exit_code


@contextlib.contextmanager
def _progress(num_images: int) -> Iterator[Callable[[int, int], None]]:
    """Yield what shows how many images are done, and were done before: a bar, or a line now and then."""
    if is_quiet():
        yield lambda done, kept: None
        return
    from tltrain.progress import Bar
    from tltrain.terminal import shown_in_place

    began = told = time.monotonic()
    with shown_in_place() as show:

        def report(done: int, kept: int) -> None:
            nonlocal told
            now = time.monotonic()
            speed = (done - kept) / (now - began)
            left = (num_images - done) / speed if speed else None
            bar = Bar("Images", done / num_images if num_images else 1.0, speed, left)
            if show is not None:
                show([], bar)
            elif now - told >= PLAIN_INTERVAL_S:
                told = now
                print(bar, file=sys.stderr, flush=True)

        yield report


def table_lines(table: pa.Table, columns: int) -> list[str]:
    """Return predictions as lines: for each image its most probable classes, the most probable first."""
    rows = _as_json(table)
    longest = max(len("class"), *(len(top["class"]) for row in rows for top in row["top"]))
    class_width = min(longest, 40)
    name_width = min(max(len("image"), *(len(row["id"]) for row in rows)), max(12, columns - class_width - 17))
    lines = [f"{'image':<{name_width}}  {'class':<{class_width}}  probability"]
    for row in rows:
        name = shortened(row["id"], name_width)
        for top in row["top"]:
            shown = shortened(top["class"], class_width)
            lines.append(f"{name:<{name_width}}  {shown:<{class_width}}  {100 * top['probability']:>9.1f} %")
            name = ""
    return lines


def outcome_lines(outcome: Outcome, seconds: float) -> list[str]:
    """Return what came of it as lines."""
    new = outcome.num_images - outcome.num_kept
    speed = f" in {seconds:.1f} s, {new / seconds:,.0f} images/s" if new > 0 else ""
    kept = f" ({outcome.num_kept:,} of them earlier)" if outcome.num_kept else ""
    return [f"Images      {outcome.num_images:,} classified{kept}{speed}", f"Written     {outcome.uri}"]


def _as_json(table: pa.Table) -> list[dict[str, Any]]:
    """Return each image's id and its most probable classes."""
    names = [name for name in table.column_names if name.startswith("prediction")]
    pairs = [(name, name.replace("prediction", "probability")) for name in names]
    return [
        {"id": row["id"], "top": [{"class": row[name], "probability": row[share]} for name, share in pairs]}
        for row in table.to_pylist()
    ]
