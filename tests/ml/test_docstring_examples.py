"""The examples in docstrings run as they stand there, and give what they say."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

from ml.inference.predictor import Predictor
from ml.training.run import train


@pytest.mark.usefixtures("few_repetitions")
@pytest.mark.parametrize("documented", [Predictor, train], ids=lambda one: one.__name__)
def test_the_example_in_a_docstring_runs(
    documented: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # Without the module's own names: what the example needs, it imports.
    (example,) = doctest.DocTestFinder(exclude_empty=True, recurse=False).find(documented, globs={})
    output: list[str] = []
    result = doctest.DocTestRunner().run(example, out=output.append)
    assert result.attempted > 5 and result.failed == 0, "".join(output)
