"""Metrics of a network on slices that it is not trained on, after each epoch.

They are for observers only: they do not affect training, selection or stopping, they draw nothing
from the random generators of the training, and the weights are bit-for-bit the same without them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from ml.evaluation.metrics import auroc

MOST_WATCHED = 128  # maximum number of monitored slices
RARER = 8
"""Monitored slices are this many times fewer than the training slices of an epoch. A training step
on a slice takes three times as long as its prediction, so monitoring takes a twenty-fourth of an
epoch.
"""


@dataclass(frozen=True)
class Watch:
    """Batches on which a network is monitored.

    Attributes:
        batches: inputs, targets and, optionally, sample weights, each with the same number of
            examples.
        judged: function from a batch and the network's outputs for it to labels and decisions of
            slices (k,).
    """

    batches: Sequence[tuple[Any, ...]]
    judged: Callable[[tuple[Any, ...], Any], tuple[np.ndarray, np.ndarray]]

    def figures(self, network: keras.Model) -> dict[str, float]:
        """Return the current loss of a compiled network and, if both classes are present, its
        AUROC.
        """
        losses, labels, decisions = [], [], []
        for batch in self.batches:
            inputs, targets, *weights = batch
            outputs = network.predict_on_batch(inputs)
            answered, wanted, weighted = keras.tree.map_structure(
                keras.ops.convert_to_tensor, (outputs, targets, weights)
            )
            loss = network.compute_loss(
                y=wanted, y_pred=answered, sample_weight=weighted[0] if weighted else None
            )
            losses.append(float(loss))
            of_batch = self.judged(batch, outputs)
            labels.append(of_batch[0])
            decisions.append(of_batch[1])
        network.reset_metrics()
        area = auroc(np.concatenate(labels), np.concatenate(decisions))
        figures = {"validation_loss": float(np.mean(losses))}
        return figures | ({"validation_auroc": area} if np.isfinite(area) else {})


def watched_of(labels: np.ndarray, held_back: np.ndarray, shown: int, batch: int) -> np.ndarray:
    """Return positions of slices to monitor, equally many of each class and evenly spaced; none if
    a class is missing.

    Args:
        labels: (n,) 0 or 1 at `held_back`.
        held_back: positions of slices that are not trained on.
        shown: number of slices that an epoch is trained on.
        batch: the batch size; if there is more than one batch, all are complete.
    """
    classes = [np.sort(held_back[labels[held_back] == label]) for label in (0, 1)]
    wanted = max(min(MOST_WATCHED, shown // RARER), batch)
    each = min(wanted // 2, *(len(of_class) for of_class in classes))
    if 2 * each > batch:
        each = (2 * each // batch) * batch // 2
    # Alternately, so that each batch contains both classes.
    spread = [of_class[np.arange(each) * len(of_class) // max(each, 1)] for of_class in classes]
    return np.stack(spread, axis=1).reshape(-1)
