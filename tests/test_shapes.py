"""Functions that a reader can hold in mind: one of more than 60 lines, or of more than seven
parameters, gives its reason in its docstring.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from webapp.config import PROJECT_ROOT

MOST_LINES, MOST_PARAMETERS = 60, 7
LONG, WIDE = "One function, because", "Many parameters, because"
Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(package: str) -> Iterator[tuple[str, Function]]:
    """Yield every function with its place, "file:name"."""
    for path in sorted((PROJECT_ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, Function):
                yield f"{path.relative_to(PROJECT_ROOT).as_posix()}:{node.name}", node


def lines_of(function: Function) -> int:
    """Return how many lines a function has, with its docstring."""
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1


def parameters_of(function: Function) -> int:
    """Return how many parameters a caller may give."""
    given = function.args
    names = [one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    names += [one.arg for one in (given.vararg, given.kwarg) if one]
    return len([name for name in names if name not in ("self", "cls")])


@pytest.mark.parametrize(
    "package",
    ["ml", "webapp", "worker", "listener", "clients/python/hemoscan_client", "bench", "tests"],
)
def test_no_function_is_long_or_wide_without_a_reason(package: str) -> None:
    # A test tells one story from its beginning to its end, however long.
    named = [one for one in functions(package) if not one[0].rpartition(":")[2].startswith("test_")]
    assert len(named) > 50
    for limit, count, reason in (
        (MOST_LINES, lines_of, LONG),
        (MOST_PARAMETERS, parameters_of, WIDE),
    ):
        exceed = {place for place, one in named if count(one) > limit}
        # Exactly these: a reason that is no longer needed goes.
        assert exceed == {place for place, one in named if reason in docstring_of(one)}


def docstring_of(function: Function) -> str:
    """Return the docstring of a function in one line, "" without one."""
    return " ".join((ast.get_docstring(function) or "").split())


def test_lines_and_parameters_are_counted() -> None:
    (function,) = ast.parse(
        'def f(self, a, /, b, *c, d=1, **e):\n    """One\n\n    two."""\n    x'
    ).body
    assert isinstance(function, Function)
    assert (lines_of(function), parameters_of(function)) == (5, 5)
