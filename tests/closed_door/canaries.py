"""Canaries: things that leave a mark in a file when somebody runs what stands in them, and texts that would do so."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any


class Canary:
    """Creates a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self._mark,)


def pickled(mark: Path) -> bytes:
    """A pickle that creates `mark` where it is loaded."""
    return pickle.dumps(Canary(mark))


def shell_texts(mark: Path) -> list[str]:
    """Texts that create `mark` where a shell reads them, or a program takes them for options."""
    return [
        f"$(touch {mark})",
        f"`touch {mark}`",
        f"x; touch {mark}",
        f"x && touch {mark} #",
        f"x | touch {mark}",
        f"'; touch {mark}; '",
        f'"; touch {mark}; "',
        f"-oProxyCommand=touch {mark}",
        f"--identity-agent=touch {mark}",
        "${IFS}x > y",
        "*?[x]{a,b}~",
        "\\",
    ]
