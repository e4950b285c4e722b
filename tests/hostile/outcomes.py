"""What comes of a hostile input, as lines: what was read of it, or what a user is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from corpus import HEAD, SPECS, archive, build, write_table
from hostile_images import IMAGES

from tltrain.data.decode import decode
from tltrain.data.sources import open_source
from tltrain.errors import TltrainError, shown
from tltrain.spec.load import load_spec
from tltrain.spec.schema import DataSpec

SHOWN = 6


def of(kind: str, name: str, entry: Mapping[str, Any], root: Path) -> list[str]:
    """The lines that come of the case `name`, made below `root`, which they call ROOT."""
    try:
        lines = [shown(line) for line in KINDS[kind](name, entry, root)]
    except TltrainError as error:
        lines = [str(problem) for problem in error.problems]
    return [line.replace(str(root), "ROOT") for line in lines]


def _image(name: str, _entry: Mapping[str, Any], _root: Path) -> list[str]:
    image = decode(IMAGES[name](), "cats/007.jpg")
    colours = [image.getpixel((0, 0)), image.getpixel((image.width - 1, image.height - 1))]
    return [f"{image.mode} {image.width} x {image.height}, {colours[0]} to {colours[1]}"]


def _layout(_name: str, entry: Mapping[str, Any], root: Path) -> list[str]:
    (root / "data").mkdir()
    build(root / "data", entry["make"])
    return _source(root / "data", entry)


def _csv(_name: str, entry: Mapping[str, Any], root: Path) -> list[str]:
    build(root, ["a/1.png", "b/1.png", "b/2, 3.png"])
    text = entry["text"]
    (root / "labels.csv").write_bytes(text.encode(entry.get("encoding", "utf-8")))
    return _source(root / "labels.csv", entry)


def _table(name: str, entry: Mapping[str, Any], root: Path) -> list[str]:
    write_table(root / "images.parquet", name)
    return _source(root / "images.parquet", entry)


def _archive(name: str, entry: Mapping[str, Any], root: Path) -> list[str]:
    content = archive(entry.get("of", name))
    (root / "shard.tar").write_bytes(content[: entry.get("cut", len(content))])
    return _source(root / "shard.tar", entry)


def _source(path: Path, entry: Mapping[str, Any]) -> list[str]:
    data = DataSpec.model_validate({"train": str(path), **entry.get("data", {})})
    source = open_source(str(path), data, split="train")
    for index in range(len(source)):
        source.read(index)
    named = [f"{source.identity(i)} ({source.classes[source.labels[i]]})" for i in range(min(len(source), SHOWN))]
    more = ["..."] if len(source) > SHOWN else []
    return [
        ", ".join([*named, *more]),
        *(f"warning: {text}" for text in source.warnings),
        *(f"left out: {one.id}: {one.reason}" for one in source.bad),
    ]


def _spec(name: str, entry: Mapping[str, Any], root: Path) -> list[str]:
    path = root / "j.yaml"
    path.write_bytes(SPECS[name]() if name in SPECS else (entry.get("alone", HEAD) + entry["text"]).encode("latin-1"))
    loaded = load_spec(path, entry.get("sets", ()))
    return [f"{key}: {loaded.origins[key]}" for key in entry.get("origins", ())] or ["valid"]


KINDS: dict[str, Callable[[str, Mapping[str, Any], Path], list[str]]] = {
    "images": _image,
    "layouts": _layout,
    "csv": _csv,
    "tables": _table,
    "archives": _archive,
    "specs": _spec,
}
