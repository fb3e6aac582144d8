"""The docs say what the code has: complete, fresh, and true where a machine can tell."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from enum import StrEnum
from pathlib import Path
from urllib.parse import unquote

import pytest

from export_pipeline import data_type_file, manifest
from export_pipeline.identity import Role, Scope
from export_pipeline.models import AuditAction, DataTypeConfig, ExportFormat, RequestStatus
from export_pipeline.settings import Settings
from export_pipeline.verify import verify
from export_pipeline_tests.generate_docs import (
    DOCS,
    PACKAGE,
    PROJECT,
    commands,
    error_classes,
    generated,
    variable,
)

PAGES = [PROJECT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + [
    *sorted(DOCS.glob("*.md")),
]
PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text("utf-8"))
SOURCES = [file for file in sorted(PACKAGE.rglob("*")) if file.suffix in {".py", ".sql"}]
#: Variables that are no settings; docs/settings.md explains them.
OTHER_VARIABLES = {"EXPORT_PIPELINE_DEBUG"}


def text(name: str) -> str:
    return (PROJECT / name).read_text("utf-8")


def section(page: str, heading: str) -> str:
    """The text below a heading, up to the next heading of its level or above."""
    level = len(heading) - len(heading.lstrip("#"))
    assert f"\n{heading}\n" in page, f"there is no heading {heading!r}"
    return re.split(rf"\n#{{1,{level}}} ", page.split(f"\n{heading}\n", 1)[1], maxsplit=1)[0]


def first_cells(table: str) -> list[list[str]]:
    """What stands in backticks in the first cell of each row."""
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("|")]
    return [names for row in rows if (names := re.findall(r"`([^`]+)`", row))]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


# --- generated pages


@pytest.mark.parametrize("file", generated(), ids=lambda file: file.name)
def test_generated_pages_are_fresh(file: Path) -> None:
    assert file.read_text("utf-8") == generated()[file], "run `python -m export_pipeline_tests.generate_docs`"


def test_every_setting_and_every_error_has_its_line() -> None:
    settings, errors = text("docs/settings.md"), text("docs/commands.md")
    assert [name for name in Settings.model_fields if f"| `{variable(name)}` |" not in settings] == []
    assert [error.__name__ for error in error_classes() if f"| `{error.__name__}` |" not in errors] == []
    assert len(error_classes()) > 10
    assert all(field.description for field in Settings.model_fields.values())


def test_every_scope_and_role_is_explained() -> None:
    page = text("docs/identity.md")
    assert [names[0] for names in first_cells(section(page, "## Roles and scopes"))] == list(Scope)
    assert [role for role in Role if f"`{role.value}`" not in page] == []


def test_every_command_and_option_has_its_line() -> None:
    page = text("docs/commands.md")
    for name, command in commands():
        described = section(page, f"## {name}")
        assert command.help, name
        for parameter in command.params:
            if parameter.name != "help" and parameter.param_type_name == "option":
                assert parameter.help, f"{name} {parameter.opts}"
                assert all(f"`{option}`" in described for option in parameter.opts), f"{name} {parameter.opts}"


# --- names that docs and messages mention


@pytest.mark.parametrize("file", [*PAGES, *SOURCES], ids=lambda file: str(file.name))
def test_every_variable_that_is_mentioned_exists(file: Path) -> None:
    known = {variable(name) for name in Settings.model_fields} | OTHER_VARIABLES
    mentioned = set(re.findall(r"EXPORT_PIPELINE_[A-Z][A-Z_]*[A-Z]", file.read_text("utf-8")))
    assert mentioned - known == set()


def calls(file: Path) -> Iterator[str]:
    """Calls of our command: in backticks anywhere, and lines of shell blocks."""
    content = file.read_text("utf-8")
    yield from re.findall(r"`export-pipeline ([a-z][^`…\n]*)`", content)
    if file.suffix == ".md":
        for block in blocks(content, "sh"):
            yield from re.findall(r"(?:^|&& )export-pipeline ([^#\n]*)", block, re.MULTILINE)


@pytest.mark.parametrize("file", [*PAGES, *SOURCES], ids=lambda file: str(file.name))
def test_every_call_that_is_mentioned_works(file: Path) -> None:
    known = dict(commands())
    for call in calls(file):
        words = call.split()
        name = next((each for each in (" ".join(words[:2]), words[0]) if each in known), words[0])
        assert name in known, f"export-pipeline {call}"
        options = {option for parameter in known[name].params for option in parameter.opts}
        used = {word for word in words if word.startswith("-")}
        assert used <= options | {"--help"}, f"export-pipeline {call}"


def test_the_readme_begins_with_the_two_commands() -> None:
    first, second = blocks(text("README.md"), "sh")[:2]
    assert first.strip().endswith("pip install . && export-pipeline demo")
    assert second.strip() == "pip install '.[dev]' && pytest"
    minimum = PYPROJECT["project"]["requires-python"].removeprefix(">=")
    assert f"Python {minimum} or newer" in text("README.md")


def test_jobs_ops_and_sensors_are_named() -> None:
    for name in ("ops", "sensors"):
        tree = ast.parse((PACKAGE / "defs" / f"{name}.py").read_text("utf-8"))
        made = [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.decorator_list]
        assert made
        for page in ("README.md", "docs/architecture.md"):
            assert [function for function in made if function not in text(page)] == [], page


# --- statuses, audit actions


@pytest.mark.parametrize(
    ("heading", "words"), [("## Statuses", RequestStatus), ("## Audit actions", AuditAction)], ids=["status", "action"]
)
def test_the_glossary_explains_each_and_says_which_are_used(heading: str, words: type[StrEnum]) -> None:
    table = section(text("docs/glossary.md"), heading)
    explained = [names[0] for names in first_cells(table)][1:]
    assert sorted(explained) == sorted(words)
    used = "\n".join(file.read_text("utf-8") for file in SOURCES if file.name not in {"models.py", "0001_tables.sql"})
    for word in words:
        row = next(line for line in table.splitlines() if line.startswith(f"| `{word}` |"))
        written = f"{words.__name__}.{word.name}" in used or f"status = '{word}'" in used
        # Triggers of the tables write these.
        written = written or word in {AuditAction.REQUESTED, AuditAction.CONFIGURATION_CHANGED}
        assert written == ("not yet" not in row and "no code sets it yet" not in row), word


def test_the_diagram_has_every_status() -> None:
    [diagram] = [block for block in blocks(text("docs/architecture.md"), "mermaid") if "stateDiagram" in block]
    drawn = set(re.findall(r"^ +(\w+) --> ", diagram, re.MULTILINE)) | set(re.findall(r"--> (\w+)", diagram))
    drawn |= set(re.findall(r"^ {8}(\w+)$", diagram, re.MULTILINE))
    assert drawn == set(RequestStatus)


def test_the_diagram_names_statements_that_exist() -> None:
    methods = re.findall(r"^    def ([a-z]\w*)", (PACKAGE / "db" / "requests.py").read_text("utf-8"), re.MULTILINE)
    states = section(text("docs/architecture.md"), "## The states of a request")
    named = {names[0] for names in first_cells(states)} - {"RequestStore"}
    assert named <= set(methods)
    # Whoever adds a method that moves a request has to draw its arrow.
    moving = re.findall(r"self\._move\(|\b_move\(", (PACKAGE / "db" / "requests.py").read_text("utf-8"))
    assert moving
    assert {"insert", "claim", "start", "complete", "fail", "cancel", "requeue", "retry"} <= named


# --- structure


def rooms() -> dict[int, set[str]]:
    """Floor → modules, as architecture.md has it."""
    table = section(text("docs/architecture.md"), "## Rooms and floors")
    found: dict[int, set[str]] = {}
    floor = 0
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) < 5 or not (name := re.match(r"`(\w+)", cells[2])):
            continue
        floor = int(cells[1]) if cells[1] else floor
        found.setdefault(floor, set()).add(name[1])
    return found


def test_the_floors_are_those_that_import_linter_holds() -> None:
    layers = PYPROJECT["tool"]["importlinter"]["contracts"][0]["layers"]
    held = {len(layers) - number: set(re.findall(r"\w+", layer)) for number, layer in enumerate(layers)}
    assert rooms() == held


def test_every_dependency_has_its_line() -> None:
    wanted = [*PYPROJECT["project"]["dependencies"]]
    for extra in PYPROJECT["project"]["optional-dependencies"].values():
        wanted += extra
    names = {re.split(r"[\[<>=~! ;]", requirement, maxsplit=1)[0] for requirement in wanted}
    told = {name for row in first_cells(section(text("docs/decisions.md"), "## Dependencies")) for name in row}
    assert told == names - {"export-pipeline"}


# --- configuration, format


def test_every_field_of_a_data_type_is_explained() -> None:
    table = section(text("docs/configuration.md"), "## Fields")
    assert [names[0] for names in first_cells(table)] == [field.name for field in fields(DataTypeConfig)]


@pytest.mark.parametrize(
    ("page", "block"),
    [(page.name, block) for page in PAGES for block in blocks(page.read_text("utf-8"), "yaml")],
)
def test_every_yaml_example_loads(page: str, block: str, tmp_path: Path) -> None:
    file = tmp_path / f"{page}.yaml"
    file.write_text(block, "utf-8")
    assert data_type_file.load(file)


def written_keys(file: Path) -> set[str]:
    """Keys of the dict displays in a module, and those that are set one by one."""
    keys: list[ast.expr | None] = []
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Dict):
            keys += node.keys
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            keys.append(node.slice)
    return {key.value for key in keys if isinstance(key, ast.Constant)}


def test_every_manifest_field_is_explained() -> None:
    written = written_keys(Path(manifest.__file__))
    table = section(text("docs/FORMAT.md"), "## The manifest")
    told = {re.split(r"\.|\[\]\.", names[0])[-1] for names in first_cells(table)}
    assert len(written) > 10
    assert written - told == set()
    # What other rooms put into it.
    assert told - written <= set().union(*(written_keys(file) for file in SOURCES if file.suffix == ".py"))


def test_every_format_has_its_section() -> None:
    formats = section(text("docs/FORMAT.md"), "## Formats")
    headings = re.findall(r"^### (\w+)$", formats, re.MULTILINE)
    assert headings == list(ExportFormat)
    assert [names[0] for names in first_cells(formats)][1 : len(ExportFormat) + 1] == list(ExportFormat)


def test_the_example_is_a_file_that_verifies(tmp_path: Path) -> None:
    [example] = blocks(section(text("docs/FORMAT.md"), "## An example"), "json")
    file = tmp_path / "example.json"
    file.write_text(example, "utf-8")
    assert verify(file).parts["profile"].rows == 1


# --- links


def anchors(page: str) -> set[str]:
    """As forges make them: lower case, no punctuation, dashes for spaces."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text("utf-8")):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / unquote(path)).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text("utf-8")), target
