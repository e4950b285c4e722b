"""TensorBoard's event files in the run folder: `tensorboard/`, with a folder for each trial of a sweep."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tltrain.scratch import TENSORBOARD, scratch_folder
from tltrain.storage import Folder
from tltrain.track.entries import Entry

FOLDER = "tensorboard"


class TensorBoard:
    """Writes event files through tensorboardX, which Ray Tune brings along. Raises ImportError without it.

    In a storage that is no local disk each file is put anew after it has grown: objects there do not grow.
    """

    def __init__(self, run: Folder) -> None:
        self._module: Any = importlib.import_module("tensorboardX")
        self._target = run.child(FOLDER)
        self._scratch = contextlib.ExitStack()
        local = self._target.local_path
        self._root = local or Path(self._scratch.enter_context(scratch_folder(TENSORBOARD)))
        self._entries: dict[str, Entry] = {}
        self._writers: dict[str, Any] = {}
        self._last: dict[str, Mapping[str, float]] = {}
        self._put: dict[Path, int] = {}
        """File in the temporary folder -> its size when it was put into the storage."""

    def begin(self, entry: Entry, known: str | None) -> tuple[str, bool]:
        """The id is the name of a folder in `tensorboard/`, `.` for the run itself."""
        id = known or ("." if entry.parent is None else entry.title)
        self._entries[id] = entry
        return id, known is None

    def last_step(self, id: str) -> int | None:
        """Event files are only written."""
        return None

    def log(self, id: str, step: int, values: Mapping[str, float]) -> None:
        """Write a scalar for each value."""
        writer = self._writer(id, step)
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()
        self._last[id] = {**self._last.get(id, {}), **values}

    def _writer(self, id: str, step: int) -> Any:
        """Return the writer of an entry. A file that goes on after another drops what that has from `step` on."""
        if id not in self._writers:
            folder = self._root if id == "." else self._root / id
            self._writers[id] = self._module.SummaryWriter(str(folder), purge_step=step)
        return self._writers[id]

    def add_file(self, id: str, path: Path, folder: str) -> None:
        """Files stand in the run folder already."""

    def keep(self) -> None:
        """Put the files that have grown where the run folder is."""
        if self._target.local_path is not None:
            return
        for path in sorted(self._root.rglob("*tfevents*")):
            if (size := path.stat().st_size) != self._put.get(path):
                self._target.child(*path.relative_to(self._root).parts[:-1]).write_file(path.name, path)
                self._put[path] = size

    def end(self, id: str, state: str) -> None:
        """Write the parameters and last metrics for the HPARAMS tab, and close the file."""
        writer = self._writers.pop(id, None)
        if writer is None:
            return
        if self._entries[id].kind != "sweep":
            shown = {key: value for key, value in self._last[id].items() if key.startswith(("val/", "test/"))}
            for summary in self._module.summary.hparams(dict(self._entries[id].parameters), shown):
                writer.file_writer.add_summary(summary)
        writer.close()

    def close(self) -> None:
        """Put the files where the run folder is, and delete those that they were written as."""
        self.keep()
        self._scratch.close()
