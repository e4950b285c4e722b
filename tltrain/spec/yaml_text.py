"""YAML text to plain values and the place of each, without running any tag and within fixed bounds."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError
from ruamel.yaml.resolver import VersionedResolver

from tltrain.errors import Problem, SpecError, shown

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_NODES = 8_000
MAX_DIGITS = 100

KeyPath: TypeAlias = tuple[str | int, ...]

_TAG = "tag:yaml.org,2002:"
_SCALAR_TAGS = {_TAG + name for name in ("str", "int", "float", "bool", "null", "timestamp", "value")}
_BASES = {"0o": 8, "0x": 16, "0b": 2}

# The parser's own words are short of advice; the first pattern found in them picks ours.
_SYNTAX_HELP = [
    (
        r"mapping values are not allowed",
        "a colon stands where none can",
        "Check the indentation, or put text with ': ' in quotes",
    ),
    (
        r"could not find expected ':'",
        "a key without a colon",
        "Write `key: value`, and keep the indentation of a section equal",
    ),
    (
        r"expected <block end>",
        "the indentation does not fit the lines above",
        "Keep the keys of a section in one column",
    ),
    (r"unexpected end of stream", "a quote is not closed", "Close it on the same line"),
    (r"expected ',' or '[\]}]'", "a bracket is not closed", "Close it, and put commas between the values"),
    (r"found '<stream end>'", "it ends in the middle of a value", "Close what is open"),
    (r"undefined alias", "an alias without its anchor", "Put text that begins with * in quotes"),
    (r"cannot start any token", "a character that no value can begin with", "Put the value in quotes"),
]


@dataclass
class Document:
    """Plain values of a spec and where each of them, and each key, was written."""

    values: Any = None
    where: str = ""
    places: dict[KeyPath, str] = field(default_factory=dict)
    key_places: dict[KeyPath, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    stand_ins: set[KeyPath] = field(default_factory=set)
    """Where a faulty value was replaced by one that means nothing; the problem is told already."""

    def place(self, path: KeyPath) -> str:
        """Where the value at `path` stands, or the nearest part around it that was written."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, self.where)

    def key_place(self, path: KeyPath) -> str:
        """Where the last key of `path` stands."""
        return self.key_places.get(path) or self.place(path)


def dotted(path: KeyPath) -> str:
    """A path as one dotted key, safe to print."""
    return ".".join(printable(str(part), 80) for part in path)


def printable(text: str, limit: int = 60) -> str:
    """Text on one line: what a terminal cannot show is escaped, what is too long is cut."""
    return shown(text if len(text) <= limit else text[: limit - 3] + "...")


def parse_document(text: str, where: str) -> Document:
    """Read one YAML document; places are `where:line:column`.

    Raises SpecError where the text is no YAML within the bounds; lesser problems are in `Document.problems`.
    """
    return _read(text, where, lambda line, column: f"{where}:{line}:{column}")


def parse_value(text: str, where: str) -> Document:
    """Read one YAML value; every place is `where` itself. Raises SpecError as `parse_document` does."""
    return _read(text, where, lambda line, column: where)


def parse_scalar(text: str) -> Any:
    """What a plain, unquoted scalar means in YAML 1.2: null, a truth value, a number or the text itself."""
    tag = _CoreResolver().resolve(ScalarNode, text, (True, False))
    return _scalar(str(tag), text)


_Place: TypeAlias = Callable[[int, int], str]


def _read(text: str, where: str, place: _Place) -> Document:
    if len(text) > MAX_BYTES:
        raise SpecError(Problem(f"is larger than {MAX_BYTES >> 20} MiB", "A spec has a few lines", where))
    node = _compose(text, place)
    reader = _NodeReader(Document(where=place(1, 1)), place)
    if node is not None:
        reader.document.values = reader.value(node, ())
    return reader.document


