"""JSON as dataclasses: what is written comes back, and what does not fit is named."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from ml.typed_json import JsonError, from_json, to_json


@dataclass(frozen=True)
class Point:
    x: float
    label: str | None = None


@dataclass(frozen=True)
class Path:
    points: list[Point]
    ends: tuple[float, ...]
    by_name: Mapping[str, Point]
    anything: dict[str, Any]
    closed: bool
    count: int | None
    before: Path | None = None
    notes: list[str] = field(default_factory=list)


INNER = Path([], (), {}, {}, False, 3)
WHOLE = Path(
    [Point(1), Point(0.5, "a")], (0.0, 1.0), {"p": Point(2)}, {"n": [1]}, True, None, INNER
)


def test_written_values_are_read_back() -> None:
    assert from_json(Path, json.loads(json.dumps(to_json(WHOLE)))) == WHOLE


def test_a_field_whose_default_is_none_is_left_out_while_it_is_none() -> None:
    assert to_json(Point(1)) == {"x": 1}
    assert to_json(INNER)["count"] == 3 and "before" not in to_json(INNER)
    assert to_json(WHOLE)["count"] is None


def test_an_absent_field_has_its_default_and_an_unknown_one_is_passed_over() -> None:
    assert from_json(Point, {"x": 1, "carbon": 2}) == Point(1)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"points": [{"x": "1"}]}, "expected `float`, got `str` at `$.points[0].x`"),
        ({"points": [{}]}, "object missing required field `x` at `$.points[0]`"),
        ({"by_name": {"p": 1}}, "expected `object`, got `int` at `$.by_name[...]`"),
        ({"closed": 1}, "expected `bool`, got `int` at `$.closed`"),
        ({"count": 1.5}, "expected `int | null`, got `float` at `$.count`"),
        ({"notes": None}, "expected `array`, got `null` at `$.notes`"),
    ],
)
def test_a_mismatch_is_named(changed: dict[str, object], sentence: str) -> None:
    with pytest.raises(JsonError) as error:
        from_json(Path, {**to_json(WHOLE), **changed})
    assert str(error.value) == f"does not have the expected form: {sentence}"
