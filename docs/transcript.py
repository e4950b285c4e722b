"""Recording a session: commands are run, and written down with what they printed."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path

LIMIT_S, WIDTH = 1800, 120
_PROGRESS = re.compile(r"^[^\n]*\r(?!\n)", re.MULTILINE)  # a line that the next one has overwritten


class Session:
    """Commands run in one folder, with job records and settings of their own.

    text: what has been written down. shown_as: texts that are shown as others, such as the path of a temporary folder.
    """

    def __init__(self, folder: Path, homes: Path, shown_as: Mapping[str, str], path: Path | None = None) -> None:
        """Run in `folder`; XDG's folders stand below `homes`, and programs in `path` come first."""
        self.text = ""
        self._folder, self._shown_as = folder, shown_as
        self._environment = {
            **{name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")},
            **{f"XDG_{kind}_HOME": str(homes / kind.lower()) for kind in ("STATE", "DATA", "CONFIG", "CACHE")},
            "COLUMNS": "80",
            "NO_COLOR": "1",
        }
        if path is not None:
            self._environment["PATH"] = f"{path}:{os.environ['PATH']}"

    def say(self, words: str) -> None:
        """Add a paragraph of explanation."""
        self.text += f"\n{words}\n"

    def run(self, *words: str, may_fail: bool = False, last: int | None = None) -> str:
        """Run a command, write it down with its output (only the `last` lines of it), and return the output."""
        done = self.quietly(*words)
        assert may_fail or done.returncode == 0, done.stdout
        lines = _PROGRESS.sub("", done.stdout).rstrip().splitlines()
        lines = [line if len(line) <= WIDTH else f"{line[:WIDTH]} ..." for line in lines]
        if last is not None and len(lines) > last:
            lines = ["...", *lines[-last:]]
        self.text += "\n```\n" + self._shown("\n".join(["$ " + shlex.join(words), *lines])) + "\n```\n"
        return done.stdout

    def quietly(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command and write nothing down."""
        return subprocess.run(
            words,
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )

    def _shown(self, text: str) -> str:
        for hidden, shown in self._shown_as.items():
            text = text.replace(hidden, shown)
        return text
