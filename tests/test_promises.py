"""docs/security.md and docs/operations.md name a test for each promise; they are there."""

from __future__ import annotations

import ast
import re

import pytest

from webapp.config import PROJECT_ROOT


def rows_of(page: str) -> list[list[str]]:
    """Return the cells of the rows of the tables of a page that have tests in their last column."""
    rows, has_tests = [], False
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line[:1] == "|" else []
        has_tests = bool(cells) and (has_tests or cells[-1] in ("test", "tests"))
        if has_tests and cells[-1] not in ("test", "tests", "---"):
            rows.append(cells)
    return rows


@pytest.mark.parametrize(("page", "fewest"), [("security.md", 40), ("operations.md", 20)])
def test_every_promise_of_a_page_has_a_test_that_exists(page: str, fewest: int) -> None:
    text = (PROJECT_ROOT / "docs" / page).read_text()
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", text)

    assert [cells[0] for cells in rows_of(text) if "::" not in cells[-1]] == []
    assert len(named) > fewest and len(rows_of(text)) > 10
    for path, name in named:
        tree = ast.parse((PROJECT_ROOT / "tests" / path).read_text())
        tests = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert name in tests, f"{path} has no test {name}"
