"""Fine-tuning of an encoder's convolutions with one output per cell: each cell of the last maps
predicts whether it contains blood.

A slice's decision is the log-sum-exp of its cells' decisions, a smooth maximum, as in
multiple-instance learning (P. Pinheiro, R. Collobert 2015, "From image-level to pixel-level
labeling"). If there are outlines of the hemorrhage, they supervise the cells directly, and
synthetic hemorrhages, drawn or transferred into negative slices
(`ml.preprocessing.synthetic_lesions`), add rare shapes and locations. A second head on pooled maps
is trained jointly, so that these are informative for an SVM as well; trained alone, it learned the
level of the slice and the source instead (docs/results/journal.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import keras
import numpy as np

from ml.networks.encoder import Encoder
from ml.networks.training_loop import Batch, run_epochs
from ml.networks.watching import Watch, watched_of
from ml.networks.weights import Weights
from ml.preprocessing.augmentation import NOT_DRAWN, vary
from ml.preprocessing.synthetic_lesions import with_decoy, with_drawn_bleed, with_moved_bleed

BATCH = 32
MOST_BATCHES = 32  # per epoch, which is at most 1,024 images
AVERAGING = 0.98
MAP_DROPOUT = 0.08  # of whole channels
POOLED_DROPOUT = 0.2
LOSS_WEIGHTS = {"cells": 1.0, "slice": 1.0, "pooled": 0.3, "outline": 0.5}
OF_SLICES = "slice", "pooled"
"""The outputs that classify the whole slice."""
POSITIVE_SHARE = 0.42  # share of a batch, before synthetic hemorrhages are added
MADE_SHARE = 0.42  # share of the slices without hemorrhage that get a synthetic one
DECOY_SHARE = 0.3  # share of all slices with a visible skull that get a mimic of hemorrhage
# share of the synthetic hemorrhages that come from another patient, if outlines allow it; the rest
# is drawn
MOVED_SHARE = 0.4
BLOODY_SHARE = 0.12  # minimum outlined share of a cell's area for the cell to count as bloody
BLOODY_WEIGHT = 5.0  # weight of a bloody cell relative to any other, since they are rare


@dataclass(frozen=True)
class Tuned:
    """Fine-tuned convolutions, and the head that was trained with them: a cell's decision is
    `cell_weights` (c,) · its maps + `cell_bias`.

    `by` describes the hardware and software that computed it, for the card.
    """

    convolutions: Weights
    cell_weights: np.ndarray
    cell_bias: float
    by: str

    def arrays(self) -> dict[str, np.ndarray]:
        """Return this as named arrays, with the convolutions in half precision, to which they are
        rounded.
        """
        halved = {name: values.astype(np.float16) for name, values in self.convolutions.items()}
        return {
            **halved,
            "cell_W": self.cell_weights,
            "cell_b": np.array(self.cell_bias),
            "by": np.array(self.by),
        }

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Tuned:
        """Return what `arrays` wrote."""
        head = {"cell_W", "cell_b", "by"}
        convolutions = {
            name: values.astype(np.float32) for name, values in arrays.items() if name not in head
        }
        return cls(
            convolutions,
            np.asarray(arrays["cell_W"]),
            float(arrays["cell_b"]),
            str(arrays.get("by", "an older version")),
        )

    def mixed_with(self, initial: Weights, share: float, encoder: Encoder) -> Tuned:
        """Return this with its convolutions averaged with the initial ones, which have the weight
        `share` (0..1), rounded to the precision in which `encoder` stores them.

        What fine-tuning unlearns of the pretrained network would have helped on scans unlike those
        in training (M. Wortsman et al. 2022, "Robust fine-tuning of zero-shot models").
        """
        mixed = {
            name: share * initial[name] + (1 - share) * values
            for name, values in self.convolutions.items()
        }
        return replace(self, convolutions=encoder.as_stored(mixed))


@dataclass(frozen=True)
class LabeledSlices:
    """The training data of a fine-tuning.

    Attributes:
        images: float32 (n, size, size, 1) in 0..1; may be memory-mapped, since only batches are
            read.
        labels: (n,) 0 or 1 at `learn`.
        sources: (n,) data set of each image.
        masks: uint8 (n, m, m) outlines as `ml.models.contract.FitTask` describes them.
        learn: positions of the training images.
        held_back: positions of images of other groups that are not trained on; the fine-tuning is
            monitored on some of them.
    """

    images: np.ndarray
    labels: np.ndarray
    sources: np.ndarray
    masks: np.ndarray
    learn: np.ndarray
    held_back: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))


@dataclass(frozen=True)
class Schedule:
    """Duration and precision of a fine-tuning.

    Attributes:
        epochs: each draws 1,024 images, or fewer if the training set is small.
        seed: of batches, augmentation and head.
        precision: "bfloat16" computes with half the bits, faster on processors with native support;
            weights and their updates stay float32.
    """

    epochs: int
    seed: int
    precision: str = "float32"


def fine_tune(
    start: Weights,
    encoder: Encoder,
    slices: LabeledSlices,
    schedule: Schedule,
    state: Path,
    report: Callable[[float, Mapping[str, float]], None],
) -> Tuned:
    """Return an encoder's weights after training on labeled slices, and the cell head.

    Args:
        start: the encoder's initial weights.
        encoder: the encoder; all of its convolutions are trained.
        slices: the training data.
        schedule: duration and precision.
        state: file for the training state, written after each epoch.
        report: called with the fraction done and the loss after each batch, and after each epoch
            with the metrics of `ml.networks.watching`; raises to stop.
    """
    seed = schedule.seed
    keras.utils.set_random_seed(seed)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(
        "mixed_bfloat16" if schedule.precision == "bfloat16" else "float32"
    )
    try:
        convolutions = encoder.build(start, slices.images.shape[1])
        network = _with_cells(convolutions, seed)
    finally:
        keras.config.set_dtype_policy(before)
    located = ("cells", "outline") if encoder.outlines else ("cells",)
    sides = {
        name: output.shape[1] for name, output in zip(located, convolutions.outputs, strict=True)
    }
    losses = {name: loss for name, loss in _losses().items() if name in (*located, *OF_SLICES)}
    batches = max(min(4 * len(slices.learn) // BATCH, MOST_BATCHES), 1)
    run_epochs(
        network,
        loss=losses,
        loss_weights={name: LOSS_WEIGHTS[name] for name in losses},
        epochs=schedule.epochs,
        batches=batches,
        learning_rate=encoder.learning_rate,
        averaging=AVERAGING,
        seed=seed,
        draw=lambda epoch_seed: _batches(slices, batches, sides, epoch_seed),
        state=state,
        report=report,
        watch=_watch(slices, batches, sides),
    )
    weights, bias = (np.asarray(values) for values in network.get_layer("cell").get_weights())
    learned = encoder.as_stored(encoder.weights_of(convolutions, start))
    return Tuned(learned, weights.reshape(-1), float(bias[0]), computed_by())


def computed_by() -> str:
    """Return Keras's backend with its version. Other backends round and draw random numbers
    differently, but train equally well.
    """
    backend = keras.backend.backend()
    return f"{backend} {version(backend)}"


def balanced_draws(
    labels: np.ndarray, sources: np.ndarray, count: int, random: np.random.Generator
) -> np.ndarray:
    """Return `count` positions, with the same share of hemorrhages within each source; `labels` and
    `sources` are (n,).

    The source then does not predict the label, so that distinguishing hospitals gains nothing, even
    if one of them contributed only positives. Each source is drawn in proportion to its share of
    the images.
    """
    shares = {str(source): float((sources == source).mean()) for source in np.unique(sources)}
    cells = {
        label: [np.flatnonzero((labels == label) & (sources == source)) for source in shares]
        for label in (0, 1)
    }
    positives = round(count * POSITIVE_SHARE)
    drawn = []
    for label, wanted in ((1, positives), (0, count - positives)):
        weights = np.array(
            [
                share if len(cell) else 0.0
                for share, cell in zip(shares.values(), cells[label], strict=True)
            ]
        )
        for which in random.choice(len(weights), size=wanted, p=weights / weights.sum()):
            drawn.append(random.choice(cells[label][which]))
    return np.array(drawn)


def _batches(
    slices: LabeledSlices, batches: int, sides: Mapping[str, int], seed: int
) -> Iterator[Batch]:
    """Yield images with their targets; `sides` are the sides of the outputs that locate the
    hemorrhage, by name.
    """
    images, masks, learn = slices.images, slices.masks, slices.learn
    labels, sources = slices.labels, slices.sources
    random = np.random.default_rng(seed)
    outlined = learn[(labels[learn] == 1) & (masks[learn].reshape(len(learn), -1) == 1).any(axis=1)]
    for _ in range(batches):
        pictures, outlines, answers = [], [], []
        for position in learn[balanced_draws(labels[learn], sources[learn], BATCH, random)]:
            picture, outline, label = (
                np.asarray(images[position, :, :, 0], np.float32),
                masks[position],
                int(labels[position]),
            )
            if random.random() < DECOY_SHARE:
                picture = with_decoy(picture, random)
            if label == 0 and random.random() < MADE_SHARE:
                with_bleed = None
                if len(outlined) and random.random() < MOVED_SHARE:
                    donor = random.choice(outlined)
                    with_bleed = with_moved_bleed(
                        picture,
                        outline,
                        np.asarray(images[donor, :, :, 0], np.float32),
                        masks[donor],
                        random,
                    )
                with_bleed = with_bleed or with_drawn_bleed(picture, outline, random)
                if with_bleed is not None:
                    (picture, outline), label = with_bleed, 1
            picture, outline = vary(picture, outline, random)
            pictures.append(picture)
            outlines.append(outline)
            answers.append(label)
        yield np.stack(pictures)[..., np.newaxis], _known(outlines, answers, sides)


def _known(
    outlines: Sequence[np.ndarray], labels: Sequence[int], sides: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """Return the targets of images: one for each output, by name."""
    truth = np.array(labels, np.float32)[:, np.newaxis]
    located = {
        name: np.stack(
            [
                _bloody_cells(outline, label, side)
                for outline, label in zip(outlines, labels, strict=True)
            ]
        )
        for name, side in sides.items()
    }
    return {**located, "slice": truth, "pooled": truth}


def _watch(slices: LabeledSlices, batches: int, sides: Mapping[str, int]) -> Watch | None:
    """Return the data that a fine-tuning is monitored on: original slices without synthetic
    hemorrhages; None if the held-back slices do not include both classes.
    """
    at = watched_of(slices.labels, slices.held_back, batches * BATCH, BATCH)
    if not len(at):
        return None
    of_batches = [
        (
            np.asarray(slices.images[part], np.float32),
            _known(slices.masks[part], slices.labels[part].tolist(), sides),
        )
        for part in (at[first : first + BATCH] for first in range(0, len(at), BATCH))
    ]
    return Watch(
        of_batches,
        lambda batch, outputs: (batch[1]["slice"][:, 0], np.asarray(outputs["slice"])[:, 0]),
    )


def _bloody_cells(outline: np.ndarray, label: int, side: int) -> np.ndarray:
    """Return float32 (side, side): 1 if a cell contains blood, 0 if it does not, -1 where there is
    no annotation or augmentation moved the blood out of the image.
    """
    bloody = outline == 1
    if (outline == NOT_DRAWN).any() or (label == 1 and not bloody.any()):
        return np.full((side, side), -1, np.float32)
    share = cv2.resize(bloody.astype(np.float32), (side, side), interpolation=cv2.INTER_AREA)
    return np.asarray(share > BLOODY_SHARE, np.float32)


def _cells_loss(truth: keras.KerasTensor, logits: keras.KerasTensor) -> keras.KerasTensor:
    """Return the weighted cross entropy of each image's cells, excluding cells with unknown labels;
    the total is scaled to that of 4 cells.
    """
    ops = keras.ops
    known = ops.cast(truth >= 0, "float32")
    truth = ops.maximum(truth, 0.0)
    entropy = ops.maximum(logits, 0.0) - logits * truth + ops.softplus(-ops.abs(logits))
    weighted = entropy * known * (1 + (BLOODY_WEIGHT - 1) * truth)
    return 4 * ops.mean(weighted, axis=(1, 2))


def _outline_loss(truth: keras.KerasTensor, logits: keras.KerasTensor) -> keras.KerasTensor:
    """Return the loss of the cells of each image plus, if hemorrhage is outlined, 1 - Dice
    coefficient of the probabilities (F. Milletari et al. 2016, doi 10.1109/3DV.2016.79).
    """
    ops = keras.ops
    bloody = ops.cast(truth > 0, "float32")
    predicted = ops.sigmoid(logits) * ops.cast(truth >= 0, "float32")
    drawn = ops.sum(bloody, axis=(1, 2))
    both = 2 * ops.sum(predicted * bloody, axis=(1, 2)) + 1
    dice = both / (ops.sum(predicted, axis=(1, 2)) + drawn + 1)
    return _cells_loss(truth, logits) + (1 - dice) * ops.cast(drawn > 0, "float32")


def _losses() -> dict[str, Any]:
    """Return the loss of each output by name."""
    return {
        "cells": _cells_loss,
        "slice": _entropy(),
        "pooled": _entropy(),
        "outline": _outline_loss,
    }


def _entropy() -> keras.losses.Loss:
    return keras.losses.BinaryCrossentropy(from_logits=True)


def _with_cells(convolutions: keras.Model, seed: int) -> keras.Model:
    """Return the network to train: images -> logits of the cells (n, h, w), of the slice (n, 1),
    the latter from pooled maps as well and, for an encoder with outlines, those of the outline (n,
    h, w).
    """
    maps = keras.layers.SpatialDropout2D(MAP_DROPOUT, seed=seed)(convolutions.outputs[0])
    start = keras.initializers.GlorotUniform(seed=seed)
    cell = keras.layers.Conv2D(1, 1, kernel_initializer=start, dtype="float32", name="cell")(maps)
    cells = keras.layers.Reshape(cell.shape[1:3], dtype="float32", name="cells")(cell)
    flat = keras.layers.Reshape((cell.shape[1] * cell.shape[2],), dtype="float32")(cell)
    pooled = keras.layers.Concatenate()(
        [keras.layers.GlobalAveragePooling2D()(maps), keras.layers.GlobalMaxPooling2D()(maps)]
    )
    pooled = keras.layers.Dropout(POOLED_DROPOUT, seed=seed + 1)(pooled)
    along = keras.layers.Dense(
        1,
        kernel_initializer=keras.initializers.GlorotUniform(seed=seed + 1),
        dtype="float32",
        name="pooled",
    )(pooled)
    outputs = {"cells": cells, "slice": slice_decisions(flat), "pooled": along}
    for outline in convolutions.outputs[1:]:
        outputs["outline"] = keras.layers.Reshape(
            outline.shape[1:3], dtype="float32", name="outline_logits"
        )(outline)
    return keras.Model(convolutions.input, outputs)


def slice_decisions(cells: keras.KerasTensor) -> keras.KerasTensor:
    """Return the decisions of slices (n, 1) from those of their cells (n, cells)."""
    return keras.ops.logsumexp(cells, axis=1, keepdims=True) - float(np.log(10.0))
