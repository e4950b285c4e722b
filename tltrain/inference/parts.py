"""A file of predictions that is made in parts, so that one that is cut short goes on where it was."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv as arrow_csv

from tltrain.arrow_files import read_parquet
from tltrain.data.bad import BadImage
from tltrain.data.base import Source
from tltrain.errors import Problem, SpecError
from tltrain.inference.images import Images
from tltrain.inference.predict import Classified, batches_of, collect, schema
from tltrain.lease import hold
from tltrain.scratch import scratch_folder
from tltrain.storage import Folder

SUFFIXES = (".parquet", ".csv")
PART_SIZE = 2048
"""Images of a part, rounded up to whole batches: what is lost at most where a prediction is cut short."""
SHOWN = 10
"""Bad images that are named right away; the file has all."""
_PLAN, _FORMAT = "plan.json", 1
_REASON = "reason"


@dataclass(frozen=True)
class Outcome:
    """What stands in a finished file of predictions."""

    uri: str
    num_images: int
    """Images that were classified."""
    num_kept: int
    """Of these, the ones that an earlier attempt had classified already."""
    num_bad: int
    bad: tuple[BadImage, ...]
    """The first ten images that could not be classified."""
    bad_uri: str | None
    """The file that lists all of them."""


class PredictionFile:
    """The file OUT, the folder OUT.parts beside it until it is finished, and OUT's list of bad images."""

    def __init__(self, out: str) -> None:
        """Raises SpecError for a suffix that is not known."""
        self.folder, self.name = _folder_and_name(out)
        self._stem, dot, suffix = self.name.rpartition(".")
        self._is_csv = suffix.lower() == "csv"
        if f"{dot}{suffix}".lower() not in SUFFIXES or not self._stem:
            raise SpecError(Problem("predictions are written as .parquet or .csv", "Choose such a name", out))
        self._parts_name, self._bad_name = f"{self.name}.parts", f"{self._stem}.bad.csv"

    def prepare(self, *, force: bool) -> None:
        """Make way for a new file. Raises SpecError where one is there, unless `force` is to overwrite it."""
        if force:
            for name in (self.name, self._parts_name, self._bad_name):
                self.folder.delete(name)
        elif self.folder.exists(self.name):
            what, action = "is there already", "Choose another path, or overwrite it with --force"
            raise SpecError(Problem(what, action, self._where(self.name)))

    def write(
        self,
        images: Images,
        classes: Sequence[str],
        digest: str,
        batch_size: int,
        classify: Callable[[list[np.ndarray]], Generator[Classified, None, None]],
        report: Callable[[int, int], None],
    ) -> Outcome:
        """Classify all images but those of parts that are there already, then write the file.

        digest: names the model. classify: gives what came of batches of positions, int64 [b], in any order; it is
        closed however this ends. report: is called with the number of images that are done and were done before.
        Raises SpecError where the parts belong to another model or other images, ResourceError where somebody else
        writes them.
        """
        with hold(self.folder.child(self._parts_name)) as parts:
            size = self._agree(parts, images.source, digest, batch_size)
            count = len(images.source)
            numbers = range(-(-count // size))
            done = {number for number in numbers if parts.exists(_part_name(number))}
            todo = [_positions(number, size, count) for number in numbers if number not in done]
            kept = count - sum(map(len, todo))
            report(kept, kept)
            requests = [chunk for positions in todo for chunk in batches_of(positions, batch_size)]
            if requests:
                with contextlib.closing(classify(requests)) as batches:
                    for number, part in _gathered(_counted(batches, kept, report), size, count):
                        parts.write_bytes(_part_name(number), _encoded(part, images.source, classes))
            outcome = self._merge(parts, len(numbers), images.bad, classes, kept)
            self.folder.delete(self._parts_name)
        return outcome

    def _agree(self, parts: Folder, source: Source, digest: str, batch_size: int) -> int:
        """Return the size of a part: as it was begun, or for a new one whole batches."""
        mine = {"format": _FORMAT, "model": digest, "images": source.fingerprint()}
        if parts.exists(_PLAN):
            before = json.loads(parts.read_bytes(_PLAN))
            different = [key for key, value in mine.items() if before.get(key) != value]
            if different:
                what = f"holds parts of a prediction with another {' and another '.join(different)}"
                action = "Choose another path, or overwrite them with --force"
                raise SpecError(Problem(what, action, self._where(self._parts_name)))
            return before["part_size"]
        size = -(-PART_SIZE // batch_size) * batch_size
        parts.write_bytes(_PLAN, json.dumps({**mine, "part_size": size}).encode())
        return size

    def _merge(
        self, parts: Folder, num_parts: int, known: Sequence[BadImage], classes: Sequence[str], kept: int
    ) -> Outcome:
        """Write the file and the list of bad images from all parts."""
        bad, count = list(known), 0
        with scratch_folder("tltrain-predict-") as folder:
            path = Path(folder, self.name)
            with _writer(path, schema(len(classes)), self._is_csv) as writer:
                for number in range(num_parts):
                    table = read_parquet(parts.read_bytes(_part_name(number)))
                    reasons = table.column(_REASON)
                    good = table.filter(reasons.is_null()).drop_columns([_REASON])
                    writer.write(good)
                    count += len(good)
                    bad += _bad_of(table.filter(reasons.is_valid()))
            self.folder.write_file(self.name, path)
        bad_uri = self._write_bad(bad)
        shown = tuple(bad[:SHOWN])
        return Outcome(self._where(self.name), count, kept, len(bad), shown, bad_uri)

    def _write_bad(self, bad: Sequence[BadImage]) -> str | None:
        if not bad:
            self.folder.delete(self._bad_name)
            return None
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows([("id", _REASON), *((one.id, one.reason) for one in bad)])
        self.folder.write_bytes(self._bad_name, text.getvalue().encode("utf-8", "backslashreplace"))
        return self._where(self._bad_name)

    def _where(self, name: str) -> str:
        return f"{str(self.folder).rstrip('/')}/{name}"


def _folder_and_name(path: str) -> tuple[Folder, str]:
    address, mark, query = path.partition("?") if "://" in path else (path, "", "")
    above, slash, name = address.rpartition("/")
    return Folder.open((above or slash or ".") + mark + query), name


def _part_name(number: int) -> str:
    return f"part-{number:06d}.parquet"


def _positions(number: int, size: int, count: int) -> np.ndarray:
    return np.arange(number * size, min((number + 1) * size, count), dtype=np.int64)


def _size(batches: Sequence[Classified]) -> int:
    return sum(len(batch.positions) + len(batch.bad) for batch in batches)


def _counted(batches: Iterable[Classified], kept: int, report: Callable[[int, int], None]) -> Iterator[Classified]:
    done = kept
    for batch in batches:
        done += _size([batch])
        report(done, kept)
        yield batch


def _gathered(batches: Iterable[Classified], size: int, count: int) -> Iterator[tuple[int, list[Classified]]]:
    """Yield each part's number and batches as soon as it is whole. No batch belongs to two parts."""
    waiting: dict[int, list[Classified]] = {}
    for batch in batches:
        first = int(batch.positions[0]) if len(batch.positions) else next(iter(batch.bad))
        number = first // size
        waiting.setdefault(number, []).append(batch)
        if _size(waiting[number]) == len(_positions(number, size, count)):
            yield number, waiting.pop(number)
    assert not waiting, "an image was left out"


def _encoded(batches: Sequence[Classified], source: Source, classes: Sequence[str]) -> bytes:
    """Return a part as Parquet: predictions in order of position, then bad images with their reason."""
    good, bad = collect(batches, source, classes)
    good = good.append_column(_REASON, pa.nulls(len(good), pa.string()))
    rows = pa.Table.from_pylist([{"id": one.id, _REASON: one.reason} for one in bad], good.schema)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.concat_tables([good, rows]), sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def _bad_of(table: pa.Table) -> list[BadImage]:
    return [BadImage(row["id"], row[_REASON]) for row in table.select(["id", _REASON]).to_pylist()]


def _writer(path: Path, columns: pa.Schema, is_csv: bool) -> Any:
    if is_csv:
        return arrow_csv.CSVWriter(path, columns)
    return pq.ParquetWriter(path, columns, compression="zstd")
