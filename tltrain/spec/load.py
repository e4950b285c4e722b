"""Reading a spec: YAML and `--set` values in; a valid spec, the origin of each value and warnings out."""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tltrain.errors import Problem, SpecError
from tltrain.spec import emit, keys
from tltrain.spec.checks import check
from tltrain.spec.overrides import apply_sets, put
from tltrain.spec.paths import make_absolute
from tltrain.spec.schema import SPEC_VERSION, Domain, Spec
from tltrain.spec.sweep_checks import check_sweep, sweep_warnings
from tltrain.spec.translate import Finding, validate
from tltrain.spec.unused import unused_settings
from tltrain.spec.wording import kind
from tltrain.spec.yaml_text import MAX_BYTES, Document, KeyPath, dotted, parse_document

_KINDS = tuple(Domain.model_fields)
_TOLD = 10
SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"


@dataclass(frozen=True)
class LoadedSpec:
    """A valid spec with absolute paths.

    `origins` tells for each dotted leaf key where its value comes from: `default`, `file:line:column` or
    `--set #n`. `warnings` name settings that were given and have no effect.
    """

    spec: Spec
    origins: dict[str, str]
    warnings: tuple[Problem, ...]


def load_spec(path: str | Path, sets: Sequence[str] = ()) -> LoadedSpec:
    """Read the spec in a file and apply `sets`, each `KEY=VALUE`. Raises SpecError with all problems."""
    text = read_text(Path(path))
    return parse_spec(text, where=str(path), base=Path(path).absolute().parent, sets=sets)


def parse_spec(text: str, *, where: str, base: Path, sets: Sequence[str] = ()) -> LoadedSpec:
    """Read a spec from text; `where` names it in messages and `base` is the folder its paths are relative to.

    Raises SpecError with all problems.
    """
    document = parse_document(text, where)
    if not isinstance(document.values, dict):
        raise SpecError(_no_mapping(document))
    apply_sets(document, sets)
    spec = make_absolute(_validated(document), document, base.absolute())
    origins = {dotted(path): document.places.get(path, "default") for path, _ in keys.leaves(spec)}
    given = {key for key, origin in origins.items() if origin != "default"}
    found = [*unused_settings(spec, given), *sweep_warnings(spec)]
    warnings = tuple(_at(document, problem) for problem in found)
    return LoadedSpec(spec, origins, warnings)


