"""The documentation agrees with the program: links, specs, Python, command lines, messages and the site."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import io
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
from docs_text import PAGES, PROJECT_DIR, Block, Command, arguments, blocks, commands, spans
from ruamel.yaml import YAML
from typer.main import get_command

import tltrain
from tltrain.cli.main import app
from tltrain.jobs.clusters import KINDS, parse_cluster
from tltrain.spec.load import parse_spec
from tltrain.spec.schema import Spec

NOT_RUN = PROJECT_DIR / "tests" / "docs_not_run.yaml"
TROUBLESHOOTING = PROJECT_DIR / "docs" / "troubleshooting.md"
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)

# What a part of a spec, or of a cluster file, is put into to be checked.
SPEC_AROUND = "name: x\nmodel: {name: resnet50}\ndata: {train: a}\n"
CLUSTER_AROUND = "kind: local\n"
USAGE_ERROR: Any = typer.BadParameter.__mro__[1]  # click's, which typer brings along under a name that has changed


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
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> Iterator[str]:
    """Yield the relative links of a page that lead nowhere."""
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        if not re.match(r"[a-z]+:", link) and not (target.exists() and (not anchor or anchor in anchors(target))):
            yield link


def parse_yaml(block: Block, page: Path) -> None:
    """Check a block of YAML: a spec, a part of one, a cluster file, or a part of one. Raises SpecError."""
    keys = set(YAML(typ="safe").load(io.StringIO(block.text)))
    where = f"{page.name}:{block.line}"
    if "kind" in keys:
        parse_cluster(block.text, where=where, base=page.parent)
    elif keys <= set(Spec.model_fields):
        around = "".join(line for line in SPEC_AROUND.splitlines(True) if line.partition(":")[0] not in keys)
        parse_spec(around + block.text, where=where, base=page.parent)
    else:
        parse_cluster(CLUSTER_AROUND + block.text, where=where, base=page.parent)


def parse_command_line(words: list[str]) -> None:
    """Let the program's own parser read the words behind `tltrain`, and run nothing. Raises click's UsageError."""
    command: Any = get_command(app)
    context = command.make_context("tltrain", list(words))
    while hasattr(command, "resolve_command"):
        rest = [*context._protected_args, *context.args]
        name, command, rest = command.resolve_command(context, rest)
        context = command.make_context(name, rest, parent=context)


def complaint(words: list[str]) -> str:
    """Return what the parser says against the words behind `tltrain`; nothing where only more of them are missing."""
    try:
        parse_command_line(words)
    except USAGE_ERROR as error:
        return "" if type(error).__name__ in ("MissingParameter", "NoArgsIsHelpError") else str(error)
    return ""


def verbs() -> set[str]:
    """Return the verbs of the program."""
    return set(getattr(get_command(app), "commands"))  # noqa: B009 (typer's group is untyped)


@cache
def texts() -> tuple[str, ...]:
    """Return the texts in the package's source, with a mark where a value is put in."""
    found: list[str] = []
    for path in (PROJECT_DIR / "tltrain").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "\0" for part in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return tuple(found)


def messages() -> list[str]:
    """Return the messages that the page on troubleshooting explains."""
    return re.findall(r"^\| `([^`]+)` \|", TROUBLESHOOTING.read_text("utf-8"), re.MULTILINE)


def not_run() -> list[dict[str, str]]:
    """Return which commands of the documentation are not run, and why."""
    return YAML(typ="safe").load(NOT_RUN)


def covers(entry: dict[str, str], command: Command) -> bool:
    """Whether an entry of the table names a command."""
    pattern = ".*".join(re.escape(part) for part in entry["command"].split("*"))
    return command.page == entry.get("page", command.page) and re.fullmatch(pattern, command.text) is not None


def test_spec_reference_is_up_to_date() -> None:
    assert (PROJECT_DIR / "docs/spec.md").read_text("utf-8") == reference(), "run: python docs/make_spec_reference.py"


@every_page
def test_relative_links_lead_somewhere(page: Path) -> None:
    assert list(broken_links(page)) == []


