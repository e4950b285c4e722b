"""The image folder: one folder per class, on this machine or on a remote file system."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np
from pyarrow import fs

from tltrain.data.bad import BadImage
from tltrain.data.base import FilesSource
from tltrain.data.decode import SUFFIXES
from tltrain.data.locations import Location
from tltrain.errors import DataError, Problem, shown

LAYOUT = "The layout is FOLDER/CLASS/image.jpg: one folder per class, named like the class."
_CLUTTER = {"__macosx", "thumbs.db", "desktop.ini", "@eadir", "icon\r"}
_SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
_SHOWN = 10


class Refusal(NamedTuple):
    """Why something in a folder is not taken: as one says it of one and of several, and what to do about it."""

    one: str
    many: str
    action: str


_BROKEN = Refusal("the link is broken", "links are broken", "Restore what is linked to, or remove the link")
_LEAVING = Refusal(
    "the link leaves the data folder",
    "links leave the data folder",
    "Copy the target into the folder, or list the files in a CSV instead",
)
_CIRCLE = Refusal("the link leads back to a folder it stands in", "links lead back to their folder", "Remove the link")
_CLOSED = Refusal("it may not be read", "files and folders may not be read", "Change the permissions")
_SPECIAL = Refusal(
    "it is a pipe, a socket or a device", "entries are pipes, sockets or devices", "Remove what is no file"
)
_NAME = Refusal("the name is no UTF-8 text", "names are no UTF-8 text", "Rename what is called so")


class Refused(NamedTuple):
    """Something in a folder that is not taken. path: relative to the folder, as UTF-8. detail: of the reason."""

    path: str
    refusal: Refusal
    detail: str = ""

    @property
    def reason(self) -> str:
        """Why, in words."""
        return self.refusal.one + self.detail


@dataclass
class Tree:
    """What a folder holds: relative paths of files with their sizes in bytes, of folders, and what is not taken."""

    files: dict[str, int] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)


def is_clutter(path: str) -> bool:
    """Return whether a relative path is hidden or left behind by an operating system."""
    return any(part.startswith(".") or part.lower() in _CLUTTER for part in path.split("/"))


def list_tree(root: Location) -> Tree:
    """List all files and folders under `root`, without hidden ones."""
    tree = Tree()
    if root.is_local:
        top = os.path.realpath(root.path)
        _list_local(top, tree)
    else:
        _list_remote(root, tree)
    return tree


def _list_remote(root: Location, tree: Tree) -> None:
    for info in root.list_all():
        relative = info.path[len(root.path) :].lstrip("/")
        if is_clutter(relative):
            continue
        if info.type == fs.FileType.Directory:
            tree.folders.append(relative)
        else:
            tree.files[relative] = info.size
            tree.folders.extend(str(parent) for parent in PurePosixPath(relative).parents if parent.name)
    tree.folders = sorted(set(tree.folders))


def _list_local(top: str, tree: Tree) -> None:
    """List a folder of this machine with all below it."""
    waiting: list[tuple[str, tuple[str, ...]]] = [("", (top,))]
    while waiting:
        # `above` holds the real path of the folder and those of the folders it stands in, against circles.
        prefix, above = waiting.pop()
        for entry in _entries(above[-1], prefix, tree):
            real = os.path.realpath(entry.path) if entry.is_symlink() else entry.path
            relative = prefix + _as_text(entry.name)
            if _take(entry, relative, top, real, above, tree):
                waiting.append((relative + "/", (*above, real)))
    tree.folders.sort()
    tree.refused.sort(key=lambda one: one.path)


def _take(entry: os.DirEntry[str], relative: str, top: str, real: str, above: tuple[str, ...], tree: Tree) -> bool:
    """Note what an entry is; return whether it is a folder to be looked into."""
    refusal, detail = _refusal(entry, top, real, above)
    is_image = _suffix(relative) in SUFFIXES
    if refusal is None and relative.rpartition("/")[2] != entry.name and (is_image or entry.is_dir()):
        refusal = _NAME
    if refusal is None and is_image and not (entry.is_dir() or entry.is_file()):
        refusal = _SPECIAL
    if refusal is not None:
        tree.refused.append(Refused(relative, refusal, detail))
    elif entry.is_dir():
        tree.folders.append(relative)
        return True
    elif entry.is_file():
        _add_file(entry, relative, tree)
    return False


def _add_file(entry: os.DirEntry[str], relative: str, tree: Tree) -> None:
    try:
        tree.files[relative] = entry.stat().st_size
    except PermissionError:  # the folder may be listed, but nothing in it looked at
        tree.refused.append(Refused(relative, _CLOSED))


def _as_text(name: str) -> str:
    """A name with the bytes escaped that are no UTF-8; other names stay what they are."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _entries(folder: str, prefix: str, tree: Tree) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from sorted((e for e in entries if not is_clutter(e.name)), key=lambda e: e.name)
    except PermissionError:
        tree.refused.append(Refused(prefix.rstrip("/"), _CLOSED))


