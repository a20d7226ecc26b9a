"""Summary of a data set before training: contents, appearance and shortcuts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from ml.catalogue import BLEEDING_TYPES
from ml.datasets.examples import Example, scan_key, slice_of
from ml.datasets.read import Dataset
from ml.exploration.images import distributions
from ml.exploration.shortcuts import (
    BINS,
    Measured,
    Sample,
    class_probes,
    measure,
    source_probes,
)
from ml.scans.slices import Slice

OnPart = Callable[[int, int], None]


def measure_all(
    dataset: Dataset,
    on_image: OnPart = lambda done, total: None,
    on_slice: Callable[[Example, Slice], None] = lambda example, slice_: None,
) -> list[Measured]:
    """Measure every image of a data set; `on_image` is called with (images measured, number of
    images), and `on_slice` with each image before.
    """
    measured = []
    for done, example in enumerate(dataset.examples, start=1):
        slice_ = slice_of(example)
        measured.append(measure(example, slice_))
        on_slice(example, slice_)
        on_image(done, len(dataset.examples))
    return measured


def explore(
    dataset: Dataset,
    measured: Sequence[Measured] | None = None,
    on_probe: OnPart = lambda done, total: None,
) -> dict[str, Any]:
    """Describe a data set for a page, a report or a terminal; all values are JSON serializable.

    `on_probe` is called with (probes done, number of probes).

    In addition to `facts_of`, it has:
        slices_per_patient: {"min", "median", "max"}, or None without patients.
        histograms: {"positive": [...], "negative": [...]}, the mean histogram of 32 gray levels
            from black to white inside the heads of each class, in the brain window; empty for a
            class without images.
        distributions: see `ml.exploration.images.distributions`.
        probes: see `ml.exploration.shortcuts.class_probes`.
    """
    measured = measure_all(dataset) if measured is None else measured
    counts = np.array(sorted(Counter(e.patient for e in dataset.examples if e.patient).values()))
    per_patient = (
        {"min": int(counts[0]), "median": float(np.median(counts)), "max": int(counts[-1])}
        if len(counts)
        else None
    )
    return {
        **facts_of(dataset),
        "slices_per_patient": per_patient,
        "histograms": {
            name: _mean_grays(dataset.examples, measured, label)
            for name, label in (("positive", 1), ("negative", 0))
        },
        "distributions": distributions(dataset.examples, measured),
        "probes": class_probes(dataset.examples, measured, on_probe=on_probe),
    }


def compare_sources(
    opened: Sequence[Dataset], measured: Sequence[Sequence[Measured]]
) -> list[dict[str, Any]]:
    """Return for each pair of data sets how well simple features distinguish them: [{"sources":
    [name, name], "probes": [...]}, ...].
    """
    pairs = combinations(zip(opened, measured, strict=True), 2)
    return [
        {
            "sources": [first.name, second.name],
            "probes": source_probes(
                (first.name, second.name),
                (
                    Sample([e.group for e in first.examples], of_first),
                    Sample([e.group for e in second.examples], of_second),
                ),
            ),
        }
        for (first, of_first), (second, of_second) in pairs
    ]


def _mean_grays(
    examples: Sequence[Example], measured: Sequence[Measured], label: int
) -> list[float]:
    grays = [m.grays for e, m in zip(examples, measured, strict=True) if e.label == label]
    return [round(float(share), 6) for share in np.mean(grays, axis=0)] if grays else []


GRAYS = tuple((bin_ + 0.5) / BINS for bin_ in range(BINS))
"""The centers of the histogram bins, 0 black and 1 white."""


def facts_of(dataset: Dataset) -> dict[str, object]:
    """Describe a data set for a page or a terminal; all values are JSON serializable.

    It includes:
        scan_labels: number of scans that are {"positive", "negative", "unknown"}, and that have
            only a scan-level label ("as_wholes"). An image without a patient is a scan.
        types: {type of hemorrhage: {"slices": n, "patients": n}}, empty if there are none.
    """
    examples = dataset.examples
    widths, heights = np.array([e.width for e in examples]), np.array([e.height for e in examples])
    modes = sorted({example.mode for example in examples})
    return {
        "name": dataset.name,
        "layout": dataset.layout,
        "fingerprint": dataset.fingerprint,
        "images": len(examples),
        "positive": sum(example.label == 1 for example in examples),
        "negative": sum(example.label == 0 for example in examples),
        "unknown": sum(example.label is None for example in examples),
        "patients": len({example.patient for example in examples if example.patient}),
        "groups": len({example.group for example in examples}),
        **_scans_counted(examples),
        "types": _types_counted(examples),
        "near_duplicates": [list(pair) for pair in dataset.near_duplicates],
        "sizes": {
            side: {
                "min": int(values.min()),
                "median": int(np.median(values)),
                "max": int(values.max()),
            }
            for side, values in (("width", widths), ("height", heights))
        },
        "modes": {mode: sum(example.mode == mode for example in examples) for mode in modes},
        "problems": list(dataset.problems),
    }


def _scans_counted(examples: Sequence[Example]) -> dict[str, object]:
    labels: dict[object, set[int | None]] = {}
    wholes: dict[object, int] = {}
    for example in examples:
        labels.setdefault(scan_key(example), set()).add(example.label)
        if example.scan_label is not None:
            wholes[scan_key(example)] = example.scan_label
    of_scans = [
        max(
            (label for label in (*slice_labels, wholes.get(key)) if label is not None), default=None
        )
        for key, slice_labels in labels.items()
    ]
    counts = {
        name: of_scans.count(label)
        for name, label in (("positive", 1), ("negative", 0), ("unknown", None))
    }
    return {
        "scans": len(labels),
        "scan_labels": counts | {"as_wholes": sum(labels[key] == {None} for key in wholes)},
    }


def _types_counted(examples: Sequence[Example]) -> dict[str, dict[str, int]]:
    if all(example.types is None and example.scan_types is None for example in examples):
        return {}
    counted = {}
    for name in BLEEDING_TYPES:
        showing = [example for example in examples if name in (example.types or ())]
        of_scans = [example for example in examples if name in (example.scan_types or ())]
        patients = {example.patient or example.name for example in (*showing, *of_scans)}
        counted[name] = {"slices": len(showing), "patients": len(patients)}
    return counted
