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


@dataclass(frozen=True)
class Joined:
    """The images of all data sets, scan by scan, before the initial weights are chosen.

    Attributes:
        everything: all images.
        groups: (m,) group number of each of the m images.
        with_labels: positions of the n images whose scan has any label.
    """

    everything: tuple[Example, ...]
    groups: np.ndarray
    with_labels: np.ndarray

    @property
    def examples(self) -> tuple[Example, ...]:
        """The images whose scan has any label."""
        return tuple(self.everything[at] for at in self.with_labels)

    @property
    def labels(self) -> np.ndarray:
        """Their labels (n,), `UNKNOWN` where there is none."""
        return np.array([UNKNOWN if e.label is None else e.label for e in self.examples], np.int64)

    @property
    def group_names(self) -> np.ndarray:
        """Their groups (n,), by name."""
        return np.array([self.everything[number].group for number in self.groups[self.with_labels]])

    def unseen(self, seen: Marks) -> np.ndarray:
        """Return which of the n images belong to groups without an image in `seen`, bool (n,)."""
        of_seen = self.groups[seen_among(self.everything, seen)]
        return ~np.isin(self.groups[self.with_labels], of_seen)


@dataclass(frozen=True)
class Start:
    """The initial weights of a training run.

    Attributes:
        weights: a file, a model folder or "random".
        unseen: bool (n,), True for images of groups that the weights were not trained on.
        notes: sentences for the card.
    """

    weights: Path | str
    unseen: np.ndarray
    notes: tuple[str, ...] = ()


def join_datasets(datasets: Sequence[Dataset]) -> Joined:
    """Join the images of all data sets, scan by scan. A file or image that occurs in two data sets
    joins their groups.

    Raises:
        DatasetError: two data sets share a name, or there are only scan-level labels.
    """
    names = [dataset.name for dataset in datasets]
    if len(set(names)) < len(names):
        raise DatasetError(
            f"Two data sets are named {max(names, key=names.count)}; give them different names."
        )
    everything = [example for dataset in datasets for example in in_scan_order(dataset.examples)]
    files = [[("file", e.sha256)] if is_telling(e.dhash) else [] for e in everything]
    numbers = assign_groups(
        [[("group", e.group), *own] for e, own in zip(everything, files, strict=True)],
        _same_in_two_sets(everything),
    )
    with_a_label = {
        scan_key(example)
        for example in everything
        if (example.label, example.scan_label) != (None, None)
    }
    used = [at for at, example in enumerate(everything) if scan_key(example) in with_a_label]
    if used and all(everything[at].label is None for at in used):
        raise DatasetError(
            "There are only scan-level labels, so slices could not be tested; add a data set with"
            " labeled slices."
        )
    return Joined(tuple(everything), np.array(numbers, np.int64), np.array(used, np.int64))


def choose_start(init: Path | str, encoder: str | None, joined: Joined, folds: int) -> Start:
    """Return the initial weights, with the images that they have not seen.

    "starter" selects the first shipped model that has the architecture's `encoder` and has seen so
    few of the images that enough remain for testing; if there is none, random weights, with a note.

    Raises:
        DatasetError: the data do not allow testing with any weights, or the given weights have seen
            them.
        ArtifactError: the given weights do not state what they have seen.
    """
    if init != "starter":
        return start_from(init, marks_of(init), joined, folds)
    for folder in (STARTER_DIR, STARTER_SERIES_DIR):
        if (
            folder.is_dir()
            and architecture_named(read_card(folder).architecture).encoder == encoder
        ):
            try:
                return start_from(folder, marks_of(folder), joined, folds)
            except DatasetError:
                continue  # or the data themselves are unusable, which raises an error below
    start = start_from("random", (), joined, folds)
    note = (
        "The shipped models have another encoder or were trained on these images, so the"
        " training started"
        " from random weights; ImageNet weights would be better."
    )
    return replace(start, notes=(*start.notes, note))


def unseen_groups(dataset: Dataset) -> dict[str, dict[str, int]]:
    """Return how many groups of a data set each shipped model has not seen, by model id, and the
    number of all groups under the key "": {"positive", "negative"}. Empty if no slices are labeled.

    With at least `2 * folds` groups of each class, a training run can be tested (`choose_start`).
    """
    try:
        joined = join_datasets([dataset])
    except DatasetError:
        return {}
    marks: dict[str, Marks] = {"": ()}
    for folder in (STARTER_DIR, STARTER_SERIES_DIR):
        if folder.is_dir():
            marks[read_card(folder).id] = marks_of(folder)
    known, counts = joined.labels != UNKNOWN, {}
    for id, seen in marks.items():
        left = known & joined.unseen(seen)
        of_class = groups_per_class(joined.labels[left], joined.group_names[left])
        counts[id] = {"positive": of_class[1], "negative": of_class[0]}
    return counts


def pool_datasets(joined: Joined, start: Start) -> Pool:
    """Return the joined images, with those that the initial weights have seen marked."""
    examples, labels = joined.examples, joined.labels
    known, unseen = labels != UNKNOWN, start.unseen
    scans = numbered([scan_key(example) for example in examples])
    given_scan_labels = {
        int(scan): e.scan_label
        for scan, e in zip(scans, examples, strict=True)
        if e.scan_label is not None
    }
    notes = []
    if len(examples) < len(joined.everything):
        left_out = len(joined.everything) - len(examples)
        notes.append(f"{left_out} images with unknown labels were left out.")
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
        examples,
        labels,
        joined.group_names,
        np.array([example.dataset for example in examples]),
        scans,
        unseen,
        (*start.notes, *notes),
        given_scan_labels,
    )


def start_from(weights: Path | str, seen: Marks, joined: Joined, folds: int) -> Start:
    """Return the start from weights that were trained on the images `seen`.

    Raises:
        DatasetError: too few groups of a class are left for testing in that many folds.
    """
    unseen, known = joined.unseen(seen), joined.labels != UNKNOWN
    _require_enough(
        joined.labels[unseen & known],
        joined.group_names[unseen & known],
        folds,
        some_seen=not unseen.all(),
    )
    return Start(weights, unseen, tuple(notes_on_marks(seen)))


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
    """Return a number for each key, int64 (n,): 0, 1, ... in the order of first appearance."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)


def _same_in_two_sets(examples: Sequence[Example]) -> Iterator[tuple[int, int]]:
    """Yield the positions of images that are duplicates across data sets."""
    before: list[int] = []
    for name in dict.fromkeys(example.dataset for example in examples):
        here = [
            at
            for at, example in enumerate(examples)
            if example.dataset == name and is_telling(example.dhash)
        ]
        for new, old in same_pictures(
            [examples[at].dhash for at in here], [examples[at].dhash for at in before]
        ):
            yield before[old], here[new]
        before += here


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
