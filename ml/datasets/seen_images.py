"""Which images shaped which weights, so that no model is tested on what its features have already
learnt.

`seen.json` of a model folder holds no names, only what recognises an image again: the first 16 hex
digits of the file's SHA-256, and the perceptual hash of the picture, which a copy that was saved
anew still has, or nearly. "features" lists the images that shaped the convolutions (also those of
the weights they started from); "head" lists others that shaped the rest, which a later training
throws away.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ml.artifacts.folder import SEEN, ArtifactError, read_card
from ml.catalogue import STARTER_DIR, STARTER_SERIES_DIR
from ml.datasets.examples import scan_key
from ml.datasets.groups import (
    HASH_DIGITS,
    assign_groups,
    groups_per_class,
    is_telling,
    same_pictures,
)
from ml.datasets.read import Dataset, DatasetError, Example
from ml.models.contract import UNKNOWN
from ml.scans.files import place_in_series

Marks = tuple[tuple[str, str], ...]
"""(first 16 hex digits of the SHA-256, perceptual hash of 64) of each image; lists of earlier
versions have hashes of 16.
"""


@dataclass(frozen=True)
class Pool:
    """The images of all data sets, one entry each; those of a scan are neighbours, from foot to
    head.

    A scan is what one patient of a data set has, and an image without a patient is a scan of its
    own. `scans` numbers them 0..s-1. A
    label that nobody knows is `UNKNOWN`: such a slice stands in its scan, and never trains or
    tests. `unseen` is False for images that the initial weights have seen, or whose patient they
    have: such an image may train, and never stands in a test fold. `told` is the label of each
    scan, by its number, that was labelled as a whole.
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
            "Only whole scans are labelled here, so no slice could be answered for; add a data set"
            " with labelled slices."
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


def start_of(init: Path | str, datasets: Sequence[Dataset], folds: int) -> tuple[Path | str, Pool]:
    """Return what to start from, and the pool with what that has seen marked.

    "starter" is the first shipped model whose convolutions have seen too few of the images to
    forbid an honest test; where there is none, random weights, which the notes say.

    Raises:
        DatasetError: the data cannot be tested on, whatever one starts from, or the weights that
            were named have seen them.
        ArtifactError: the weights that were named do not say what they have seen.
    """
    if init != "starter":
        return init, pool_datasets(datasets, marks_of(init), folds)
    for folder in (STARTER_DIR, STARTER_SERIES_DIR):
        if folder.is_dir():
            try:
                return folder, pool_datasets(datasets, marks_of(folder), folds)
            except DatasetError:
                continue  # also what is wrong with the data themselves, which is said below
    pool = pool_datasets(datasets, (), folds)
    note = (
        "The models that ship have seen these images, so the training started from random weights;"
        " ImageNet's would serve better."
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


def describe_weights(init: Path | str) -> dict[str, Any]:
    """Return what the initial weights are, for the card: their own origin too, where they are a
    model of ours.

    Raises:
        ArtifactError: there are none.
    """
    path = Path(init)
    if init == "random":
        return {"kind": "random"}
    if path.is_dir():
        card = read_card(path)
        origin = {
            name: card.data.get(name) for name in ("datasets", "fingerprint", "initial_weights")
        }
        return {
            "kind": "model",
            "id": card.id,
            "architecture": card.architecture,
            "command": card.command,
            **origin,
        }
    if not path.is_file():
        raise ArtifactError(f"There are no initial weights at {path}.")
    with path.open("rb") as file:
        return {
            "kind": "file",
            "name": path.name,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


def marks_of(init: Path | str) -> Marks:
    """Return the images that shaped initial weights: those a model folder lists; none for random
    weights or a file from elsewhere.

    Raises:
        ArtifactError: the folder is no model, or does not say what its features have seen.
    """
    if init == "random" or not Path(init).is_dir():
        return ()
    card = read_card(Path(init))
    if SEEN not in card.files:
        raise ArtifactError(
            f"The model {card.id} does not say which images it has seen, so nothing could be tested"
            " honestly."
        )
    return tuple(
        (str(file), str(picture))
        for file, picture in json.loads((Path(init) / SEEN).read_bytes())["features"]
    )


def all_marks_of(model_dir: Path) -> Marks:
    """Return every image that shaped any part of a model.

    Raises:
        ArtifactError: the model does not say.
    """
    card = read_card(model_dir)
    if SEEN not in card.files:
        raise ArtifactError(
            f"The model {card.id} does not say which images it has seen, so overlaps with its"
            " training are unknown."
        )
    listed = json.loads((model_dir / SEEN).read_bytes())
    return tuple(
        {
            (str(file), str(picture))
            for part in ("features", "head")
            for file, picture in listed[part]
        }
    )


def notes_on_marks(marks: Marks) -> list[str]:
    """Return a sentence where pictures are listed by the 64-bit hash of earlier versions, which is
    not compared.
    """
    earlier = sum(bool(picture) and len(picture) != HASH_DIGITS for _, picture in marks)
    listed = (
        f"An earlier version listed {earlier} of the pictures that training has seen; of these only"
        " unchanged files are recognised."
    )
    return [listed] if earlier else []


def seen_among(examples: Sequence[Example], marks: Marks) -> np.ndarray:
    """Return which examples are among the marks, bool (n,): the same file, or nearly the same
    picture; an empty slice is nobody's.
    """
    files = {file for file, _ in marks}
    pictures = [picture for _, picture in marks if len(picture) == HASH_DIGITS]
    telling = [at for at, example in enumerate(examples) if is_telling(example.dhash)]
    seen = np.zeros(len(examples), bool)
    seen[telling] = [examples[at].sha256[:16] in files for at in telling]
    seen[
        [telling[one] for one, _ in same_pictures([examples[at].dhash for at in telling], pictures)]
    ] = True
    return seen


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


def seen_json(
    examples: Sequence[Example], before: Marks, learnt_features: bool, weak: Sequence[Example] = ()
) -> bytes:
    """Return seen.json of a model trained on `examples` from weights that had seen `before`; `weak`
    taught its head alone.
    """
    now, whole = (
        {(example.sha256[:16], example.dhash) for example in part} for part in (examples, weak)
    )
    features = set(before) | (now if learnt_features else set())
    renewed = {file for file, picture in features if len(picture) == HASH_DIGITS}
    features = {
        (file, picture)
        for file, picture in features
        if len(picture) == HASH_DIGITS or file not in renewed
    }
    return json.dumps(
        {"features": sorted(features), "head": sorted((now | whole) - features)},
        separators=(",", ":"),
    ).encode()


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
