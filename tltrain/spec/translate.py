"""Validation of plain values against the schema, with every finding in our own words and at its place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar, get_args, get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from tltrain.errors import Problem
from tltrain.spec.keys import all_keys, bare, branches, hints, is_section
from tltrain.spec.schema import Domain, Section, Spec
from tltrain.spec.wording import judge, kind, nearest, printable, show
from tltrain.spec.yaml_text import Document, KeyPath, dotted

_Root = TypeVar("_Root", bound=Section)


class Finding(NamedTuple):
    """A problem, and the path of the value that is to blame. Where it is `unknown`, no setting is faulty."""

    path: KeyPath
    problem: Problem
    unknown: bool


class _Spot(NamedTuple):
    """Where an error of pydantic's lies: in the values, and in the schema."""

    path: KeyPath
    hint: Any
    value: Any
    field: tuple[type[Section], str] | None


def validate(document: Document) -> tuple[Spec | None, list[Finding]]:
    """The spec, or None and all that keeps the values from being one."""
    return validate_as(Spec, document)


def validate_as(root: type[_Root], document: Document) -> tuple[_Root | None, list[Finding]]:
    """The section `root`, or None and all that keeps the values from being one."""
    try:
        return root.model_validate(document.values), []
    except ValidationError as error:
        return None, _translate(error.errors(include_url=False, include_input=False), root, document)


def _translate(errors: Sequence[ErrorDetails], root: type[Section], document: Document) -> list[Finding]:
    found: dict[KeyPath, Finding] = {}
    for error in errors:
        spot = _locate(error, root, document.values)
        if spot is not None and spot.path not in found:
            problem = _problem(error, spot, root, document)
            found[spot.path] = Finding(spot.path, problem, error["type"] == "extra_forbidden")
    assert found, "every error belonged to a branch that does not fit"
    return list(found.values())


def _locate(error: ErrorDetails, root: type[Section], values: Any) -> _Spot | None:
    """Follow an error's location through schema and values at once.

    In a union pydantic names one branch after the other and reports the errors of each. The branch that has
    the form of the value (a section for a mapping, ...) is followed; errors of the others give None. Where
    none has its form, the union as a whole is what the value fails.
    """
    spot, location = _Spot((), root, values, None), list(error["loc"])
    while location:
        options = branches(spot.hint)
        if len(options) > 1:
            branch = _fitting(options, spot.value)
            if branch is None:
                return spot
            location.pop(0)
            if not location and error["type"] != "value_error":
                return None
            spot = spot._replace(hint=branch)
        else:
            spot = _step(spot._replace(hint=options[0]), location.pop(0))
    return spot


def _fitting(options: list[Any], value: Any) -> Any:
    for option in options:
        if isinstance(value, dict) and (is_section(option) or get_origin(bare(option)) is dict):
            return option
        if isinstance(value, list) and get_origin(bare(option)) is list:
            return option
    return None


def _step(spot: _Spot, part: str | int) -> _Spot:
    plain, path = bare(spot.hint), (*spot.path, part)
    inside = spot.value
    if isinstance(inside, dict):
        value = inside.get(part)
    else:
        value = inside[part] if isinstance(inside, list) and isinstance(part, int) else None
    if is_section(plain):
        name = str(part)
        return _Spot(path, hints(plain).get(name), value, (plain, name))
    return _Spot(path, get_args(plain)[-1], value, None)


def _problem(error: ErrorDetails, spot: _Spot, root: type[Section], document: Document) -> Problem:
    key, path = dotted(spot.path), spot.path
    if error["type"] == "extra_forbidden":
        what, action = _unknown_key(spot, root)
        return Problem(what, action, document.key_place(path), key)
    if error["type"] == "missing":
        return Problem("is missing", f"Add it: {_description(spot)}", document.key_place(path[:-1]), key)
    if error["type"] == "value_error":
        return Problem(str(error.get("ctx", {})["error"]), "", document.key_place(path), key)
    if error["type"] == "too_short" and not spot.value:
        return Problem("nothing is in it", "Give at least one value", document.place(path), key)
    if error["type"] == "too_long" and spot.field is not None and spot.field[1] in ("grid", "choice"):
        most = error.get("ctx", {})["max_length"]
        return Problem(f"{len(spot.value)} values are listed", f"List at most {most}", document.place(path), key)
    if spot.value is None and get_origin(bare(spot.hint)) is dict:
        return Problem("has no value", f"It means: {_description(spot)}", document.place(path), key)
    what, action = _section_problem(spot) or judge(spot.hint, spot.value)
    return Problem(what, action or _default(spot), document.place(path), key)


def _section_problem(spot: _Spot) -> tuple[str, str] | None:
    if len(branches(spot.hint)) > 1 or not is_section(branches(spot.hint)[0]):
        return None
    fields = ", ".join(bare(branches(spot.hint)[0]).model_fields)
    if spot.value is None:
        return "the section is empty", f"Remove the line or add keys below it: {fields}"
    action = f"Write its keys below it: {fields}"
    if branches(spot.hint)[0] is Domain:
        known = f"{{choice: {show(spot.value)}}}" if isinstance(spot.value, list) else "{choice: [1, 2]}"
        action = f"Write for example {known}. Kinds: {fields}"
    return f"{show(spot.value)} is {kind(spot.value)}, not a section", action


def _default(spot: _Spot) -> str:
    """What the setting is where it is left out, or what it means where it has no default."""
    if spot.field is None or spot.field[0] is Domain:
        return ""
    section, name = spot.field
    field = section.model_fields[name]
    return f"It means: {_description(spot)}" if field.is_required() else f"The default is {show(field.default)}"


def _description(spot: _Spot) -> str:
    assert spot.field is not None, "only fields of sections are required"
    section, name = spot.field
    return " ".join((section.model_fields[name].description or "").split())


def _unknown_key(spot: _Spot, root: type[Section]) -> tuple[str, str]:
    assert spot.field is not None, "only sections refuse keys"
    section, word = spot.field
    inside = dotted(spot.path[:-1])
    known = list(section.model_fields)
    guess = suggest_key(word, known, root)
    valid = f"Keys{f' of {inside}' if inside else ''}: {', '.join(known)}"
    what = f"there is no key {printable(word)}{f' in {inside}' if inside else ''}"
    if section is Domain and (full := f"{spot.path[-2]}.{word}") in all_keys():
        return what, f"Write {full} as one key: {full}: {{choice: ...}}"
    return what, f"{f'Did you mean {guess}? ' if guess else ''}{valid}"


def suggest_key(word: str, known: Sequence[str], root: type[Section] = Spec) -> str:
    """The key most likely meant: of this section, by its initials (`lr`), or of another section."""
    if close := nearest(word, known):
        return close[0]
    for names in (known, all_keys(root)):
        for name in names:
            last = name.rpartition(".")[2]
            initials = "".join(part[0] for part in last.split("_"))
            if word.lower() == last or (len(initials) > 1 and word.lower() == initials):
                return name
    elsewhere = nearest(word, [name.rpartition(".")[2] for name in all_keys(root)], cutoff=0.8)
    return next((name for name in all_keys(root) if elsewhere and name.endswith(f".{elsewhere[0]}")), "")
