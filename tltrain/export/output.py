"""The folder that an export is written into: it appears whole, once all in it has been checked."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tltrain.disk import flush_folder, make_folder
from tltrain.errors import Problem, SpecError, StorageError

OWN_FILES = frozenset(
    {
        "model.json",
        "model.safetensors",
        "model.pt2",
        "model.onnx",
        "model.onnx.data",
        "config.json",
        "preprocessor_config.json",
        "README.md",
    }
)
"""Names of what exports write; a folder with anything else in it is never replaced."""


@contextmanager
def new_folder(out: Path, *, force: bool) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `out` when the block ends, and is deleted where it fails.

    force: replace an earlier export there. Raises SpecError where `out` may not be written, StorageError where it
    cannot be.
    """
    check_free(out, force=force)
    out = out.expanduser().absolute()
    temporary = out.parent / f".{out.name}.{secrets.token_hex(4)}.tmp"
    try:
        make_folder(temporary)
        yield temporary
        _flush(temporary)
        _take_place(temporary, out)
    except OSError as error:
        what = f"the export cannot be written: {error.strerror or error}"
        raise StorageError(Problem(what, "Check the path and the space left there", str(out))) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_free(out: Path, *, force: bool) -> None:
    """Raise SpecError where `out` is there already and must not be replaced."""
    if "://" in str(out) or ":/" in str(out):
        what = "exports are written to the local disk"
        raise SpecError(Problem(what, "Name a local folder, and copy it from there", str(out)))
    if not os.path.lexists(out):
        return
    if not out.is_dir() or out.is_symlink():
        raise SpecError(Problem("this is no folder", "Name another with --out", str(out)))
    if not force:
        raise SpecError(Problem("the folder is there already", "Name another with --out, or add --force", str(out)))
    others = sorted({path.name for path in out.iterdir()} - OWN_FILES)
    if others:
        what = f"the folder holds what no export has written: {', '.join(others[:5])}"
        raise SpecError(Problem(what, "Name another with --out", str(out)))


def _flush(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    flush_folder(folder)


def _take_place(temporary: Path, out: Path) -> None:
    """Rename the new folder to `out`; one that is there steps aside first and is deleted afterwards."""
    aside = temporary.with_suffix(".old")
    if out.exists():
        out.rename(aside)
    temporary.rename(out)
    flush_folder(out.parent)
    if aside.exists():
        shutil.rmtree(aside)
