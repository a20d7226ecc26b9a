"""docs/security.md names a test for each promise; they are there."""

from __future__ import annotations

import ast
import re

from webapp.config import PROJECT_ROOT


def test_every_test_that_the_security_page_names_exists() -> None:
    named = re.findall(
        r"`([\w/]+\.py)::(\w+)`", (PROJECT_ROOT / "docs" / "security.md").read_text()
    )

    assert len(named) > 40
    for path, name in named:
        tree = ast.parse((PROJECT_ROOT / "tests" / path).read_text())
        tests = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert name in tests, f"{path} has no test {name}"
