"""Reading the documentation: its pages, the blocks of code in them, and the commands that they show."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROJECT_DIR = Path(__file__).resolve().parent.parent
PAGES = [PROJECT_DIR / "README.md", *sorted((PROJECT_DIR / "docs").glob("*.md"))]

_FENCED = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=indent)```", re.MULTILINE | re.DOTALL
)
_INDENTED = re.compile(r"(?:\A|(?<=\n\n))(?: {4}[^\n]*\n|\n(?= {4}))+", re.MULTILINE)
_PROGRAMS = r"\.venv/bin/\S+|tltrain|make|pip|python|torchrun|ray|kubectl|docker|curl|git|sky"
_COMMAND = re.compile(rf"(?P<prompt>\$ )?(?P<command>(?:[A-Z_]+=\S+ )*(?:{_PROGRAMS})(?: .*)?)")
_SPAN = re.compile(r"`(tltrain [^`\n]+)`")


@dataclass(frozen=True)
class Block:
    """A block of code: its language (empty where none is said), its text, and the line it begins at, from 1."""

    language: str
    text: str
    line: int


@dataclass(frozen=True)
class Command:
    """A command line that a page shows, without prompt and with its continuation lines joined."""

    page: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"


def blocks(page: Path) -> list[Block]:
    """Return the blocks of code of a page, fenced and indented ones, in order."""
    text = page.read_text("utf-8")
    found = []
    for fence in _FENCED.finditer(text):
        inner = re.sub(rf"^{fence['indent']}", "", fence["text"], flags=re.MULTILINE)
        found.append(Block(fence["language"], inner, text.count("\n", 0, fence.start()) + 2))
    outside = _FENCED.sub(lambda fence: "\n" * fence[0].count("\n"), text)
    for part in _INDENTED.finditer(outside):
        inner = re.sub("^ {4}", "", part[0], flags=re.MULTILINE)
        found.append(Block("", inner, outside.count("\n", 0, part.start()) + 1))
    return sorted(found, key=lambda block: block.line)


def commands_of(block: Block, page: Path) -> Iterator[Command]:
    """Yield the command lines in a block, in order: those behind a prompt where there is one, else all."""
    if block.language in ("", "sh", "bash", "console"):
        joined = re.sub(r"\\\n *", "", block.text)
        has_prompt = re.search(r"^\$ ", joined, re.MULTILINE) is not None
        for number, line in enumerate(joined.splitlines()):
            if (found := _COMMAND.fullmatch(line)) and bool(found["prompt"]) == has_prompt:
                yield Command(page.name, block.line + number, found["command"])


def commands(page: Path) -> Iterator[Command]:
    """Yield the command lines of a page, in order."""
    for block in blocks(page):
        yield from commands_of(block, page)


def spans(page: Path) -> Iterator[str]:
    """Yield the code spans of a page that begin with `tltrain`: a verb, with or without its arguments."""
    yield from _SPAN.findall(page.read_text("utf-8"))


def arguments(command: str) -> list[str] | None:
    """Return what stands behind `tltrain` in a command line, up to a pipe or redirection; None for other programs."""
    words = shlex.split(command, comments=True)
    while words and re.match(r"[A-Z_]+=", words[0]):
        del words[0]
    if not words or Path(words[0]).name != "tltrain":
        return None
    end = next((number for number, word in enumerate(words) if word in (">", ">>", "|", "&&", ";", "<")), len(words))
    return words[1:end]
