"""What the documents name exists, and what they are to name, they do."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

from tango_async.http.routes import ROUTES

TESTS = Path(__file__).parent
DOCS = TESTS.parent / "docs"
DOCUMENT = DOCS / "survival.md"

KINDS = ["uploads", "queued jobs", "assigned jobs", "running jobs", "results", "callbacks", "ids", "pools"]

_NAMED = re.compile(r"`([\w/]+\.py)::(\w+)`")


def tables() -> dict[str, list[list[str]]]:
    """The cells of each line, by heading."""
    found: dict[str, list[list[str]]] = {}
    for section in DOCUMENT.read_text().split("\n## ")[1:]:
        heading, _, body = section.partition("\n")
        lines = [line.strip("|").split(" | ") for line in body.splitlines() if line.startswith("| ")]
        found[heading] = [[cell.strip() for cell in line] for line in lines if line[0].strip() != "what"]
    return found


@cache
def functions(file: str) -> frozenset[str]:
    nodes = ast.walk(ast.parse((TESTS / file).read_text()))
    return frozenset(n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))


def test_every_test_that_the_survival_table_names_exists() -> None:
    named = _NAMED.findall(DOCUMENT.read_text())
    assert len(named) > 50
    assert [(file, test) for file, test in named if not (TESTS / file).is_file() or test not in functions(file)] == []


def test_every_part_says_of_every_kind_of_thing_what_becomes_of_it() -> None:
    for heading, lines in tables().items():
        assert [line[0] for line in lines if line[0] in KINDS] == KINDS, heading
        for line in lines:
            assert len(line) == 3 and all(line), (heading, line)
            assert _NAMED.search(line[2]), (heading, line)


def test_the_table_of_scopes_has_every_route() -> None:
    table = "".join(line for line in (DOCS / "keys.md").read_text().splitlines() if line.startswith("| `"))
    routes = {path.split("/")[1] or "/" for _, path, _ in ROUTES}
    assert routes == set(re.findall(r"`([^`]+)`", table)) - {"submit", "admin"}


def test_the_tree_has_every_module_and_no_other() -> None:
    source = TESTS.parent / "src" / "tango_async"
    tree = (DOCS / "architecture.md").read_text().split("```")[1]
    assert set(re.findall(r"\w+\.py", tree)) == {file.name for file in source.rglob("*.py")} - {"__init__.py"}
