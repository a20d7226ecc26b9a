"""Labels corrected by a person, which replace those in the files of a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ml.datasets.examples import Example, scan_key
from ml.errors import DatasetError


def with_corrections(
    examples: Sequence[Example], corrections: Mapping[str, int | None]
) -> list[Example]:
    """Return the examples with corrected labels: 1 for hemorrhage, 0 for none, None for unknown.

    The types of hemorrhage recorded for a corrected slice no longer count: without hemorrhage there
    are none, otherwise they are unknown. A scan that was labeled negative and now has a positive
    slice becomes positive, with unknown types; a scan whose slices are now all labeled no longer
    needs a label of its own.

    Args:
        examples: all images of a data set.
        corrections: labels by the name of the image.

    Raises:
        DatasetError: there is no image of that name.
    """
    if not corrections:
        return list(examples)
    unknown = sorted(set(corrections) - {example.name for example in examples})
    if unknown:
        raise DatasetError(f"The label of {unknown[0]} was corrected, but there is no such image.")
    corrected = [
        _corrected(e, corrections[e.name]) if e.name in corrections else e for e in examples
    ]
    labels: dict[object, set[int | None]] = {}
    for example in corrected:
        labels.setdefault(scan_key(example), set()).add(example.label)
    result = []
    for example in corrected:
        slice_labels = labels[scan_key(example)]
        if example.scan_label is not None and None not in slice_labels:
            example = replace(example, scan_label=None, scan_types=None)
        elif example.scan_label == 0 and 1 in slice_labels:
            example = replace(example, scan_label=1, scan_types=None)
        result.append(example)
    return result


def _corrected(example: Example, label: int | None) -> Example:
    if label == example.label:
        return example
    types = frozenset[str]() if label == 0 and example.types is not None else None
    return replace(example, label=label, types=types)