def _refusal(entry: os.DirEntry[str], top: str, real: str, above: tuple[str, ...]) -> tuple[Refusal | None, str]:
    """Return what keeps a link from being followed, with its detail."""
    if not entry.is_symlink():
        return None, ""
    if not os.path.exists(real):
        return _BROKEN, ""
    if os.path.commonpath([top, real]) != top:
        return _LEAVING, f" for {real}"
    return (_CIRCLE, "") if real in above else (None, "")


def open_folder(root: Location, key: str, *, skip_bad: bool = False) -> FilesSource:
    """Read the list of images of a folder with one folder per class; images may stand deeper inside a class.

    Raises DataError for links that are broken or leave the folder and for what else cannot be taken, for classes
    without images, and for other layouts. `key` is the key of the spec that named the folder. skip_bad: whether images
    that cannot be taken are listed in the source's `bad` instead.
    """
    tree = list_tree(root)
    bad = [one for one in tree.refused if skip_bad and "/" in one.path and _suffix(one.path) in SUFFIXES]
    _refuse(root, [one for one in tree.refused if one not in bad])
    classes = sorted(folder for folder in tree.folders if "/" not in folder)
    images = sorted((p for p in tree.files if _suffix(p) in SUFFIXES), key=lambda p: p.split("/"))
    _check_layout(root, key, classes, images)
    inside = [path for path in images if "/" in path]
    _check_classes(root, key, classes, inside)
    number = {name: i for i, name in enumerate(classes)}
    labels = np.array([number[path.split("/", 1)[0]] for path in inside], dtype=np.int64)
    sizes = np.array([tree.files[path] for path in inside], dtype=np.int64)
    warnings = _warnings(root, tree, len(images) - len(inside))
    source = FilesSource(root, inside, sizes, labels, classes, warnings)
    source.bad = tuple(BadImage(one.path, one.reason) for one in bad)
    return source


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _refuse(root: Location, refused: Sequence[Refused]) -> None:
    """Raise a DataError with one problem for each kind of what is not taken, if there is any."""
    problems = []
    for refusal in dict.fromkeys(one.refusal for one in refused):
        alike = [one for one in refused if one.refusal is refusal]
        if len(alike) == 1:
            problems.append(Problem(alike[0].reason, refusal.action, where=root.child(alike[0].path)))
        else:
            what = f"{len(alike)} {refusal.many}: {_some([one.path for one in alike])}"
            problems.append(Problem(what, refusal.action, where=str(root)))
    if problems:
        raise DataError(problems)


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(shown, names[:_SHOWN])) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _check_layout(root: Location, key: str, folders: list[str], images: list[str]) -> None:
    if not folders:
        what = "holds images but no class folders" if images else "holds no class folders and no images"
        raise DataError(Problem(f"{root} {what}", LAYOUT, key=key))
    split = key.rpartition(".")[2]
    if found := _splits_among(folders, images):
        hint = found.get(split, found["train"])
        action = f"Name the part you mean: {key}: {os.path.join(str(root), hint)}"
        parts = ", ".join(sorted(found.values()))
        raise DataError(Problem(f"{root} holds the folders of several splits ({parts})", action, key=key))


def split_folders(root: Location) -> dict[str, str]:
    """Return the folders of splits in `root` by the names train, val and test; empty where there are none."""
    tree = list_tree(root)
    return _splits_among([folder for folder in tree.folders if "/" not in folder], tree.files)


def _splits_among(folders: Iterable[str], files: Iterable[str]) -> dict[str, str]:
    found = {name: folder for name, names in _SPLIT_NAMES.items() for folder in folders if folder.lower() in names}
    images = [path for path in files if _suffix(path) in SUFFIXES]
    is_split = "train" in found and len(found) > 1 and not _has_images(found["train"], images)
    return found if is_split else {}


def _has_images(folder: str, images: Iterable[str]) -> bool:
    """Return whether images stand right in `folder`, as they do in a class."""
    return any(path.rpartition("/")[0] == folder for path in images)


def _check_classes(root: Location, key: str, classes: list[str], images: list[str]) -> None:
    filled = {path.split("/", 1)[0] for path in images}
    empty = [name for name in classes if name not in filled]
    if not empty:
        return
    action = f"Put images in or remove what is empty. Readable are {', '.join(sorted(SUFFIXES))}"
    many = f"{len(empty)} class folders hold no images: {_some(empty)}"
    what = many if len(empty) > 1 else f"the class folder {empty[0]} holds no images"
    raise DataError(Problem(what, action, where=str(root), key=key))


def _warnings(root: Location, tree: Tree, num_loose: int) -> list[str]:
    warnings = []
    ignored = Counter(_suffix(path) or "no suffix" for path in tree.files if _suffix(path) not in SUFFIXES)
    if ignored:
        kinds = ", ".join(f"{suffix} {count}" for suffix, count in ignored.most_common())
        warnings.append(f"{root}: {ignored.total()} files that are not images are ignored ({kinds}).")
    if num_loose:
        warnings.append(f"{root}: {num_loose} images outside the class folders are ignored.")
    return warnings
