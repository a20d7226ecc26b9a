"""Facts about each image of a data set, for browsing images, and their distribution by class and
source.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ml.datasets.examples import Example
from ml.datasets.pool import numbered
from ml.datasets.read import Dataset, Problem
from ml.exploration.shortcuts import BINS, Measured

MOST_SOURCES, MOST_SIZES = 8, 12
HEAD_BINS, SIZE_BINS = 21, 20
LARGEST_HEAD = 1.05
"""Side of the square around a head, relative to the image's longer side: it includes a margin."""
CLASSES = {"positive": 1, "negative": 0, "unlabeled": None}


@dataclass(frozen=True)
class ImageFacts:
    """One image of a data set.

    Attributes:
        example: the image; if unreadable, without hashes and sizes.
        patient, group: numbers that identify patients and groups, in the order of their first
            images; None without a patient, or if the image is unreadable.
        source: see `source_of`.
        bytes: size of the file.
        gray: mean gray level inside the head, 0..1 in the brain window.
        head_share: see `ml.exploration.shortcuts.Measured`.
        problems: what is wrong with the image.
        files, mask: paths within the folder that the data set was read from.
    """

    example: Example
    patient: int | None
    group: int | None
    source: str
    bytes: int
    gray: float | None
    head_share: float | None
    problems: tuple[Problem, ...]
    files: tuple[str, ...]
    mask: str | None


def image_facts(dataset: Dataset, measured: Sequence[Measured], root: Path) -> Iterator[ImageFacts]:
    """Yield the facts about each image of a data set in order, then about the unreadable images.

    Args:
        dataset: the data set.
        measured: its images, measured.
        root: the folder that its archive was unpacked to.
    """
    examples = (*dataset.examples, *dataset.unread)
    patients = _numbers([example.patient for example in examples])
    groups = _numbers([example.group for example in dataset.examples])
    known = sources_of(examples)
    for at, example in enumerate(examples):
        measurement = measured[at] if at < len(measured) else None
        yield ImageFacts(
            example,
            patients[at],
            groups[at] if measurement else None,
            source_of(example) if source_of(example) in known else "",
            example.path.stat().st_size if example.path.is_file() else 0,
            float(measurement.grays @ _CENTERS) if measurement else None,
            measurement.head_share if measurement else None,
            tuple(dataset.image_problems.get(example.name, ())),
            tuple(_within(path, root) for path in (example.path, *example.beside)),
            _within(example.mask, root) if example.mask else None,
        )


def source_of(example: Example) -> str:
    """Return the source of an image: the outermost folder of its name, empty without one."""
    parts = PurePosixPath(example.name).parts
    return parts[0] if len(parts) > 1 else ""


def sources_of(examples: Sequence[Example]) -> tuple[str, ...]:
    """Return the sources of a data set, sorted: none if there is only one, or so many that the
    folders are probably those of patients.
    """
    names = sorted({source_of(example) for example in examples})
    return tuple(names) if 1 < len(names) <= MOST_SOURCES else ()


def distributions(examples: Sequence[Example], measured: Sequence[Measured]) -> dict[str, Any]:
    """Return the distributions of images for charts; all values are JSON serializable.

    It contains `sources`, the number of images of each source; `common_sizes`, the most frequent
    [width, height, number of images]; and for "grays" (inside the head, from black to white),
    "head" (`Measured.head_share`) and "size" (the longer side in px) each {"low", "high": of the
    axis, "series": {name: share of each bin}}. The names are those of `CLASSES`, "all", and "source
    NAME".
    """
    known = sources_of(examples)
    of_series = {
        "all": np.ones(len(examples), bool),
        **{
            name: np.array([example.label == label for example in examples], bool)
            for name, label in CLASSES.items()
        },
        **{
            f"source {source}": np.array([source_of(e) == source for e in examples], bool)
            for source in known
        },
    }
    longest = np.array([max(e.width, e.height) for e in examples], np.float64)
    shares = np.array(
        [np.nan if m.head_share is None else m.head_share for m in measured], np.float64
    )
    grays = np.array([m.grays for m in measured]).reshape(len(measured), BINS)
    largest = float(longest.max(initial=1))
    return {
        "sources": {source: int(of_series[f"source {source}"].sum()) for source in known},
        "common_sizes": [
            [*size, count]
            for size, count in Counter((e.width, e.height) for e in examples).most_common(
                MOST_SIZES
            )
        ],
        "grays": {
            "low": 0.0,
            "high": 1.0,
            "series": {
                name: [round(float(share), 6) for share in grays[which].mean(axis=0)]
                for name, which in of_series.items()
                if which.any()
            },
        },
        "head": _histograms(shares, of_series, HEAD_BINS, LARGEST_HEAD),
        "size": _histograms(longest, of_series, SIZE_BINS, largest),
    }


def _histograms(
    values: np.ndarray, of_series: dict[str, np.ndarray], bins: int, high: float
) -> dict[str, Any]:
    series = {}
    for name, which in of_series.items():
        counts, _ = np.histogram(values[which], bins=bins, range=(0.0, high))
        if counts.sum():
            series[name] = [round(float(share), 6) for share in counts / counts.sum()]
    return {"low": 0.0, "high": high, "series": series}


def _numbers(names: Sequence[str | None]) -> list[int | None]:
    """Return a number for each name, 1, 2, ... in the order of first appearance, None if there is
    no name.
    """
    numbers = iter(numbered([name for name in names if name]))
    return [int(next(numbers)) + 1 if name else None for name in names]


def _within(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


_CENTERS = (np.arange(BINS) + 0.5) / BINS