def dump_yaml(spec: Spec) -> str:
    """The resolved spec as YAML; loading it gives an equal spec."""
    return emit.dump_yaml(spec)


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a spec, for editors; the meaning of each key is its description."""
    schema = Spec.model_json_schema()
    # The rules between keys that an editor can check as well.
    for section, names, kind_of_value in (("ModelSpec", ("name", "factory"), "string"), ("Domain", _KINDS, "array")):
        schema["$defs"][section]["oneOf"] = [
            {"required": [name], "properties": {name: {"type": kind_of_value}}} for name in names
        ]
    return {"$schema": SCHEMA_DIALECT, **schema, "title": "tltrain spec"}


def differences(old: Spec, new: Spec) -> list[tuple[str, object, object]]:
    """Dotted leaf keys whose values differ, with old and new value; None where a spec lacks the key."""
    before, after = dict(keys.leaves(old)), dict(keys.leaves(new))
    changed = [path for path in {**before, **after} if before.get(path) != after.get(path)]
    return [(dotted(path), before.get(path), after.get(path)) for path in changed]


def replace(spec: Spec, values: Mapping[str, object]) -> Spec:
    """A valid copy of `spec` with dotted keys replaced; relative paths are those of the current directory.

    Raises SpecError with all problems where a key is unknown or a value does not fit.
    """
    document = Document(spec.model_dump())
    for key, value in values.items():
        put(document, keys.split_key(key), Document(deepcopy(value)))
    return make_absolute(_validated(document), document, Path.cwd())


def _validated(document: Document) -> Spec:
    """The spec that a document holds. Raises SpecError with every problem of it."""
    version = document.values.get("version")
    if isinstance(version, int) and not isinstance(version, bool) and version > SPEC_VERSION:
        what = f"the spec has version {version}, and this tltrain reads version {SPEC_VERSION}"
        raise SpecError(Problem(what, "Use a newer tltrain", document.place(("version",)), "version"))
    spec, findings = validate(document)
    problems = document.problems + [f.problem for f in findings if f.path not in document.stand_ins]
    usable = spec or _without_faults(document, findings)
    if usable is not None:
        wrong = [dotted(finding.path) for finding in findings if not finding.unknown]
        wrong += [problem.key for problem in document.problems]
        wrong = [key for key in wrong if key]
        found = check(usable, wrong) + check_sweep(usable, wrong)
        problems += [_at(document, problem) for problem in found]
    if problems or spec is None:
        raise SpecError(_ten_of_a_kind(problems))
    return spec


def _ten_of_a_kind(problems: Sequence[Problem]) -> list[Problem]:
    """Name the first ten problems that are mended alike, and count the others."""
    alike = Counter(problem.action for problem in problems)
    seen: Counter[str] = Counter()
    told = []
    for problem in problems:
        seen[problem.action] += 1
        if seen[problem.action] <= _TOLD:
            told.append(problem)
        elif seen[problem.action] == _TOLD + 1:
            what = f"{alike[problem.action] - _TOLD} more of this kind, from here on"
            told.append(Problem(what, problem.action, problem.where))
    return told


def _without_faults(document: Document, findings: Sequence[Finding]) -> Spec | None:
    """The spec with the faulty values left out, so that what is between the others is told in the same go."""
    values = deepcopy(document.values)
    stand_ins: dict[KeyPath, Any] = {
        ("name",): "unnamed",
        ("model",): {"name": "resnet50"},
        ("data",): {"train": "."},
    }
    stand_ins |= {("model", "name"): "resnet50", ("data", "train"): "."}
    for path in sorted((finding.path for finding in findings), reverse=True):
        _remove(values, path)
        if path in stand_ins:
            keys.set_value(values, path, stand_ins[path])
    spec, _ = validate(Document(values))
    return spec


def _remove(values: Any, path: KeyPath) -> None:
    """Drop the value at `path`; in a list, the whole list; of a searched key, the whole domain."""
    if path[:2] == keys.SPACE:
        space = values.get("sweep", {}).get("space")
        if isinstance(space, dict) and len(path) > 2:
            space.pop(path[2], None)
        if not space or not isinstance(space, dict):
            values.pop("sweep", None)
        return
    for position, part in enumerate(path):
        inside = values.get(part) if isinstance(values, dict) else None
        if position == len(path) - 1 or isinstance(inside, list):
            values.pop(part, None)
            return
        if not isinstance(inside, dict):
            return
        values = inside


def _at(document: Document, problem: Problem) -> Problem:
    path: KeyPath = tuple(
        int(part) if isinstance(part, str) and part.isdigit() else part for part in keys.split_key(problem.key)
    )
    is_searched_key = path[:-1] == keys.SPACE
    place = document.key_place(path) if is_searched_key else document.place(path)
    return Problem(problem.what, problem.action, place, problem.key)


def _no_mapping(document: Document) -> Problem:
    if document.values is None:
        return Problem("the spec is empty", "`tltrain init` writes one to start from", document.where)
    what = f"the spec is {kind(document.values)}, not a mapping of keys to values"
    return Problem(what, "Write `key: value` lines; `tltrain init` writes an example", document.where)


def read_text(path: Path) -> str:
    """The text of a file. Raises SpecError that says why it cannot be read."""
    if path.is_dir():
        raise SpecError(Problem("is a folder", "Give the YAML file in it", str(path)))
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise SpecError(Problem("there is no such file", _similar_file(path), str(path))) from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise SpecError(
            Problem(f"cannot be read: {reason}", "Check the path and its permissions", str(path))
        ) from error
    if len(content) > MAX_BYTES:
        raise SpecError(Problem(f"is larger than {MAX_BYTES >> 20} MiB", "A spec has a few lines", str(path)))
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        column = error.start - content.rfind(b"\n", 0, error.start)
        raise SpecError(Problem("is not UTF-8 text", "Save it as UTF-8", f"{path}:{line}:{column}")) from error


def _similar_file(path: Path) -> str:
    try:
        names = os.listdir(path.parent)
    except OSError:
        return f"The folder {path.parent} is not there either"
    close = difflib.get_close_matches(path.name, names, n=1)
    return f"Did you mean {path.parent / close[0]}?" if close else "Check the path; `tltrain init` writes a new spec"
