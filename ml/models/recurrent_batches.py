"""Training batches of a recurrent network: slices as sequences of rows, or scans and parts of
scans.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from ml.datasets.examples import UNKNOWN
from ml.models.contract import FitTask
from ml.networks.fine_tuning import balanced_draws
from ml.networks.sample_weights import sample_weights
from ml.networks.training_loop import Batch

SCANS, SLICES = 8, 32  # sequences in a batch
MOST_BATCHES = 48  # of an epoch
MOST_SLICES = 64  # slices in a training sequence
WHOLE_SHARE = 0.5  # share of whole scans among the training sequences; the rest are parts of scans
Drawing = tuple[int, Callable[[int], Iterator[Batch]]]
"""The number of batches per epoch, and the function that draws one."""


def slices_drawn(task: FitTask, features: np.ndarray, learn: np.ndarray) -> Drawing:
    """Draw slices as sequences of rows: rows have no labels, so only the sequence output is
    trained.
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

    Within a data set both classes have equal weight, among slices and among scans; if all its scans
    are of one class, the scan output is trained on parts of scans only, which are of both classes.
    The scans `weak_scans` are drawn whole, however long: a part of a positive scan may be negative,
    and drawing only parts of negative ones would bias the network.
    """
    scans = np.union1d(task.scans[learn], weak_scans)
    places = [np.flatnonzero(task.scans == scan) for scan in scans]
    slice_weights = np.zeros(len(task.labels), np.float32)
    slice_weights[learn] = sample_weights(
        task.labels[learn], task.sources[learn], task.groups[learn]
    )
    labels_of_scans = [task.given_scan_labels.get(int(scan), UNKNOWN) for scan in scans]
    is_weak = np.isin(scans, weak_scans)
    truth_of = np.array(
        [max(task.labels[at].max(), said) for at, said in zip(places, labels_of_scans, strict=True)]
    )
    source_of = np.array([task.sources[at[0]] for at in places])
    share_of = np.array([(truth_of[source_of == source] == 1).mean() for source in source_of])
    length = max(
        len(at) if whole else min(len(at), MOST_SLICES)
        for at, whole in zip(places, is_weak, strict=True)
    )
    batches = int(np.clip(-(-2 * len(scans) // SCANS), 1, MOST_BATCHES))
    copies, _, width = features.shape

    def whole_weight(number: int, is_part: bool) -> float:
        if is_part:
            return 1.0
        share = share_of[number]
        return (
            0.0 if share in (0, 1) else float(0.5 / (share if truth_of[number] == 1 else 1 - share))
        )

    def draw(seed: int) -> Iterator[Batch]:
        random = np.random.default_rng(seed)
        for _ in range(batches):
            inputs, present = (
                np.zeros((SCANS, length, width), np.float32),
                np.zeros((SCANS, length), np.float32),
            )
            steps, weights = (
                np.zeros((SCANS, length, 1), np.float32),
                np.zeros((SCANS, length), np.float32),
            )
            whole, whole_weights = np.zeros((SCANS, 1), np.float32), np.zeros(SCANS, np.float32)
            for row in range(SCANS):
                number = int(random.integers(len(scans)))
                at = places[number]
                wanted = (
                    len(at)
                    if random.random() < WHOLE_SHARE
                    else int(random.integers(1, len(at) + 1))
                )
                wanted = len(at) if is_weak[number] else min(wanted, MOST_SLICES)
                first = int(random.integers(len(at) - wanted + 1))
                is_part = wanted < len(at)
                at = at[first : first + wanted]
                if random.random() < 0.5:
                    at = at[::-1]
                labels = task.labels[at]
                inputs[row, :wanted] = features[random.integers(copies), at]
                present[row, :wanted], steps[row, :wanted, 0], weights[row, :wanted] = (
                    1,
                    labels == 1,
                    slice_weights[at],
                )
                whole[row] = float(
                    (labels == 1).any() or (labels_of_scans[number] == 1 and not is_part)
                )
                # The scan decision of a single slice is its slice decision; unlabeled slices may be
                # positive unless the scan is labeled negative.
                known = wanted > 1 and (
                    whole[row, 0] == 1
                    or labels_of_scans[number] == 0
                    or not (labels == UNKNOWN).any()
                )
                whole_weights[row] = whole_weight(number, is_part) if known else 0.0
            yield (
                {"features": inputs, "present": present},
                {"steps": steps, "whole": whole},
                {"steps": weights, "whole": whole_weights},
            )

    return batches, draw
