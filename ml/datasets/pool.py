"""Pool several data sets into one, with scans in anatomical order."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ml.artifacts.folder import read_card
from ml.catalogue import STARTER_DIR, STARTER_SERIES_DIR, architecture_named
from ml.datasets.examples import UNKNOWN, Example, scan_key
from ml.datasets.groups import assign_groups, groups_per_class
from ml.datasets.near_duplicates import is_telling, same_pictures
from ml.datasets.read import Dataset
from ml.datasets.seen_images import Marks, marks_of, notes_on_marks, seen_among
from ml.errors import DatasetError
from ml.scans.files import place_in_series


@dataclass(frozen=True)
class Pool:
    """The images of all data sets, one entry each; those of a scan are consecutive, from foot to
    head.

    A scan comprises the slices of one patient of a data set; an image without a patient is a scan
    of its own. `scans` numbers them 0..s-1. Unlabeled slices have the label `UNKNOWN`: they are
    part of their scan, but not used for training or testing. `unseen` is False for images in the
    training data of the initial weights, or of a patient in them: such images are only used for
    training. `given_scan_labels` maps scan numbers to scan-level labels.
    """

    examples: tuple[Example, ...]
    labels: np.ndarray
    groups: np.ndarray
    sources: np.ndarray
    scans: np.ndarray
    unseen: np.ndarray
    notes: tuple[str, ...]
    given_scan_labels: Mapping[int, int]

    @property
    def known(self) -> np.ndarray:
        """Whether the label is known, bool (n,)."""
        known: np.ndarray = self.labels != UNKNOWN
        return known


def pool_datasets(datasets: Sequence[Dataset], seen: Marks, folds: int) -> Pool:
    """Pool the images of all data sets, scan by scan, and mark those that the initial weights have
    seen.

    Raises:
        DatasetError: two data sets share a name, or too few groups of a class are left for testing
            in that many folds.
    """
    names = [dataset.name for dataset in datasets]
    if len(set(names)) < len(names):
        raise DatasetError(
            f"Two data sets are named {max(names, key=names.count)}; give them different names."
        )
    everything = [example for dataset in datasets for example in in_scan_order(dataset.examples)]
    # A file or image that is in two data sets joins their groups.
    files = [[("file", e.sha256)] if is_telling(e.dhash) else [] for e in everything]
    numbers = assign_groups(
        [[("group", e.group), *own] for e, own in zip(everything, files, strict=True)],
        _same_in_two_sets(everything),
    )
    seen_groups = set(np.array(numbers)[seen_among(everything, seen)].tolist())
    with_a_label = {
        scan_key(example)
        for example in everything
        if (example.label, example.scan_label) != (None, None)
    }
    used = [
        (number, example)
        for number, example in zip(numbers, everything, strict=True)
        if scan_key(example) in with_a_label
    ]
    labels = np.array(
        [UNKNOWN if example.label is None else example.label for _, example in used], np.int64
    )
    groups = np.array([everything[number].group for number, _ in used])
    unseen = np.array([number not in seen_groups for number, _ in used], bool)
    known = labels != UNKNOWN
    scans = numbered([scan_key(example) for _, example in used])
    given_scan_labels = {
        int(scan): e.scan_label
        for scan, (_, e) in zip(scans, used, strict=True)
        if e.scan_label is not None
    }
    if given_scan_labels and not known.any():
        raise DatasetError(
            "There are only scan-level labels, so slices could not be tested; add a data set with"
            " labeled slices."
        )
    _require_enough(
        labels[unseen & known], groups[unseen & known], folds, some_seen=not unseen.all()
    )
    notes = notes_on_marks(seen)
    if len(used) < len(everything):
        notes.append(f"{len(everything) - len(used)} images with unknown labels were left out.")
    if not known.all():
        notes.append(
            f"{int((~known).sum())} unlabeled slices are part of their scans, but are not used for"
            " training or testing."
        )
    if not unseen.all():
        notes.append(
            f"{int((~unseen).sum())} of the {len(labels)} images belong to patients that the"
            " initial weights have seen; they are used for training only, and no metric includes"
            " them."
        )
    return Pool(
        tuple(e for _, e in used),
        labels,
        groups,
        np.array([e.dataset for _, e in used]),
        scans,
        unseen,
        tuple(notes),
        given_scan_labels,
    )


def start_of(
    init: Path | str, encoder: str | None, datasets: Sequence[Dataset], folds: int
) -> tuple[Path | str, Pool]:
    """Return the initial weights, and the pool in which the images that they have seen are
    marked.

    "starter" selects the first shipped model that has the architecture's `encoder` and has seen so
    few of the images that enough are left for testing; if there is none, random weights, with a
    note.

    Raises:
        DatasetError: the data do not allow testing with any weights, or the given weights have seen
            them.
        ArtifactError: the given weights do not state what they have seen.
    """
    if init != "starter":
        return init, pool_datasets(datasets, marks_of(init), folds)
    for folder in (STARTER_DIR, STARTER_SERIES_DIR):
        if (
            folder.is_dir()
            and architecture_named(read_card(folder).architecture).encoder == encoder
        ):
            try:
                return folder, pool_datasets(datasets, marks_of(folder), folds)
            except DatasetError:
                continue  # or the data themselves are unusable, which is raised below
    pool = pool_datasets(datasets, (), folds)
    note = (
        "The shipped models have another encoder or have seen these images, so the training started"
        " from random weights; ImageNet weights would be better."
    )
    return "random", replace(pool, notes=(*pool.notes, note))


def in_scan_order(examples: Sequence[Example]) -> list[Example]:
    """Return the examples scan by scan, in the order of their first slices; each scan from foot to
    head.

    Slices are sorted by position, else by the `slice` column, else by the numbers in their file
    names.
    """
    first: dict[tuple[str, str, str], int] = {}
    for position, example in enumerate(examples):
        first.setdefault(scan_key(example), position)
    placed = {scan_key(example) for example in examples if example.place_mm is not None}

    def place(example: Example) -> tuple[Any, ...]:
        number = example.place_mm if scan_key(example) in placed else example.slice
        return (
            first[scan_key(example)],
            float("inf") if number is None else number,
            place_in_series(Path(example.name)),
        )

    return sorted(examples, key=place)


def numbered(keys: Sequence[Hashable]) -> np.ndarray:
    """Return a number for each key, 0, 1, ... in the order of first appearance."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)


def _same_in_two_sets(examples: Sequence[Example]) -> Iterator[tuple[int, int]]:
    """Yield the positions of images that are duplicates across data sets."""
    before: list[int] = []
    for name in dict.fromkeys(example.dataset for example in examples):
        own = [
            at
            for at, example in enumerate(examples)
            if example.dataset == name and is_telling(example.dhash)
        ]
        for one, other in same_pictures(
            [examples[at].dhash for at in own], [examples[at].dhash for at in before]
        ):
            yield before[other], own[one]
        before += own


def _require_enough(labels: np.ndarray, groups: np.ndarray, folds: int, some_seen: bool) -> None:
    groups_of_class = groups_per_class(labels, groups)
    if some_seen and not all(groups_of_class.values()):
        raise DatasetError(
            "The initial weights have already seen these images, so no unseen images are left for"
            " testing; start from random or ImageNet weights, or add another data set."
        )
    for label, noun in ((1, "hemorrhage"), (0, "no hemorrhage")):
        if groups_of_class[label] < 2 * folds:
            unseen = " that the initial weights have not seen" if some_seen else ""
            raise DatasetError(
                f"Only {groups_of_class[label]} groups (patients) show {noun}; {folds} folds"
                f" need at least {2 * folds}{unseen}."
            )
