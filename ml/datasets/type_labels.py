"""Labels of types of hemorrhage, for slices and for scans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ml.catalogue import BLEEDING_TYPES
from ml.datasets.examples import UNKNOWN, Example


@dataclass(frozen=True)
class KnownTypes:
    """The types of slices (n, 5) and scans (s, 5), int8: 0, 1 or `UNKNOWN` for each of
    `BLEEDING_TYPES`.
    """

    slices: np.ndarray
    scans: np.ndarray


def known_types(examples: Sequence[Example], scans: np.ndarray) -> KnownTypes | None:
    """Return the types in the examples' labels, None if no slice has a type.

    A scan has the types of its slices and of its scan-level label. If a positive slice or scan has
    unknown types, the scan's remaining types are unknown.

    Args:
        examples: the slices.
        scans: (n,) the number of the scan of each, 0..s-1.
    """
    if not any(example.types for example in examples):
        return None
    slices = np.array([_row(example.types) for example in examples], np.int8)
    whole = np.array([_row(example.scan_types) for example in examples], np.int8)
    of_scans = np.full((int(scans.max()) + 1, len(BLEEDING_TYPES)), UNKNOWN, np.int8)
    np.maximum.at(of_scans, scans, slices)
    hides = [
        (e.label == 1 and e.types is None) or (e.scan_label == 1 and e.scan_types is None)
        for e in examples
    ]
    hidden = np.zeros(len(of_scans), bool)
    np.logical_or.at(hidden, scans, np.array(hides, bool))
    of_scans[hidden[:, np.newaxis] & (of_scans == 0)] = UNKNOWN
    np.maximum.at(of_scans, scans, whole)
    return KnownTypes(slices, of_scans)


def _row(types: frozenset[str] | None) -> list[int]:
    return [UNKNOWN if types is None else int(name in types) for name in BLEEDING_TYPES]
