"""What travels to the cluster: an allow-list of files, packed into one zip that is the same for the same files."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tltrain.errors import Problem, SpecError

SPEC_NAME = "spec.yaml"
MAX_BYTES = 100 << 20
"""What Ray's dashboard takes in one HTTP request."""

# Left out of a folder that is uploaded; a file or folder that is itself named with --upload is taken.
LEFT_OUT_FOLDERS = ("data", "runs", "wandb", "mlruns", "node_modules", "venv", "dist", "build")
LEFT_OUT_SUFFIXES = (
    *(".parquet", ".pq", ".arrow", ".feather", ".ipc", ".zip", ".tar", ".gz", ".tgz", ".h5", ".npy", ".npz"),
    *(".pt", ".pth", ".ckpt", ".safetensors", ".pyc", ".sqlite", ".log"),
    *(".env", ".pem", ".key", ".ppk", ".p12", ".pfx", ".jks", ".kdbx"),
)
LEFT_OUT_NAMES = ("credentials", "credentials.json", "id_rsa", "id_dsa", "id_ecdsa", "id_ed25519")
LEFT_OUT_RUN = "run.json"  # a folder with this file in it is a run's

_DATE = (1980, 1, 1, 0, 0, 0)
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Entry:
    """One file of the upload: its name there, and where its bytes come from."""

    name: str
    source: Path | bytes

    @property
    def size(self) -> int:
        """Bytes, before they are packed."""
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size


@dataclass(frozen=True)
class Package:
    """A packed upload, named by its contents as Ray names its own."""

    content: bytes = field(repr=False)
    files: tuple[tuple[str, int], ...]
    """(name, bytes before packing), sorted by name."""
    left_out: tuple[str, ...] = ()
    """Paths below a named folder that were not taken."""

    @property
    def name(self) -> str:
        """File name that the cluster stores it under."""
        return f"_ray_pkg_{hashlib.sha256(self.content).hexdigest()[:40]}.zip"


def pack(entries: Iterable[Entry], left_out: Iterable[str] = (), *, limit: int = MAX_BYTES) -> Package:
    """Pack files; the same files give the same bytes. Raises SpecError where the zip is larger than `limit`."""
    ordered = sorted(entries, key=lambda entry: entry.name)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for entry in ordered:
            info = zipfile.ZipInfo(entry.name, _DATE)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.create_system, info.external_attr = 3, 0o100644 << 16
            with archive.open(info, "w", force_zip64=True) as target:
                for chunk in _chunks(entry):
                    target.write(chunk)
                    if buffer.tell() > limit:
                        raise SpecError(_too_large(ordered, limit))
    return Package(buffer.getvalue(), tuple((entry.name, entry.size) for entry in ordered), tuple(left_out))


def unpack(content: bytes) -> list[Entry]:
    """The files of a packed upload."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return [Entry(name, archive.read(name)) for name in archive.namelist()]


def package_entries(folder: Path | None = None) -> list[Entry]:
    """The files of the tltrain package itself, for clusters whose image lacks it."""
    folder = folder or Path(__file__).resolve().parent.parent
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix in (".py", ".css", ".js", ".typed")]
    return [Entry(f"tltrain/{path.relative_to(folder).as_posix()}", path) for path in files]


def user_entries(paths: Sequence[Path]) -> tuple[list[Entry], list[str]]:
    """The files named with --upload, below their own last name, and what was left out of the folders among them.

    Raises SpecError with all problems: a path that is not there, or two that would have the same name.
    """
    entries: list[Entry] = []
    left_out: list[str] = []
    problems: list[Problem] = []
    names: set[str] = {SPEC_NAME, "tltrain"}
    for path in map(_absolute, paths):
        if not path.exists():
            problems.append(Problem("there is no such file or folder", "Check --upload", str(path)))
        elif not path.name or path.name in names:
            what = f"an upload may not be called {path.name!r}: another file of the upload is"
            problems.append(Problem(what, "Rename it, or name a folder above it", str(path)))
        elif path.is_file():
            entries.append(Entry(path.name, path))
        else:
            found, skipped = _folder(path)
            entries += found
            left_out += skipped
        names.add(path.name)
    if problems:
        raise SpecError(problems)
    return entries, left_out


def new_place(path: str, uploads: Sequence[Path]) -> str | None:
    """Where an absolute path is found in the upload, relative to its top; None where it is not uploaded."""
    for upload in map(_absolute, uploads):
        if Path(path).is_relative_to(upload):
            return Path(upload.name, Path(path).relative_to(upload)).as_posix()
    return None


def size_text(size: float) -> str:
    """Bytes as people read them."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def _folder(root: Path) -> tuple[list[Entry], list[str]]:
    entries: list[Entry] = []
    left_out: list[str] = []
    for folder, folders, files in os.walk(root):
        here = Path(folder)
        for name in sorted(folders):
            if _leaves_out_folder(here / name):
                folders.remove(name)
                left_out.append(f"{here / name}/")
        folders.sort()
        for path in (here / name for name in sorted(files)):
            if path.is_symlink() or _leaves_out_file(path.name.lower()):
                left_out.append(str(path))
            else:
                entries.append(Entry(Path(root.name, path.relative_to(root)).as_posix(), path))
    return entries, left_out


def _leaves_out_file(name: str) -> bool:
    return name.startswith(".") or name.endswith(LEFT_OUT_SUFFIXES) or name in LEFT_OUT_NAMES


def _leaves_out_folder(path: Path) -> bool:
    name = path.name
    hidden = name.startswith(".") or name in LEFT_OUT_FOLDERS or name == "__pycache__" or name.endswith(".egg-info")
    return hidden or path.is_symlink() or (path / LEFT_OUT_RUN).exists()


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path.expanduser()))


def _chunks(entry: Entry) -> Iterator[bytes]:
    if isinstance(entry.source, bytes):
        yield entry.source
        return
    try:
        with entry.source.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                yield chunk
    except OSError as error:
        reason = error.strerror or str(error)
        raise SpecError(Problem(f"cannot be read: {reason}", "Check its permissions", str(entry.source))) from error


def _too_large(entries: Sequence[Entry], limit: int) -> Problem:
    largest = sorted(entries, key=lambda entry: -entry.size)[:3]
    named = ", ".join(f"{entry.name} ({size_text(entry.size)})" for entry in largest)
    what = f"the upload is larger than the {size_text(limit)} that Ray takes; the largest files are {named}"
    return Problem(what, "Put data where the cluster reads it (a shared disk, s3://...) and name less with --upload")
