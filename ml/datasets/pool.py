"""Several data sets become one, in the order in which scans are read."""

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
    """The images of all data sets, one entry each; those of a scan are neighbors, from foot to
    head.

    A scan is what one patient of a data set has, and an image without a patient is a scan of its
    own. `scans` numbers them 0..s-1. A
    label that nobody knows is `UNKNOWN`: such a slice stands in its scan, and never trains or
    tests. `unseen` is False for images that the initial weights have seen, or whose patient they
    have: such an image may train, and never stands in a test fold. `told` is the label of each
    scan, by its number, that was labeled as a whole.
    """

    examples: tuple[Example, ...]
    labels: np.ndarray
    groups: np.ndarray
    sources: np.ndarray
    scans: np.ndarray
    unseen: np.ndarray
    notes: tuple[str, ...]
    told: Mapping[int, int]

    @property
    def known(self) -> np.ndarray:
        """Where the label is known, bool (n,)."""
        known: np.ndarray = self.labels != UNKNOWN
        return known


def pool_datasets(datasets: Sequence[Dataset], seen: Marks, folds: int) -> Pool:
    """Join the images of all data sets, scan by scan, and mark what the initial weights have seen.

    Raises:
        DatasetError: two data sets share a name, or too few groups of a class are left to test on
            in that many folds.
    """
    names = [dataset.name for dataset in datasets]
    if len(set(names)) < len(names):
        raise DatasetError(
            f"Two data sets are called {max(names, key=names.count)}; give them different names."
        )
    everything = [example for dataset in datasets for example in in_scan_order(dataset.examples)]
    # The same file or picture in two data sets joins their groups.
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
    kept = [
        (number, example)
        for number, example in zip(numbers, everything, strict=True)
        if scan_key(example) in with_a_label
    ]
    labels = np.array(
        [UNKNOWN if example.label is None else example.label for _, example in kept], np.int64
    )
    groups = np.array([everything[number].group for number, _ in kept])
    unseen = np.array([number not in seen_groups for number, _ in kept], bool)
    known = labels != UNKNOWN
    scans = numbered([scan_key(example) for _, example in kept])
    told = {
        int(scan): e.scan_label
        for scan, (_, e) in zip(scans, kept, strict=True)
        if e.scan_label is not None
    }
    if told and not known.any():
        raise DatasetError(
            "Only whole scans are labeled here, so no slice could be answered for; add a data set"
            " with labeled slices."
        )
    _require_enough(
        labels[unseen & known], groups[unseen & known], folds, some_seen=not unseen.all()
    )
    notes = notes_on_marks(seen)
    if len(kept) < len(everything):
        notes.append(f"{len(everything) - len(kept)} images with unknown labels were left out.")
    if not known.all():
        notes.append(
            f"{int((~known).sum())} slices with unknown labels stand in their scans; they neither"
            " train nor test."
        )
    if not unseen.all():
        notes.append(
            f"{int((~unseen).sum())} of the {len(labels)} images belong to patients that the"
            " initial weights have seen; they only train, and no figure includes them."
        )
    return Pool(
        tuple(e for _, e in kept),
        labels,
        groups,
        np.array([e.dataset for _, e in kept]),
        scans,
        unseen,
        tuple(notes),
        told,
    )


def start_of(
    init: Path | str, encoder: str | None, datasets: Sequence[Dataset], folds: int
) -> tuple[Path | str, Pool]:
    """Return what to start from, and the pool with what that has seen marked.

    "starter" is the first shipped model that has the architecture's `encoder` and has seen too few
    of the images to forbid an honest test; where there is none, random weights, which the notes
    say.

    Raises:
        DatasetError: the data cannot be tested on, whatever one starts from, or the weights that
            were named have seen them.
        ArtifactError: the weights that were named do not say what they have seen.
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
                continue  # also what is wrong with the data themselves, which is said below
    pool = pool_datasets(datasets, (), folds)
    note = (
        "The models that ship have another encoder or have seen these images, so the training"
        " started from random weights; ImageNet's would serve better."
    )
    return "random", replace(pool, notes=(*pool.notes, note))


def in_scan_order(examples: Sequence[Example]) -> list[Example]:
    """Return the examples scan by scan in the order of their first slices, each scan from foot to
    head.

    That is the order of their places, of its `slice` column, or else of the numbers in its files'
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
    """Yield the positions of pictures that show the same in two data sets."""
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
    found = groups_per_class(labels, groups)
    if some_seen and not all(found.values()):
        raise DatasetError(
            "The initial weights have already seen these images, so nothing honest is left to test"
            " on; start from random or ImageNet weights, or add another data set."
        )
    for label, noun in ((1, "hemorrhage"), (0, "no hemorrhage")):
        if found[label] < 2 * folds:
            unseen = " that the initial weights have not seen" if some_seen else ""
            raise DatasetError(
                f"Only {found[label]} groups (patients) show {noun}; {folds} folds need at least"
                f" {2 * folds}{unseen}."
            )
