"""The documentation agrees with the program: its reference, its links, the verbs that it names."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command

from tltrain.cli.main import app
from tltrain.spec.load import parse_spec

PROJECT_DIR = Path(__file__).resolve().parent.parent
PAGES = [PROJECT_DIR / "README.md", *sorted((PROJECT_DIR / "docs").glob("*.md"))]

# A verb is named where a command is shown: in a code span, at the beginning of a line of code, or behind a prompt.
VERB = re.compile(r"(?:`|^ {4}|^\$ (?:\.venv/bin/)?|^)tltrain ((?:-\S+ )*)([a-z][a-z-]*)(?: ([a-z]+)\b)?", re.MULTILINE)


def reference() -> str:
    """Return what `python docs/make_spec_reference.py` would write."""
    spec = importlib.util.spec_from_file_location("make_spec_reference", PROJECT_DIR / "docs/make_spec_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.reference()


def anchors(page: Path) -> set[str]:
    """Return the anchors that a page's headings have."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> Iterator[str]:
    """Yield the relative links of a page that lead nowhere."""
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        if not re.match(r"[a-z]+:", link) and not (target.exists() and (not anchor or anchor in anchors(target))):
            yield link


def verbs() -> dict[str, set[str]]:
    """Return each verb of the program and the verbs below it."""
    commands = getattr(get_command(app), "commands")  # noqa: B009 (typer's group is untyped)
    return {name: set(getattr(command, "commands", {})) for name, command in commands.items()}


def test_spec_reference_is_up_to_date() -> None:
    assert (PROJECT_DIR / "docs/spec.md").read_text("utf-8") == reference(), "run: python docs/make_spec_reference.py"


def test_example_in_the_reference_is_a_valid_sweep() -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", reference(), re.DOTALL)

    spec = parse_spec(f"name: x\nmodel: {{name: vgg16}}\ndata: {{train: a}}\n{example}", where="x", base=Path("/")).spec

    assert spec.sweep is not None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    assert list(broken_links(page)) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_verbs_in_the_documentation_are_verbs_of_the_program(page: Path) -> None:
    for _, verb, word in VERB.findall(page.read_text("utf-8")):
        assert verb in verbs()
        assert not verbs()[verb] or word in verbs()[verb], f"{verb} {word}"


def test_readme_names_every_verb() -> None:
    named = {verb for _, verb, _ in VERB.findall((PROJECT_DIR / "README.md").read_text("utf-8"))}

    assert named == set(verbs())
