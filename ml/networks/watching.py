"""Figures of a network on slices that it does not learn from, after each epoch.

They are for people who look on: nothing is learned, chosen or ended by them, nothing is drawn from
a random generator that a training uses, and the weights are the same to the bit as without them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from ml.evaluation.metrics import auroc

MOST_WATCHED = 128  # slices
RARER = 8
"""So many times fewer slices are watched than an epoch learns from. Learning from one takes three
times as long as answering it, so that watching takes a twenty-fourth of an epoch.
"""


@dataclass(frozen=True)
class Watch:
    """Batches that a network is watched on.

    Attributes:
        batches: inputs, targets and perhaps sample weights, all of the same number of examples.
        judged: a batch and the network's outputs for it -> labels and decisions of slices (k,).
    """

    batches: Sequence[tuple[Any, ...]]
    judged: Callable[[tuple[Any, ...], Any], tuple[np.ndarray, np.ndarray]]

    def figures(self, network: keras.Model) -> dict[str, float]:
        """Return the loss of a compiled network as it is now and, where both classes are there, its
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
    """Return positions of slices to watch, as many of each class and evenly spread; none where a
    class is missing.

    Args:
        labels: (n,) 0 or 1 at `held_back`.
        held_back: positions of slices that are not learned from.
        shown: how many slices an epoch learns from.
        batch: of more than one batch there are whole ones only.
    """
    classes = [np.sort(held_back[labels[held_back] == label]) for label in (0, 1)]
    wanted = max(min(MOST_WATCHED, shown // RARER), batch)
    each = min(wanted // 2, *(len(of_class) for of_class in classes))
    if 2 * each > batch:
        each = (2 * each // batch) * batch // 2
    # Alternately, so that each batch holds both classes.
    spread = [of_class[np.arange(each) * len(of_class) // max(each, 1)] for of_class in classes]
    return np.stack(spread, axis=1).reshape(-1)
