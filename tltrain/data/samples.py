"""Small pictures of some images of each class, and of images that are the same, for a page."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from tltrain.data.base import Split
from tltrain.data.decode import decode
from tltrain.errors import DataError

SIDE = 72
"""Longer side of a picture, in pixels."""
MAX_PER_CLASS, MAX_PICTURES, MAX_GROUPS, MAX_IN_GROUP = 8, 480, 12, 4


@dataclass(frozen=True)
class Samples:
    """Pictures as data: URIs, by the image's split and id; and which images stand for each class."""

    pictures: Mapping[tuple[str, str], str]
    of_class: Mapping[str, Sequence[tuple[str, str]]]


def sample_images(splits: Mapping[str, Split], classes: Sequence[str], findings: Mapping[str, Any]) -> Samples:
    """Return pictures for the page of `findings`: of each class as many as MAX_PICTURES leaves, and of duplicates.

    The same images are drawn each time. Images that cannot be used have no picture.
    """
    name, split = next(iter(splits.items()))
    of_class = {one: [(name, split.identity(i)) for i in some] for one, some in _drawn(split, classes).items()}
    wanted = {place for places in of_class.values() for place in places}
    for kind in ("exact", "near"):
        found = findings["duplicates"][kind]
        for group in telling_first(found["groups"])[:MAX_GROUPS] if found else ():
            wanted |= {(one["split"], one["id"]) for one in group[:MAX_IN_GROUP]}
    pictures: dict[tuple[str, str], str] = {}
    for part, its_split in splits.items():
        ids = {identity for its_part, identity in wanted if its_part == part}
        for position in range(len(its_split)) if ids else ():
            if its_split.identity(position) in ids and (picture := _picture(its_split, position)):
                pictures[part, its_split.identity(position)] = picture
    return Samples(pictures, {one: [p for p in places if p in pictures] for one, places in of_class.items()})


def telling_first(groups: Sequence[Sequence[Mapping[str, str]]]) -> list[Sequence[Mapping[str, str]]]:
    """Return groups of duplicates, first those with several labels, then those in several splits."""

    def telling(group: Sequence[Mapping[str, str]]) -> tuple[bool, bool]:
        return len({one["class"] for one in group}) == 1, len({one["split"] for one in group}) == 1

    return sorted(groups, key=telling)


def _drawn(split: Split, classes: Sequence[str]) -> dict[str, list[int]]:
    """Return some positions of each class, chosen by a hash of their ids."""
    present = np.unique(split.labels)[:MAX_PICTURES].tolist()
    count = max(1, min(MAX_PER_CLASS, MAX_PICTURES // max(len(present), 1)))
    drawn = {}
    for number in present:
        members = np.flatnonzero(split.labels == number).tolist()
        ranked = sorted(members, key=lambda i: hashlib.blake2b(split.identity(i).encode(), digest_size=8).digest())
        drawn[classes[number]] = ranked[:count]
    return drawn


def _picture(split: Split, position: int) -> str | None:
    """Return an image as a small JPEG in a data: URI, or None for one that cannot be used."""
    try:
        image = decode(split.read(position), split.identity(position))
    except (DataError, OSError):
        return None
    if max(image.size) < SIDE // 2:
        image = image.resize([2 * side for side in image.size], Image.Resampling.NEAREST)
    image.thumbnail((2 * SIDE, 2 * SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
