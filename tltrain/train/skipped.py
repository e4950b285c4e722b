"""Images that cannot be used and are left out where the spec says so: looked for once, listed in the run folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tltrain.data.bad import BadImage
from tltrain.data.base import Source, Split
from tltrain.data.decode import decode
from tltrain.data.examine import of_each
from tltrain.data.sources import open_source
from tltrain.data.splits import Skipped, Splits, load_splits
from tltrain.data.waiting import Patience
from tltrain.environment import num_cores
from tltrain.errors import DataError, Problem, shown
from tltrain.run_folder import RunFolder
from tltrain.spec.schema import DataSpec, Spec
from tltrain.train.distributed import Group

FILE = "skipped.json"
SHOWN = 10
_TELL_EVERY_S = 30.0
_PARTS: tuple[Literal["train", "val", "test"], ...] = ("train", "val", "test")

Tell = Callable[[str], None]
Waits = Callable[[str, float], None]


@dataclass(frozen=True)
class Look:
    """What was found when every image of a source was decoded once.

    key: the key of the spec that names the source. num_images: those that are there, the bad ones included.
    """

    key: str
    source: str
    fingerprint: str
    num_images: int
    bad: tuple[BadImage, ...]

    @property
    def fraction(self) -> float:
        """Share of the images that cannot be used."""
        return len(self.bad) / max(self.num_images, 1)

    def __str__(self) -> str:
        more = f"; and {len(self.bad) - SHOWN} more" if len(self.bad) > SHOWN else ""
        named = "; ".join(f"{shown(one.id)} {one.reason}" for one in self.bad[:SHOWN]) + more
        return f"{len(self.bad)} of {self.num_images} images cannot be used: {named}"


def read_looks(run: RunFolder) -> list[Look]:
    """Return what the run folder knows of its images; nothing where none were looked at."""
    if not run.folder.exists(FILE):
        return []
    return [
        Look(
            one["key"],
            one["source"],
            one["fingerprint"],
            one["images"],
            tuple(BadImage(bad["id"], bad["reason"]) for bad in one["skipped"]),
        )
        for one in run.read_json(FILE)["sources"]
    ]


def write_looks(run: RunFolder, looks: Sequence[Look]) -> None:
    """Keep in the run folder what was found, so that a run that goes on leaves out the same images."""
    sources = [
        {
            "key": look.key,
            "source": look.source,
            "fingerprint": look.fingerprint,
            "images": look.num_images,
            "skipped": as_dicts(look.bad),
        }
        for look in looks
    ]
    run.write_json(FILE, {"sources": sources})


def as_dicts(bad: Sequence[BadImage]) -> list[dict[str, str]]:
    """Return bad images as they stand in JSON."""
    return [{"id": one.id, "reason": one.reason} for one in bad]


def by_source(looks: Sequence[Look]) -> Skipped:
    """Return fingerprint -> ids of the images that are left out, as `load_splits` takes it."""
    return {look.fingerprint: {bad.id for bad in look.bad} for look in looks if look.bad}


def counts(looks: Sequence[Look]) -> dict[str, int]:
    """Return how many images there are and how many of them are left out, as run.json keeps it."""
    return {"num_images": sum(look.num_images for look in looks), "num_skipped": sum(len(look.bad) for look in looks)}


def usable_splits(spec: Spec, known: Sequence[Look], group: Group) -> Splits:
    """Return the splits of a spec without what it leaves out. Every rank of `group` calls it.

    known: what the run folder knows, on rank 0. The driver has looked for leaks.
    """
    looks = look_at_images(spec, known, group)
    return load_splits(spec.data, spec.seed, allow_code=spec.allow_code, check_leakage=False, skipped=by_source(looks))


def look_at_images(
    spec: Spec, known: Sequence[Look], group: Group, tell: Tell = lambda _: None, waits: Waits = lambda *_: None
) -> list[Look]:
    """Decode every image of the spec's sources once and return what was found; nothing where bad ones end a run.

    Every rank of `group` calls it and looks at its share. A source that rank 0 finds in `known` is not looked at again.
    tell: told how it goes. waits: told what is waited for, as `Meter.waits` is. Raises DataError where more than
    `data.max_bad_fraction` of a source cannot be used, LostError where images do not come in time.
    """
    if spec.data.on_bad_image == "fail":
        return []
    patience = Patience(spec.resources.loader_timeout_s, "resources.loader_timeout_s", waits)
    known, looks = group.broadcast(list(known)), []
    for key, uri, source in _sources(spec):
        fingerprint = source.fingerprint()
        found = next((look for look in [*known, *looks] if look.fingerprint == fingerprint), None)
        looks.append(found or Look(key, uri, fingerprint, *_look(source, key, group, tell, patience)))
    check_fractions(looks, spec.data)
    return looks


def _sources(spec: Spec) -> Iterator[tuple[str, str, Source]]:
    """Yield key, address and source of what a spec reads, with all training data that a sweep tries."""
    searched = spec.sweep.space.get("data.train") if spec.sweep else None
    for part in _PARTS:
        listed = searched.values if searched is not None and part == "train" else [getattr(spec.data, part)]
        for uri in listed:
            if isinstance(uri, str):
                source = open_source(uri, spec.data, split=part, allow_code=spec.allow_code)
                yield f"data.{part}", uri, source


def _look(source: Source, key: str, group: Group, tell: Tell, patience: Patience) -> tuple[int, tuple[BadImage, ...]]:
    """Return how many images a source has, and which of them cannot be used."""
    tell(f"Looking at the {len(source):,} images of {key}, once: those that cannot be used are left out")
    positions = range(group.rank, len(source), group.world_size)
    mine = bad_images(
        Split(source, np.arange(len(source)), source.labels),
        positions,
        num_threads=max(num_cores() // group.local_world_size, 1),
        advance=_teller(len(positions), tell),
        patience=patience,
    )
    gathered = group.gather(mine)
    found = sorted((bad for part in gathered for bad in part), key=lambda bad: bad[0]) if gathered else []
    bad = (*source.bad, *(BadImage(source.identity(position), reason) for position, reason in found))
    return len(source) + len(source.bad), group.broadcast(bad)


def _teller(total: int, tell: Tell) -> Callable[[int], None]:
    """Return what is told how many images are done, and says so now and then."""
    done, told_at = 0, time.monotonic()

    def advance(count: int) -> None:
        nonlocal done, told_at
        done += count
        if time.monotonic() - told_at > _TELL_EVERY_S:
            told_at = time.monotonic()
            tell(f"{done:,} of {total:,} images looked at")

    return advance


def bad_images(
    split: Split,
    positions: Sequence[int],
    *,
    num_threads: int,
    advance: Callable[[int], None] = lambda _: None,
    patience: Patience | None = None,
) -> list[tuple[int, str]]:
    """Decode the images at `positions` in threads; return the position of each that cannot be used, and why."""

    def look(position: int) -> tuple[int, str] | None:
        try:
            decode(split.read(position), split.identity(position))
        except DataError as error:
            return position, error.problems[0].what
        except OSError as error:  # of a disk or a network: the image itself may be good
            problem = Problem(f"cannot be read: {error}", "Run the same command again", split.identity(position))
            raise DataError(problem) from error
        return None

    found = of_each(look, positions, split, num_threads=num_threads, advance=advance, patience=patience)
    return [bad for bad in found if bad is not None]


def check_fractions(looks: Sequence[Look], data: DataSpec) -> None:
    """Raise DataError for sources of which more than `data.max_bad_fraction` cannot be used."""
    problems = []
    for look in looks:
        if look.fraction > data.max_bad_fraction:
            action = f"Replace or remove them; data.max_bad_fraction ({data.max_bad_fraction:g}) allows fewer"
            problems.append(Problem(str(look), action, key=look.key))
    if problems:
        raise DataError(problems)


def usable_part(split: Split, source: str, data: DataSpec) -> tuple[Split, Look]:
    """Return other images for a trained model without those that cannot be used, and what was found.

    Raises DataError where more than `data.max_bad_fraction` cannot be used.
    """
    found = bad_images(split, range(len(split)), num_threads=num_cores())
    bad = (*split.source.bad, *(BadImage(split.identity(position), reason) for position, reason in found))
    look = Look("data", source, split.source.fingerprint(), len(split) + len(split.source.bad), bad)
    check_fractions([look], data)
    return split.without({one.id for one in bad}), look
