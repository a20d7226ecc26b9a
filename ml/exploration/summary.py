"""Look into a data set before anything is trained on it: what it holds, how it looks, and which
shortcuts it offers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from ml.datasets import read as datasets
from ml.datasets.layouts import Example
from ml.datasets.read import Dataset
from ml.exploration.shortcuts import BINS, Measured, class_probes, measure, source_probes

Told = Callable[[int, int], None]


def measure_all(dataset: Dataset, on_image: Told = lambda done, total: None) -> list[Measured]:
    """Measure every image of a data set; `on_image` hears (images measured, images in all)."""
    measured = []
    for done, example in enumerate(dataset.examples, start=1):
        measured.append(measure(example))
        on_image(done, len(dataset.examples))
    return measured


def explore(
    dataset: Dataset,
    measured: Sequence[Measured] | None = None,
    on_probe: Told = lambda done, total: None,
) -> dict[str, Any]:
    """Describe a data set for a page, a report or a terminal; every value can be written as JSON.

    `on_probe` hears (probes tried, probes in all).

    To the facts of `ml.datasets.read.explore` come:
        slices_per_patient: {"min", "median", "max"}, or None where no patient is named.
        histograms: {"positive": [...], "negative": [...]}, the mean share of 32 greys from black to
        white inside the heads of
            each class, in the brain window; a class without images has an empty list.
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
        **datasets.explore(dataset),
        "slices_per_patient": per_patient,
        "histograms": {
            name: _mean_greys(dataset.examples, measured, label)
            for name, label in (("positive", 1), ("negative", 0))
        },
        "probes": class_probes(dataset.examples, measured, on_probe=on_probe),
    }


def compare_sources(
    opened: Sequence[Dataset], measured: Sequence[Sequence[Measured]]
) -> list[dict[str, Any]]:
    """Return for each pair of data sets how well simple facts tell them apart: [{"sources": [name,
    name], "probes": [...]}, ...].
    """
    pairs = combinations(zip(opened, measured, strict=True), 2)
    return [
        {
            "sources": [one.name, other.name],
            "probes": source_probes(
                (one.name, other.name), (one.examples, other.examples), (of_one, of_other)
            ),
        }
        for (one, of_one), (other, of_other) in pairs
    ]


def _mean_greys(
    examples: Sequence[Example], measured: Sequence[Measured], label: int
) -> list[float]:
    greys = [m.greys for e, m in zip(examples, measured, strict=True) if e.label == label]
    return [round(float(share), 6) for share in np.mean(greys, axis=0)] if greys else []


GREYS = tuple((bin_ + 0.5) / BINS for bin_ in range(BINS))
"""The middles of the histograms' bins, 0 black and 1 white."""
