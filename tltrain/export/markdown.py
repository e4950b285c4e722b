"""Markdown from what users have named: tables whose cells cannot break them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_SPECIAL = re.compile(r"([\\`*_\[\]<>|#])")
_BREAKS = re.compile(r"\s+")


def plain(text: str) -> str:
    """Return any text as one line that Markdown shows as it is."""
    return _SPECIAL.sub(r"\\\1", _BREAKS.sub(" ", text).strip())


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; cells are Markdown already. All columns but the first are aligned to the right."""
    lines = [list(heads), ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def facts(entries: Iterable[tuple[str, str | None]]) -> str:
    """Return a table of two columns without those that are None; values are plain text."""
    rows = [f"| {name} | {plain(value)} |" for name, value in entries if value is not None]
    return "\n".join(["| | |", "|---|---|", *rows])


def bullets(texts: Iterable[str]) -> str:
    """Return a list."""
    return "\n".join(f"- {text}" for text in texts)
