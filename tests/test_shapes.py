"""Functions that a reader can hold in mind: none is longer than 60 lines, without its docstring, or
has more than seven parameters, unless it is listed here with a reason.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from webapp.config import PROJECT_ROOT

MOST_LINES, MOST_PARAMETERS = 60, 7
LONG = {
    "ml/cli/arguments.py:parser": "one command after the other, each a few flags",
    "ml/exploration/report.py:_of_one": "one picture of the report after the other, and its text",
    "ml/networks/contrasts.py:contrasts_nodes": "a graph node by node, beside the Keras function",
    "ml/scans/nifti.py:_read_header": "one field of a header after the other, each checked",
    "worker/app.py:live_as_worker": "the handlers of Celery's signals, which share what they close"
    " over",
}
WIDE = {
    "ml/networks/training_loop.py:run_epochs": "what Keras's own `fit` takes, all by keyword",
    "ml/scans/phantoms.py:_bleed": "the geometry of a head, which is drawn once",
}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(package: str) -> Iterator[tuple[str, Function]]:
    """Yield every function with its place, "file:name"."""
    for path in sorted((PROJECT_ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, Function):
                yield f"{path.relative_to(PROJECT_ROOT).as_posix()}:{node.name}", node


def lines_of(function: Function) -> int:
    """Return how many lines a function has, without its docstring."""
    assert function.end_lineno is not None
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is not None and function.body[0].end_lineno is not None:
        lines -= function.body[0].end_lineno - function.body[0].lineno + 1
    return lines


def parameters_of(function: Function) -> int:
    """Return how many parameters a caller may give."""
    given = function.args
    names = [one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    names += [one.arg for one in (given.vararg, given.kwarg) if one]
    return len([name for name in names if name not in ("self", "cls")])


@pytest.mark.parametrize("package", ["ml", "webapp", "worker", "bench"])
def test_no_function_is_long_or_wide_without_a_reason(package: str) -> None:
    found = list(functions(package))
    assert len(found) > 50
    long = {place for place, one in found if lines_of(one) > MOST_LINES}
    wide = {place for place, one in found if parameters_of(one) > MOST_PARAMETERS}
    # Exactly these: an exception that is no longer needed goes.
    assert long == {place for place in LONG if place.startswith(f"{package}/")}
    assert wide == {place for place in WIDE if place.startswith(f"{package}/")}


def test_lines_and_parameters_are_counted() -> None:
    (function,) = ast.parse(
        'def f(self, a, /, b, *c, d=1, **e):\n    """One\n\n    two."""\n    x'
    ).body
    assert isinstance(function, Function)
    assert (lines_of(function), parameters_of(function)) == (2, 5)
