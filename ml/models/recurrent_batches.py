"""What a recurrent network learns from in an epoch: slices for their rows, or scans and parts of
scans, drawn batch by batch.
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

SCANS, SLICES = 8, 32  # sequences in a batch
MOST_BATCHES = 48  # of an epoch
MOST_SLICES = 64  # of a sequence that is learned from
WHOLE_SHARE = 0.5  # of the sequences that are learned from; the rest are parts of scans
Drawing = tuple[int, Callable[[int], Iterator[Batch]]]
"""How many batches an epoch has, and what draws them."""


def slices_drawn(task: FitTask, features: np.ndarray, learn: np.ndarray) -> Drawing:
    """Draw slices for their rows: nothing is known of a row, so only the whole learns."""
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
    task: FitTask, features: np.ndarray, learn: np.ndarray, weak: np.ndarray
) -> Drawing:
    """Draw scans and parts of scans, read upwards or downwards.

    Within a data set slices of both classes weigh the same, and so do scans; where all its scans
    are of one class only parts of scans teach the whole's decision, as among them there are both.
    The scans `weak` are drawn whole, however long: a part of one that bleeds may show no blood, and
    parts of the others alone would teach that parts never do.
    """
    scans = _Scans.of(task, learn, weak)
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
    """The s scans that a network learns from.

    Attributes:
        labels: (n,) of all slices of the task.
        places: the positions of the slices of each scan.
        slice_weights: (n,) of all slices of the task.
        told: (s,) what was told of each scan as a whole, else `UNKNOWN`.
        is_weak: (s,) whether it was labeled as a whole, and no slice of it.
        weights: (s,) of the whole's decision for a whole scan, 0 where all scans of its data set
            are of one class.
    """

    labels: np.ndarray
    places: Sequence[np.ndarray]
    slice_weights: np.ndarray
    told: Sequence[int]
    is_weak: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, task: FitTask, learn: np.ndarray, weak: np.ndarray) -> _Scans:
        """Return the scans of the slices at `learn`, and those numbered `weak`."""
        scans = np.union1d(task.scans[learn], weak)
        places = [np.flatnonzero(task.scans == scan) for scan in scans]
        slice_weights = np.zeros(len(task.labels), np.float32)
        slice_weights[learn] = sample_weights(
            task.labels[learn], task.sources[learn], task.groups[learn]
        )
        told = [task.told.get(int(scan), UNKNOWN) for scan in scans]
        truth = np.array(
            [max(task.labels[at].max(), said) for at, said in zip(places, told, strict=True)]
        )
        sources = np.array([task.sources[at[0]] for at in places])
        shares = np.array([(truth[sources == source] == 1).mean() for source in sources])
        of_class = np.where(truth == 1, shares, 1 - shares)
        one_class = (shares == 0) | (shares == 1)
        weights = np.where(one_class, 0.0, 0.5 / np.where(one_class, 1.0, of_class))
        return cls(task.labels, places, slice_weights, told, np.isin(scans, weak), weights)

    @property
    def longest(self) -> int:
        """How many slices the longest sequence has."""
        return max(
            len(at) if whole else min(len(at), MOST_SLICES)
            for at, whole in zip(self.places, self.is_weak, strict=True)
        )

    def drawn(self, random: np.random.Generator) -> tuple[int, np.ndarray, bool]:
        """Return the number of a scan, positions of all or some of its slices in the order in which
        they are read, and whether they are a part of it.
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
        """Return whether what was drawn of a scan bleeds, 1 or 0, and how much the decision for the
        whole of it weighs.
        """
        labels, told = self.labels[at], self.told[number]
        bleeds = bool((labels == 1).any() or (told == 1 and not is_part))
        # A single slice answers by its own decision; what nobody looked at may show blood, unless
        # the scan is told to show none.
        known = len(at) > 1 and (bleeds or told == 0 or not (labels == UNKNOWN).any())
        weight = 1.0 if is_part else float(self.weights[number])
        return float(bleeds), weight if known else 0.0