@every_page
def test_yaml_is_valid(page: Path) -> None:
    for block in blocks(page):
        if block.language == "yaml":
            parse_yaml(block, page)


@every_page
def test_python_compiles(page: Path) -> None:
    for block in blocks(page):
        if block.language == "python":
            compile(block.text, f"{page.name}:{block.line}", "exec")


@every_page
def test_command_lines_are_read_by_the_programs_own_parser(page: Path) -> None:
    for command in commands(page):
        words = arguments(command.text)
        if words is not None:
            parse_command_line(words)


@every_page
def test_verbs_and_options_in_code_spans_are_those_of_the_program(page: Path) -> None:
    for span in spans(page):
        words = ["1" if word in ("N", "S") else word for word in arguments(span) or []]
        assert complaint([word for word in words if word != "..."]) == "", span


def test_wrong_command_lines_are_noticed() -> None:
    for words in (["trian", "x.yaml"], ["run", "x.yaml", "--no-such"], ["sweep", "extend", "x", "--trials", "many"]):
        assert re.search("No such|valid integer", complaint(words))


def test_readme_names_every_verb() -> None:
    readme = PROJECT_DIR / "README.md"
    lines = [arguments(line) or [""] for line in (*spans(readme), *(command.text for command in commands(readme)))]

    assert {words[0] for words in lines} >= verbs()


@pytest.mark.parametrize("message", messages())
def test_messages_explained_are_in_the_source(message: str) -> None:
    pattern = re.compile(".*".join(re.escape(part) for part in re.split(r"\.{3}(?!\.)", message)), re.DOTALL)

    assert message.isdigit() or any(pattern.search(text) for text in texts())


@pytest.mark.parametrize("entry", not_run(), ids=lambda entry: entry["command"])
def test_commands_said_not_to_be_run_are_in_the_documentation(entry: dict[str, str]) -> None:
    assert entry["why"]
    assert any(covers(entry, command) for page in PAGES for command in commands(page))


def test_functions_of_the_python_page_have_these_parameters() -> None:
    text = (PROJECT_DIR / "docs" / "api.md").read_text("utf-8")
    calls = [
        ast.parse(shown, mode="eval").body for shown in re.findall(r"^\| `(\w+\.\w+\(.*\))` \|", text, re.MULTILINE)
    ]
    shown = {ast.unparse(call.func): call for call in calls if isinstance(call, ast.Call)}

    public = {f"tltrain.{name}" for name in tltrain.__all__ if inspect.isroutine(getattr(tltrain, name))}
    assert shown.keys() >= public | {f"job.{name}" for name in vars(tltrain.Job) if name[0] != "_"}
    for name, call in shown.items():
        parameters = inspect.signature(
            getattr(tltrain.Job if "job" in name else tltrain, name.partition(".")[2])
        ).parameters
        assert {ast.unparse(argument) for argument in call.args} <= {*parameters, "..."}, name
        for given in call.keywords:
            assert parameters[str(given.arg)].default == ast.literal_eval(given.value), f"{name}: {given.arg}"


def test_kinds_of_clusters_are_explained() -> None:
    text = (PROJECT_DIR / "docs" / "clusters.md").read_text("utf-8")

    assert all(f"| `{kind}` |" in text for kind in KINDS)


def test_every_page_is_in_the_site() -> None:
    text = (PROJECT_DIR / "mkdocs.yml").read_text("utf-8")

    assert {page.name for page in PAGES[1:]} == set(re.findall(r": (\S+\.md)$", text, re.MULTILINE))


def test_the_site_is_built_without_a_warning_and_fetches_nothing(tmp_path: Path) -> None:
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    build(load_config(str(PROJECT_DIR / "mkdocs.yml"), strict=True, site_dir=str(tmp_path)))

    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) >= len(PAGES) - 1
    for page in pages:
        fetched = re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"?(https?:[^\"\s>]+)", page.read_text("utf-8"))
        assert fetched == [], page.name