class _BoundedComposer(Composer):
    """Stops at documents that are too deep or too large, before they cost memory or the stack."""

    def __init__(self, loader: Any = None) -> None:
        super().__init__(loader=loader)
        self.warn_double_anchors = False  # YAML allows an anchor to be set anew
        self.open_nodes = self.seen_nodes = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.open_nodes += 1
        self.seen_nodes += 1
        if self.open_nodes > MAX_DEPTH or self.seen_nodes > MAX_NODES:
            raise _OutOfBounds(self.parser.peek_event().start_mark, self.open_nodes > MAX_DEPTH)
        node = super().compose_node(parent, index)
        self.open_nodes -= 1
        return node


class _CoreResolver(VersionedResolver):
    """YAML 1.2 whatever a %YAML line says."""

    @property
    def processing_version(self) -> tuple[int, int]:
        return (1, 2)


class _AnyVersion(YAML):
    """Takes every %YAML 1.x line, where the library's own setter ends at 1.0 and 1.3 with an AssertionError."""

    @property
    def version(self) -> None:
        return None

    @version.setter
    def version(self, val: Any) -> None:
        """All versions are read as 1.2, see `_CoreResolver`."""


class _OutOfBounds(Exception):
    def __init__(self, mark: Any, deep: bool) -> None:
        super().__init__()
        self.mark, self.deep = mark, deep


def _compose(text: str, place: _Place) -> Node | None:
    yaml = _AnyVersion(typ="safe", pure=True)
    yaml.Composer = _BoundedComposer
    yaml.Resolver = _CoreResolver
    try:
        return yaml.compose(text)
    except _OutOfBounds as error:
        raise SpecError(_bounds(place(error.mark.line + 1, error.mark.column + 1), error.deep)) from None
    except YAMLError as error:
        raise SpecError(_syntax_problem(error, text, place)) from error
    # Some malformed texts (escapes past the last code point, odd directives) break the parser itself.
    except (ValueError, OverflowError) as error:
        raise SpecError(Problem("is not valid YAML", "Compare it with `tltrain init`", place(1, 1))) from error


def _bounds(where: str, deep: bool) -> Problem:
    if deep:
        return Problem(f"more than {MAX_DEPTH} levels of nesting", "A spec has three or four", where)
    return Problem(f"more than {MAX_NODES:,} values, aliases counted in full", "Shorten it", where)


def _syntax_problem(error: YAMLError, text: str, place: _Place) -> Problem:
    if isinstance(error, ReaderError):
        line = text.count("\n", 0, error.position) + 1
        column = error.position - (text.rfind("\n", 0, error.position) + 1) + 1
        what = f"the character U+{int(error.character):04X} cannot stand in a spec"
        return Problem(what, "Remove it", place(line, column))
    mark = (error.problem_mark or error.context_mark) if isinstance(error, MarkedYAMLError) else None
    where = place(mark.line + 1, mark.column + 1) if mark else place(1, 1)
    said = f"{getattr(error, 'context', '') or ''} {getattr(error, 'problem', '') or ''}".strip()
    if "single document" in said:
        return Problem("a second document begins here", "Keep one spec per file: remove the line ---", where)
    if mark and "\t" in _line_before(text, mark):
        is_indentation = "\t" in _line_before(text, mark)[:-1] or not _head(text, mark).strip()
        what = "a tab stands in the indentation" if is_indentation else "a tab stands here"
        return Problem(what, "Indent with spaces" if is_indentation else "Write a space", where)
    for pattern, what, action in _SYNTAX_HELP:
        if re.search(pattern, said):
            return Problem(f"not valid YAML: {what}", action, where)
    said = printable(said, 120) or "it cannot be read"
    return Problem(f"not valid YAML: {said}", "Check quotes, brackets and indentation here", where)


def _line_before(text: str, mark: Any) -> str:
    """The white space at the beginning of the marked line, and the character at the mark."""
    lines = text.split("\n")
    line = lines[mark.line] if mark.line < len(lines) else ""
    return line[: len(line) - len(line.lstrip())] + line[mark.column : mark.column + 1]


def _head(text: str, mark: Any) -> str:
    """The marked line up to the mark."""
    return text.split("\n")[mark.line][: mark.column]


