"""What is known of the types of bleeding, slice by slice and of whole scans."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ml.datasets.examples import UNKNOWN, Example
from ml.datasets.type_labels import known_types

HIDDEN = [UNKNOWN] * 5


def example(
    label: int | None,
    *types: str,
    known: bool = True,
    scan: tuple[int, frozenset[str] | None] = (UNKNOWN, None),
) -> Example:
    """A slice that shows these types; `scan` is what was told of its scan as a whole, label and
    types.
    """
    of_scan = {} if scan[0] == UNKNOWN else {"scan_label": scan[0], "scan_types": scan[1]}
    return Example(
        Path("x.png"),
        "x.png",
        label,
        "p",
        1,
        "",
        "set",
        types=frozenset(types) if known else None,
        **of_scan,
    )  # type: ignore[arg-type]


def test_a_scan_shows_what_any_slice_shows_and_hides_what_a_bleeding_slice_hides() -> None:
    examples = [
        *(example(1, "epidural"), example(1, "subdural")),
        *(example(1, "epidural"), example(1, known=False)),
        *(example(0), example(None, known=False)),
        example(None, known=False),
    ]
    result = known_types(examples, np.array([0, 0, 1, 1, 2, 2, 3]))
    assert result is not None
    assert result.slices.tolist() == [
        [1, 0, 0, 0, 0],
        [0, 1, 0, 0, 0],
        [1, 0, 0, 0, 0],
        HIDDEN,
        [0] * 5,
        HIDDEN,
        HIDDEN,
    ]
    assert result.scans.tolist() == [[1, 1, 0, 0, 0], [1, *HIDDEN[1:]], [0] * 5, HIDDEN]


def test_a_label_of_a_whole_scan_counts_for_the_scan_alone() -> None:
    labels = (1, frozenset({"subdural"}))
    examples = [
        example(1, "epidural"),
        *(example(None, known=False, scan=labels), example(0, scan=labels)),
        *(example(None, known=False, scan=(1, None)), example(0, scan=(1, None))),
    ]
    result = known_types(examples, np.array([0, 1, 1, 2, 2]))
    assert result is not None
    assert result.scans.tolist() == [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], HIDDEN]
    assert result.slices[1:].tolist() == [HIDDEN, [0] * 5, HIDDEN, [0] * 5]


def test_nothing_is_known_where_no_slice_names_any_type() -> None:
    assert known_types([example(0), example(1, known=False)], np.arange(2)) is None
