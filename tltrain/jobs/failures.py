"""What a failed job's log says first: which rank failed, in which line of the user's code, and with what error."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

_RANK = re.compile(r"^\[Rank ([\d,]+) Error Snippet\]:$", re.MULTILINE)
_FRAME = re.compile(
    r'^ *File "(?P<path>[^"]+)", line (?P<line>\d+), in (?P<name>.+)(?:\n +(?P<code>\S.*))?$', re.MULTILINE
)
_ERROR = re.compile(r"^(?:[a-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Interrupt|Exit)\b.*$", re.MULTILINE)
_OTHERS_CODE = re.compile(r"/(site|dist)-packages/|/lib/python3[^/]*/|^<|/tltrain/(?!.*/tltrain/)")
_UPLOAD = re.compile(r"^.*/_ray_pkg_[0-9a-f]+/")

# What our own message adds behind an error.
_ADVICE = re.compile(r"\. Run the same command again.*$")

# What the other ranks say when one has failed: their collectives break.
_FOLLOWS = re.compile(r"Connection (closed|reset) by peer|gloo|NCCL|DistBackendError|Timed out waiting")


class _Part(NamedTuple):
    """What one group of ranks said; without ranks, the whole log."""

    ranks: str
    text: str


def failure_lines(log: str) -> list[str]:
    """Lines to show before anything else; empty where the log holds no traceback."""
    parts = list(_parts(log))
    first = next((part for part in parts if not _FOLLOWS.search(_error_of(part.text))), parts[0])
    error, frame = _error_of(first.text), _frame_of(first.text)
    if not error and frame is None:
        return []
    who = f"Rank {first.ranks.partition(',')[0]} failed first" if first.ranks else "The program failed"
    shown = [f"{who}: {error}" if error else f"{who}."]
    if frame is not None:
        shown.append(f"  {_UPLOAD.sub('', frame['path'])}:{frame['line']} in {frame['name']}")
        shown += [f"    {frame['code']}"] if frame["code"] else []
    return shown


def _parts(log: str) -> Iterator[_Part]:
    starts = list(_RANK.finditer(log))
    ends = [start.start() for start in starts[1:]] + [len(log)]
    if not starts:
        yield _Part("", log)
    for start, end in zip(starts, ends, strict=False):
        yield _Part(start[1], log[start.end() : end])


def _error_of(text: str) -> str:
    """The last line that names an exception: a traceback ends with it."""
    last = next(reversed(list(_ERROR.finditer(text))), None)
    return _ADVICE.sub("", last[0])[:500] if last else ""


def _frame_of(text: str) -> re.Match[str] | None:
    """The innermost line of the user's own code, or of ours where there is none."""
    frames = list(_FRAME.finditer(text))
    own = [frame for frame in frames if not _OTHERS_CODE.search(frame["path"])]
    ours = [frame for frame in frames if "/tltrain/" in frame["path"] and "-packages/" not in frame["path"]]
    return next(reversed(own or ours), None)
