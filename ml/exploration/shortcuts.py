"""Shortcut probes: how well do non-anatomical features predict the class or the source of an
image?

A probe is a small random forest on a few features, evaluated by grouped cross-validation. A network
can learn the same shortcuts, and will, since they are easier to see than hemorrhage. A result well
above chance is thus a warning about the data, not about a model.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError
from sklearn.ensemble import RandomForestClassifier

from ml.datasets.examples import Example, slice_of
from ml.datasets.groups import groups_per_class, stratified_group_folds
from ml.errors import DatasetError
from ml.evaluation.metrics import metrics_with_intervals
from ml.figures import undefined
from ml.preprocessing.model_input import InputSpec, to_input
from ml.scans.slices import FloatArray, Slice, gray_of
from ml.typed_json import to_json

TREES, LEAF, FOLDS, MOST_IMAGES = 40, 3, 5, 3000
SMALL_PX, BORDER_PX = 32, 3
HEAD_PX, BINS = 128, 32
CHANCE_AUROC = 0.5

PROBES: dict[str, tuple[str, ...]] = {
    "file size": ("bytes",),
    "width and height": ("width", "height"),
    "color and mode": ("mode", "color", "red", "blue"),
    "all facts of the file": ("bytes", "width", "height", "mode", "color", "red", "blue"),
    "border pixels": ("border",),
}
"""The probes by name, with their non-anatomical features."""

FORMER_NAMES = {"colour": "color"}
"""Feature names in stored samples of earlier versions, and their current names."""


@dataclass(frozen=True)
class Measured:
    """Features of one image.

    Attributes:
        facts: values by name: file size in bytes, width and height in px, a number for the mode,
            the share of colored pixels, and the mean red and blue excess over gray (0..1).
        border: float32 (k,), the outermost pixels of the whole image at 32 x 32.
        grays: float64 (32,), histogram of gray levels inside the head, in the brain window.
        head_share: the side of the square around the head, relative to the image's longer side;
            None where no head was found.
    """

    facts: Mapping[str, float]
    border: FloatArray
    grays: np.ndarray
    head_share: float | None = None


def measure(example: Example, slice_: Slice | None = None) -> Measured:
    """Measure one image of a data set; `slice_` is its slice, if already read.

    Raises:
        ImageError: it cannot be read.
    """
    slice_ = slice_of(example) if slice_ is None else slice_
    whole = np.ascontiguousarray(gray_of(slice_), np.float32)
    small = cv2.resize(whole, (SMALL_PX, SMALL_PX), interpolation=cv2.INTER_AREA)
    outer = np.ones((SMALL_PX, SMALL_PX), bool)
    outer[BORDER_PX:-BORDER_PX, BORDER_PX:-BORDER_PX] = False
    head, frame = to_input(slice_, InputSpec(size=HEAD_PX))
    counts, _ = np.histogram(head[head > 0], bins=BINS, range=(0, 1))
    colored, red, blue = _colors(example)
    facts = {
        "bytes": float(np.log(example.path.stat().st_size)),
        "width": float(example.width),
        "height": float(example.height),
        "mode": float(sum(example.mode.encode())),
        "color": colored,
        "red": red,
        "blue": blue,
    }
    return Measured(
        facts,
        np.asarray(small[outer], np.float32),
        counts / max(counts.sum(), 1),
        frame.height / max(whole.shape) if frame.shows_head else None,
    )


@dataclass(frozen=True)
class Sample:
    """The data that probes need, for all or some images of a data set.

    Attributes:
        groups: the group of each image.
        measured: its measured features.
    """

    groups: Sequence[str]
    measured: Sequence[Measured]


def sample_of(examples: Sequence[Example], measured: Sequence[Measured], seed: int = 0) -> Sample:
    """Return a random sample of the images that a probe uses: at most `MOST_IMAGES`."""
    groups = [example.group for example in examples]
    if len(groups) <= MOST_IMAGES:
        return Sample(groups, measured)
    chosen = np.sort(np.random.default_rng(seed).choice(len(groups), MOST_IMAGES, replace=False))
    return Sample([groups[at] for at in chosen], [measured[at] for at in chosen])


def write_sample(sample: Sample, path: Path) -> None:
    """Write a sample as an NPZ file, float32."""
    names = tuple(sample.measured[0].facts) if sample.measured else ()
    with path.open("wb") as file:
        np.savez_compressed(
            file,
            groups=np.array(sample.groups, np.str_),
            names=np.array(names, np.str_),
            facts=np.array(
                [[m.facts[name] for name in names] for m in sample.measured], np.float32
            ),
            border=np.array([m.border for m in sample.measured], np.float32),
            grays=np.array([m.grays for m in sample.measured], np.float32),
        )


def read_sample(path: Path) -> Sample:
    """Read what `write_sample` wrote.

    Raises:
        DatasetError: the file is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            names = [FORMER_NAMES.get(str(name), str(name)) for name in stored["names"]]
            return Sample(
                [str(group) for group in stored["groups"]],
                [
                    Measured(dict(zip(names, map(float, facts), strict=True)), border, grays)
                    for facts, border, grays in zip(
                        stored["facts"], stored["border"], stored["grays"], strict=True
                    )
                ],
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as err:
        raise DatasetError("A data set's stored measurements can no longer be read.") from err


def class_probes(
    examples: Sequence[Example],
    measured: Sequence[Measured],
    seed: int = 0,
    on_probe: Callable[[int, int], None] = lambda done, total: None,
) -> list[dict[str, Any]]:
    """Return the result of each probe for the labels, excluding unlabeled images; if a class is
    missing, the metrics are undefined and give the reason. `on_probe` is called with (probes done,
    number of probes).

    Each is {"name", "auroc", "accuracy", "majority", "suspicious"}: two metrics with intervals as
    JSON of `ml.figures.Estimate`, the share of the larger class, and whether the lower bound of the
    AUROC is above chance.
    """
    known = [(e, m) for e, m in zip(examples, measured, strict=True) if e.label is not None]
    labels, groups = (
        np.array([e.label for e, _ in known], np.int64),
        np.array([e.group for e, _ in known]),
    )
    probes = []
    for done, (name, what) in enumerate(PROBES.items()):
        on_probe(done, len(PROBES))
        probes.append(_probe(name, _columns([m for _, m in known], what), labels, groups, seed))
    return probes


def source_probes(names: tuple[str, str], samples: tuple[Sample, Sample]) -> list[dict[str, Any]]:
    """Return how well simple features, including gray levels inside the head, distinguish two data
    sets.

    If hemorrhage is more frequent in one of them, a model trained on both can learn the source
    instead.
    """
    labels = np.repeat([0, 1], [len(sample.groups) for sample in samples])
    groups = np.array(
        [
            f"{name}/{group}"
            for name, sample in zip(names, samples, strict=True)
            for group in sample.groups
        ]
    )
    joined = [*samples[0].measured, *samples[1].measured]
    what = {**PROBES, "grays of the head": ("grays",)}
    return [
        _probe(name, _columns(joined, columns), labels, groups, seed=0)
        for name, columns in what.items()
    ]


def _probe(
    name: str, columns: np.ndarray, labels: np.ndarray, groups: np.ndarray, seed: int
) -> dict[str, Any]:
    # enough for two digits, without taking an hour per import
    if len(labels) > MOST_IMAGES:
        chosen = np.sort(
            np.random.default_rng(seed).choice(len(labels), MOST_IMAGES, replace=False)
        )
        columns, labels, groups = columns[chosen], labels[chosen], groups[chosen]
    groups_of = groups_per_class(labels, groups)
    folds = min(FOLDS, *groups_of.values())
    if folds < 2:
        missing = to_json(undefined("fewer than two groups of a class", len(labels)))
        return {
            "name": name,
            "auroc": missing,
            "accuracy": missing,
            "majority": None,
            "suspicious": False,
        }
    probabilities = np.zeros(len(labels))
    for train, test in stratified_group_folds(labels, groups, folds, seed):
        if len(set(labels[train])) < 2:
            probabilities[test] = labels[train][0]
            continue
        forest = RandomForestClassifier(TREES, min_samples_leaf=LEAF, random_state=seed, n_jobs=1)
        probabilities[test] = forest.fit(columns[train], labels[train]).predict_proba(
            columns[test]
        )[:, 1]
    figures = metrics_with_intervals(
        labels, probabilities, (probabilities >= 0.5).astype(np.int64), groups, seed
    )
    majority = float(max(labels.mean(), 1 - labels.mean()))
    low = figures.auroc.low
    return {
        "name": name,
        "auroc": to_json(figures.auroc),
        "accuracy": to_json(figures.accuracy),
        "majority": majority,
        "suspicious": low is not None and low > CHANCE_AUROC,
    }


def _columns(measured: Sequence[Measured], what: Sequence[str]) -> np.ndarray:
    rows = []
    for image in measured:
        row: list[float] = []
        for name in what:
            row += (
                list(image.border)
                if name == "border"
                else list(image.grays)
                if name == "grays"
                else [image.facts[name]]
            )
        rows.append(row)
    return np.array(rows, np.float64).reshape(len(rows), -1) if rows else np.zeros((0, 1))


def _colors(example: Example) -> tuple[float, float, float]:
    """Return the share of colored pixels, and the mean red and blue excess over gray."""
    try:
        # the preamble of a DICOM file may look like another format
        with Image.open(example.path, formats=("PNG", "JPEG")) as picture:
            if picture.mode == "L":
                return 0.0, 0.0, 0.0
            rgb = (
                np.asarray(
                    picture.convert("RGB").resize((64, 64), Image.Resampling.BOX), np.float32
                )
                / 255
            )
    except UnidentifiedImageError:  # DICOM slices are gray
        return 0.0, 0.0, 0.0
    gray = rgb.mean(axis=2)
    share = float((rgb.max(axis=2) - rgb.min(axis=2) > 0.06).mean())
    return share, float((rgb[..., 0] - gray).mean()), float((rgb[..., 2] - gray).mean())
