"""`--set KEY=VALUE`: values from the command line, put into a document before it is validated."""

from __future__ import annotations

from collections.abc import Sequence

from tltrain.errors import Problem, SpecError
from tltrain.spec.keys import set_value, split_key
from tltrain.spec.yaml_text import MAX_DEPTH, Document, KeyPath, parse_value, printable


def apply_sets(document: Document, sets: Sequence[str]) -> None:
    """Put each `KEY=VALUE` into `document`, in order; what is malformed becomes a problem of the document."""
    for number, text in enumerate(sets, start=1):
        where = f"--set #{number}"
        try:
            path, value = _parse(text, where)
        except SpecError as error:
            document.problems += error.problems
            continue
        put(document, path, value)


def put(document: Document, path: KeyPath, value: Document) -> None:
    """Replace what stands at `path`; places inside it become those of `value`."""
    path = set_value(document.values, path, value.values)
    for places in (document.places, document.key_places):
        for inside in [known for known in places if known[: len(path)] == path]:
            del places[inside]
    for length in range(1, len(path)):  # a scalar that a section replaced, or a section that is new
        if not _holds(document, path[:length]):
            document.places[path[:length]] = document.key_places[path[:length]] = value.where
    document.key_places[path] = value.where
    document.places.update({(*path, *inside): place for inside, place in value.places.items()})
    document.key_places.update({(*path, *inside): place for inside, place in value.key_places.items()})


def _holds(document: Document, path: KeyPath) -> bool:
    """Whether the section at `path` was written as one, so that its place still tells the truth."""
    return any(len(known) > len(path) and known[: len(path)] == path for known in document.places)


def _parse(text: str, where: str) -> tuple[KeyPath, Document]:
    """Path and value of one `KEY=VALUE`. Raises SpecError."""
    key, equals, raw = text.partition("=")
    parts = tuple(part.strip() for part in key.split("."))
    shown = printable(text.encode("utf-8", "replace").decode())
    if not equals or not all(parts) or len(parts) > MAX_DEPTH:
        what = f"{shown} is not KEY=VALUE" if not equals else f"the key of {shown} is not a dotted key"
        raise SpecError(Problem(what, "Write for example --set optim.learning_rate=1e-3", where))
    if not all(part.isprintable() for part in parts):
        raise SpecError(Problem(f"the key of {shown} holds characters no key has", "Remove them", where))
    if not raw.strip():
        raise SpecError(Problem("no value after =", f"Write {'.'.join(parts)}=null for none", where, ".".join(parts)))
    joined = ".".join(parts)
    return split_key(joined), _value(raw, where, joined)


def _value(raw: str, where: str, key: str) -> Document:
    """The YAML value behind the `=`. Raises SpecError that names the key."""
    try:
        value = parse_value(raw, where)
    except SpecError as error:
        raise SpecError([Problem(p.what, p.action, where, key) for p in error.problems]) from error
    if value.problems:
        raise SpecError([Problem(p.what, p.action, where, key) for p in value.problems])
    return value
