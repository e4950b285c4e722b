"""Hostile layouts, tables, archives and specs, built into a folder by the words of `expected.yaml` or by name."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hostile_images import PHOTO, encoded

PNG = encoded(PHOTO.resize((4, 4)), "PNG")


def build(root: Path, entries: list[str]) -> None:
    """Make files below `root`, one for each entry.

    `a/1.png` is an image (a text where the name ends otherwise), `a/` a folder, `a/1.png = text` a file with a text,
    `a/1.png -> target` a link, `| a/1.png` a named pipe, `% a/\\xff.png` an image with bytes in its name that are
    written as escapes, `a/1.png * 12` twelve entries with numbers in front of their names.
    """
    for entry in entries:
        path, star, count = entry.partition(" * ")
        head, slash, name = path[:-1].rpartition("/")
        numbered = [f"{head}{slash}{number:02d}-{name}{path[-1]}" for number in range(int(count))] if star else [path]
        for one in numbered:
            _build_one(root, one)


def _build_one(root: Path, entry: str) -> None:
    if entry.startswith("| "):
        os.mkfifo(_place(root, entry[2:]))
    elif entry.startswith("% "):
        name = entry[2:].encode("latin-1").decode("unicode_escape").encode("latin-1")
        place = os.path.join(os.fsencode(root), name)
        os.makedirs(os.path.dirname(place), exist_ok=True)
        Path(os.fsdecode(place)).write_bytes(PNG)
    elif " -> " in entry:
        path, _, target = entry.partition(" -> ")
        _place(root, path).symlink_to(target)
    elif " = " in entry:
        path, _, text = entry.partition(" = ")
        _place(root, path).write_text(text)
    elif entry.endswith("/"):
        (root / entry).mkdir(parents=True, exist_ok=True)
    else:
        _place(root, entry).write_bytes(PNG if entry.lower().endswith((".png", ".jpg")) else b"text")


def _place(root: Path, path: str) -> Path:
    place = root / path
    place.parent.mkdir(parents=True, exist_ok=True)
    return place


# Parquet tables by name


def _images(count: int = 2) -> pa.Array:
    return pa.array([PNG] * count, pa.binary())


def _with_classes(table: pa.Table, classes: bytes) -> pa.Table:
    return table.replace_schema_metadata({"classes": classes})


TABLES: dict[str, Callable[[], pa.Table]] = {
    "good": lambda: pa.table({"image": _images(), "label": ["a", "b"]}),
    "empty": lambda: pa.table({"image": _images(0), "label": pa.array([], pa.string())}),
    "no columns": lambda: pa.table({}),
    "null image": lambda: pa.table({"image": pa.array([PNG, None], pa.binary()), "label": ["a", "b"]}),
    "null label": lambda: pa.table({"image": _images(), "label": ["a", None]}),
    "all labels null": lambda: pa.table({"image": _images(), "label": pa.nulls(2)}),
    "list of images": lambda: pa.table({"image": pa.array([[PNG], [PNG]]), "label": ["a", "b"]}),
    "list of labels": lambda: pa.table({"image": _images(), "label": pa.array([["a"], ["b"]])}),
    "numbers as images": lambda: pa.table({"image": [1, 2], "label": ["a", "b"]}),
    "float labels": lambda: pa.table({"image": _images(), "label": [0.0, 1.0]}),
    "huge labels": lambda: pa.table({"image": _images(), "label": pa.array([0, 2**64 - 1], pa.uint64())}),
    "labels below zero": lambda: pa.table({"image": _images(), "label": [-1, 0]}),
    "labels out of range": lambda: _with_classes(pa.table({"image": _images(), "label": [0, 7]}), b'["a", "b"]'),
    "classes are no list": lambda: _with_classes(pa.table({"image": _images(), "label": [0, 1]}), b'{"a": 1}'),
    "classes are no JSON": lambda: _with_classes(pa.table({"image": _images(), "label": [0, 1]}), b"a, b"),
    "classes twice": lambda: _with_classes(pa.table({"image": _images(), "label": [0, 1]}), b'["a", "a"]'),
    "columns twice": lambda: pa.Table.from_arrays([_images(), pa.array(["a", "b"]), pa.array(["c", "d"])],
                                                  names=["image", "label", "label"]),
    "dictionary labels": lambda: pa.table({"image": _images(), "label": pa.array(["a", "b"]).dictionary_encode()}),
    "struct of wrong types": lambda: pa.table({"image": pa.array([{"bytes": 1}, {"bytes": 2}]), "label": ["a", "b"]}),
    "paths out of the folder": lambda: pa.table({"image": ["../" * 16 + "etc/passwd", "/etc/passwd"],
                                                 "label": ["a", "b"]}),
    "empty label": lambda: pa.table({"image": _images(), "label": ["", "b"]}),
    "label with a line break": lambda: pa.table({"image": _images(), "label": ["a\nb", "b"]}),
    "booleans": lambda: pa.table({"image": _images(), "label": [True, False]}),
}  # fmt: skip


def write_table(path: Path, name: str) -> None:
    """Write a Parquet file."""
    pq.write_table(TABLES[name](), path)


# Tar files by name


def _member(name: str, content: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, content


def _sample(key: str, label: str) -> list[tuple[tarfile.TarInfo, bytes]]:
    return [_member(f"{key}.png", PNG), _member(f"{key}.cls", label.encode())]


GOOD = [*_sample("1", "a"), *_sample("2", "b")]
ARCHIVES: dict[str, list[tuple[tarfile.TarInfo, bytes]]] = {
    "good": GOOD,
    "empty": [],
    "absolute name": [*GOOD, *_sample("/etc/3", "a")],
    "name that leads out": [*GOOD, *_sample("../../3", "a")],
    "symbolic link": [*GOOD, _member("3.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"), _member("3.cls", b"a")],
    "hard link": [*GOOD, _member("3.png", type=tarfile.LNKTYPE, linkname="1.png"), _member("3.cls", b"a")],
    "device": [*GOOD, _member("3.png", type=tarfile.CHRTYPE, devmajor=1, devminor=5), _member("3.cls", b"a")],
    "member twice": [*GOOD, *_sample("1", "a")],
    "no label": [*GOOD, _member("3.png", PNG)],
    "no image": [*GOOD, _member("3.cls", b"a")],
    "empty label": [*GOOD, *_sample("3", " ")],
    "label is no text": [*GOOD, _member("3.png", PNG), _member("3.cls", b"\xff\xfe")],
    "label of a megabyte": [*GOOD, _member("3.png", PNG), _member("3.cls", b"a" * (2**20 + 1))],
    "JSON without label": [*GOOD, _member("3.png", PNG), _member("3.json", b'{"x": 1}')],
    "JSON with a list": [*GOOD, _member("3.png", PNG), _member("3.json", b'{"label": [1]}')],
    "JSON that nests": [*GOOD, _member("3.png", PNG), _member("3.json", b"[" * 100_000)],
    "JSON of a huge number": [*GOOD, _member("3.png", PNG), _member("3.json", b'{"label": ' + b"9" * 10_000 + b"}")],
    "pickle": [*GOOD, _member("3.png", PNG), _member("3.pkl", b"cos\nsystem\n(S'touch /tmp/canary'\ntR.")],
    "size below zero": [],
    "empty image": [*GOOD, _member("3.png"), _member("3.cls", b"a")],
}


def _below_zero(content: bytes) -> bytes:
    """The archive with a size of -1 in the header of its first member, and a checksum that fits."""
    header = bytearray(content[:512])
    header[124:136] = b"\xff" * 12
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + content[512:]


def archive(name: str) -> bytes:
    """The bytes of a tar file."""
    if name == "size below zero":
        return _below_zero(archive("good"))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for info, content in ARCHIVES[name]:
            file.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


# Specs too long to be written out

HEAD = "name: x\nmodel: {name: resnet50}\ndata: {train: a}\n"
SPECS: dict[str, Callable[[], bytes]] = {
    "aliases of aliases": lambda: (
        HEAD + "a: &a [x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    ).encode(),
    "deep list": lambda: (HEAD + "storage: " + "[" * 500).encode(),
    "deep mapping": lambda: (HEAD + "storage: " + "{a: " * 5_000).encode(),
    "deep indentation": lambda: (HEAD + "".join(f"{' ' * i}a:\n" for i in range(900))).encode(),
    "many keys": lambda: (HEAD + "".join(f"k{i}: 1\n" for i in range(4_100))).encode(),
    "long number": lambda: (HEAD + "seed: " + "9" * 5_000).encode(),
    "long exponent": lambda: (HEAD + "optim: {learning_rate: 1e" + "9" * 50 + "}").encode(),
    "long text": lambda: (HEAD + "storage: " + "x" * 50_000).encode(),
    "long key": lambda: (HEAD + "x" * 1_000 + ": 1").encode(),
    "two megabytes": lambda: (HEAD + "#" * 1_100_000).encode(),
    "many comments": lambda: (HEAD + "#\n" * 40_000).encode(),
    "one long flow": lambda: (HEAD + "track: [" + "tensorboard, " * 8_100 + "]").encode(),
    "many documents": lambda: ("---\n" * 5_000).encode(),
    "many tags": lambda: (HEAD + "track: [" + "!!python/object:x y, " * 300 + "]").encode(),
    "open quote": lambda: (HEAD + 'storage: "' + "a\n" * 10_000).encode(),
    "UTF-16": lambda: HEAD.encode("utf-16"),
    "many anchors": lambda: (HEAD + "track: [" + ", ".join(f"&a{i} x" for i in range(300)) + "]").encode(),
}  # fmt: skip