class _NodeReader:
    """Turns composed nodes into plain values. Aliases are read again at each place, and counted."""

    def __init__(self, document: Document, place: _Place) -> None:
        self.document = document
        self.seen = 0
        self._place = place

    def value(self, node: Node, path: KeyPath) -> Any:
        where = self._where(node)
        self.seen += 1
        if len(path) >= MAX_DEPTH or self.seen > MAX_NODES:
            raise SpecError(_bounds(where, len(path) >= MAX_DEPTH))
        self.document.places[path] = where
        self._check_tag(node, path, where)
        if isinstance(node, MappingNode):
            return self._mapping(node, path)
        if isinstance(node, SequenceNode):
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        return self._scalar_value(node, path, where)

    def _mapping(self, node: MappingNode, path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            where, key = self._where(key_node), key_node.value
            if not self._key_is_good(key_node, path, where):
                continue
            if key in values:
                first = self.document.key_places[(*path, key)]
                action = f"Keep one of the two; the first is at {first}"
                self._problem("the key stands here twice", action, where, (*path, key))
                continue
            self.document.key_places[(*path, key)] = where
            values[key] = self.value(value_node, (*path, key))
            if values[key] is None and not value_node.value:  # nothing behind the colon: point at the key
                self.document.places[(*path, key)] = where
        return values

    def _key_is_good(self, node: Node, path: KeyPath, where: str) -> bool:
        if not isinstance(node, ScalarNode) or not node.value:
            self._problem("a key must be a word", "Write `key: value`", where, path)
            return False
        if str(node.tag) == _TAG + "merge":
            self._problem("`<<` does not merge here", "Write the keys out", where, path)
            return False
        return self._text_is_good(node.value, (*path, node.value), where)

    def _scalar_value(self, node: Node, path: KeyPath, where: str) -> Any:
        tag, text = str(node.tag), node.value
        if tag in (_TAG + "int", _TAG + "float") and len(text) > MAX_DIGITS:
            self._problem(f"a number of {len(text)} digits is too long", "Shorten it", where, path)
            self.document.stand_ins.add(path)
            return None
        value = _scalar(tag, text)
        if isinstance(value, str) and not self._text_is_good(value, path, where):
            self.document.stand_ins.add(path)
            return ""
        return value

    def _text_is_good(self, text: str, path: KeyPath, where: str) -> bool:
        # One line of real characters: so it can be printed, logged and used as a path.
        bad = next((char for char in text if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")), None)
        if bad is not None:
            what = f"the text holds a line break or control character (U+{ord(bad):04X})"
            self._problem(what, "Write it on one line", where, path)
        return bad is None

    def _check_tag(self, node: Node, path: KeyPath, where: str) -> None:
        allowed = _SCALAR_TAGS | {_TAG + "merge"} if isinstance(node, ScalarNode) else {_TAG + "map", _TAG + "seq"}
        if (tag := str(node.tag)) not in allowed:
            name = printable(tag.replace(_TAG, "!!"))
            self._problem(f"the tag {name} is not allowed", "Remove it; write the plain value", where, path)

    def _problem(self, what: str, action: str, where: str, path: KeyPath) -> None:
        self.document.problems.append(Problem(what, action, where, dotted(path)))

    def _where(self, node: Node) -> str:
        return self._place(node.start_mark.line + 1, node.start_mark.column + 1)


def _scalar(tag: str, text: str) -> Any:
    """The value of a scalar with a standard tag; text that only looks like a number stays text."""
    try:
        if tag == _TAG + "int":
            return _integer(text.replace("_", "").lower())
        if tag == _TAG + "float":
            return float(text.replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan"))
    except ValueError:
        return text
    if tag == _TAG + "null":
        return None
    if tag == _TAG + "bool":
        return text.lower() == "true"
    return text


def _integer(text: str) -> int:
    sign, digits = (-1, text[1:]) if text[:1] == "-" else (1, text.removeprefix("+"))
    base = _BASES.get(digits[:2])
    return sign * (int(digits[2:], base) if base else int(digits))
