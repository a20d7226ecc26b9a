"""Training batches of a recurrent network: slices as sequences of rows, or scans and parts of
scans.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ml.datasets.examples import UNKNOWN
from ml.models.contract import FitTask
from ml.networks.fine_tuning import balanced_draws
from ml.networks.sample_weights import sample_weights
from ml.networks.training_loop import Batch

SCANS, SLICES = 8, 32  # sequences per batch
MOST_BATCHES = 48  # batches per epoch
MOST_SLICES = 64  # slices in a training sequence
WHOLE_SHARE = 0.5  # share of whole scans among the training sequences; the rest are parts of scans
Drawing = tuple[int, Callable[[int], Iterator[Batch]]]
"""The number of batches per epoch, and the function that draws the batches."""


def slices_drawn(task: FitTask, features: np.ndarray, learn: np.ndarray) -> Drawing:
    """Draw slices as sequences of rows, with `features` (copies, n, h, 2c) of all slices: rows have
    no labels, so only the sequence output is trained.
    """
    batches = int(np.clip(4 * len(learn) // SLICES, 1, MOST_BATCHES))
    copies, _, rows, _ = features.shape
    present, unknown = np.ones((SLICES, rows), np.float32), np.zeros((SLICES, rows, 1), np.float32)

    def draw(seed: int) -> Iterator[Batch]:
        random = np.random.default_rng(seed)
        for _ in range(batches):
            at = learn[balanced_draws(task.labels[learn], task.sources[learn], SLICES, random)]
            inputs = {
                "features": features[random.integers(copies, size=SLICES), at],
                "present": present,
            }
            truth = {"steps": unknown, "whole": task.labels[at].astype(np.float32)[:, np.newaxis]}
            yield inputs, truth, {"steps": unknown[..., 0], "whole": np.ones(SLICES, np.float32)}

    return batches, draw


def scans_drawn(
    task: FitTask, features: np.ndarray, learn: np.ndarray, weak_scans: np.ndarray
) -> Drawing:
    """Draw scans and parts of scans, in ascending or descending order.

    Within a data set, both classes have equal weight, among slices and among scans; if all its
    scans are of one class, the scan output is trained only on parts of scans, which are of both
    classes. The scans `weak_scans` are drawn whole, however long: a part of a positive scan may be
    negative, and drawing parts only of negative ones would bias the network.
    """
    scans = _Scans.of(task, learn, weak_scans)
    batches = int(np.clip(-(-2 * len(scans.places) // SCANS), 1, MOST_BATCHES))
    copies, _, width = features.shape

    def draw(seed: int) -> Iterator[Batch]:
        random = np.random.default_rng(seed)
        for _ in range(batches):
            shape = SCANS, scans.longest
            inputs, present = np.zeros((*shape, width), np.float32), np.zeros(shape, np.float32)
            steps, weights = np.zeros((*shape, 1), np.float32), np.zeros(shape, np.float32)
            whole, whole_weights = np.zeros((SCANS, 1), np.float32), np.zeros(SCANS, np.float32)
            for row in range(SCANS):
                number, at, is_part = scans.drawn(random)
                n = len(at)
                inputs[row, :n], present[row, :n] = features[random.integers(copies), at], 1
                steps[row, :n, 0], weights[row, :n] = task.labels[at] == 1, scans.slice_weights[at]
                whole[row], whole_weights[row] = scans.whole(number, at, is_part)
            yield (
                {"features": inputs, "present": present},
                {"steps": steps, "whole": whole},
                {"steps": weights, "whole": whole_weights},
            )

    return batches, draw


@dataclass(frozen=True)
class _Scans:
    """The s training scans.

    Attributes:
        labels: (n,) of all slices of the task.
        places: the positions of the slices of each scan.
        slice_weights: (n,) of all slices of the task.
        labels_of_scans: (s,) scan-level labels, `UNKNOWN` where there is none.
        is_weak: (s,) True for scans with a scan-level label and no labeled slice.
        weights: (s,) of the scan output for a whole scan, 0 if all scans of its data set are of one
            class.
    """

    labels: np.ndarray
    places: Sequence[np.ndarray]
    slice_weights: np.ndarray
    labels_of_scans: Sequence[int]
    is_weak: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, task: FitTask, learn: np.ndarray, weak_scans: np.ndarray) -> _Scans:
        """Return the scans of the slices at `learn`, and the scans `weak_scans`."""
        scans = np.union1d(task.scans[learn], weak_scans)
        places = [np.flatnonzero(task.scans == scan) for scan in scans]
        slice_weights = np.zeros(len(task.labels), np.float32)
        slice_weights[learn] = sample_weights(
            task.labels[learn], task.sources[learn], task.groups[learn]
        )
        labels_of_scans = [task.given_scan_labels.get(int(scan), UNKNOWN) for scan in scans]
        truth = np.array(
            [
                max(task.labels[at].max(), scan_label)
                for at, scan_label in zip(places, labels_of_scans, strict=True)
            ]
        )
        sources = np.array([task.sources[at[0]] for at in places])
        shares = np.array([(truth[sources == source] == 1).mean() for source in sources])
        of_class = np.where(truth == 1, shares, 1 - shares)
        one_class = (shares == 0) | (shares == 1)
        weights = np.where(one_class, 0.0, 0.5 / np.where(one_class, 1.0, of_class))
        return cls(
            task.labels, places, slice_weights, labels_of_scans, np.isin(scans, weak_scans), weights
        )

    @property
    def longest(self) -> int:
        """The number of slices of the longest sequence."""
        return max(
            len(at) if whole else min(len(at), MOST_SLICES)
            for at, whole in zip(self.places, self.is_weak, strict=True)
        )

    def drawn(self, random: np.random.Generator) -> tuple[int, np.ndarray, bool]:
        """Return the number of a scan, the positions of all or some of its slices in reading order,
        and whether these are only a part of it.
        """
        number = int(random.integers(len(self.places)))
        at = self.places[number]
        wanted = len(at) if random.random() < WHOLE_SHARE else int(random.integers(1, len(at) + 1))
        wanted = len(at) if self.is_weak[number] else min(wanted, MOST_SLICES)
        first = int(random.integers(len(at) - wanted + 1))
        is_part = wanted < len(at)
        at = at[first : first + wanted]
        return number, at[::-1] if random.random() < 0.5 else at, is_part

    def whole(self, number: int, at: np.ndarray, is_part: bool) -> tuple[float, float]:
        """Return the label, 1 or 0, and the weight of the scan output for the drawn part of a
        scan.
        """
        labels, of_scan = self.labels[at], self.labels_of_scans[number]
        bleeds = bool((labels == 1).any() or (of_scan == 1 and not is_part))
        # The scan decision of a single slice is its slice decision; unlabeled slices may be
        # positive unless the scan is labeled negative.
        known = len(at) > 1 and (bleeds or of_scan == 0 or not (labels == UNKNOWN).any())
        weight = 1.0 if is_part else float(self.weights[number])
        return float(bleeds), weight if known else 0.0
