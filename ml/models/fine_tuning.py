"""Fine-tuning of AlexNet's convolutions on labelled slices, with a small softmax head that is dropped afterwards.

What an epoch draws depends on the seed and the number of the epoch alone, and the state is written after each, so that an
interrupted fine-tuning continues with the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import keras
import numpy as np

from ml.checkpoints import load_arrays, save_arrays
from ml.models.convolutions import Weights, build, weights_of

BATCH = 32
LEARNING_RATE = 4e-4
AVERAGING = 0.97
"""Momentum of the running average of the weights, which is what is handed back: scores of this net on unseen sources move by
some points from epoch to epoch."""
DROPOUT = 0.5


def fine_tune(
    start: Weights,
    images: np.ndarray,
    labels: np.ndarray,
    sources: np.ndarray,
    learn: np.ndarray,
    layer: str,
    epochs: int,
    seed: int,
    state: Path,
    report: Callable[[float, Mapping[str, float]], None],
) -> Weights:
    """Return convolutions that learnt from labelled slices.

    Args:
        start: initial weights.
        images: float32 (n, size, size, 1) in 0..1; may lie in a file, since only batches are read.
        labels: (n,) 0 or 1.
        sources: (n,) data set of each image.
        learn: positions of the images to learn from.
        layer: the convolutions up to this one learn.
        epochs: each draws twice as many images as the rarer class has.
        seed: of batches, augmentation and head.
        state: the file that keeps the state after each epoch.
        report: told the share done and the loss after each batch; raises to stop.
    """
    keras.utils.set_random_seed(seed)
    convolutions = build(start, layer, images.shape[1])
    network = _with_softmax_head(convolutions, seed)
    batches = max(2 * int(np.bincount(labels[learn], minlength=2).min()) // BATCH, 1)
    rate = keras.optimizers.schedules.CosineDecay(LEARNING_RATE, batches * epochs)
    optimizer = keras.optimizers.Adam(rate, use_ema=True, ema_momentum=AVERAGING)
    network.compile(optimizer=optimizer, loss="sparse_categorical_crossentropy")
    optimizer.build(network.trainable_variables)
    # Of each layer, so that the state of the dropout's random numbers is among them and the metrics of the model are not.
    variables = [*(variable for one in network.layers for variable in one.variables), *optimizer.variables]
    first = _restore(state, variables)
    for epoch in range(first, epochs):
        epoch_seed = int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0] % 2**31)
        keras.utils.set_random_seed(epoch_seed)
        augment = augmentation(epoch_seed)
        for number, chosen in enumerate(balanced_batches(labels[learn], sources[learn], batches, epoch_seed)):
            at = learn[chosen]
            loss = float(network.train_on_batch(np.asarray(augment(images[at], training=True)), labels[at]))
            report((epoch + (number + 1) / batches) / epochs, {"loss": loss, "epoch": epoch + 1})
        save_arrays(state, {"epoch": np.array(epoch + 1)} | {f"v{i}": np.asarray(v) for i, v in enumerate(variables)})
    optimizer.finalize_variable_values(network.trainable_variables)
    return weights_of(convolutions, start)


def augmentation(seed: int) -> keras.Sequential:
    """Return changes that leave a head a head: mirrored, turned, moved, scaled; another contrast, brightness, sharpness, noise."""
    layers = keras.layers
    return keras.Sequential(
        [
            layers.RandomFlip("horizontal", seed=seed),
            layers.RandomRotation(0.07, fill_mode="constant", seed=seed + 1),
            layers.RandomTranslation(0.06, 0.06, fill_mode="constant", seed=seed + 2),
            layers.RandomZoom(0.15, 0.15, fill_mode="constant", seed=seed + 3),
            layers.RandomContrast(0.3, value_range=(0, 1), seed=seed + 4),
            layers.RandomBrightness(0.1, value_range=(0, 1), seed=seed + 5),
            layers.RandomGaussianBlur(0.5, kernel_size=5, sigma=1.0, value_range=(0, 1), seed=seed + 6),
            layers.GaussianNoise(0.02, seed=seed + 7),
        ]
    )


def balanced_batches(labels: np.ndarray, sources: np.ndarray, batches: int, seed: int) -> Iterator[np.ndarray]:
    """Yield positions, half of each class, the classes balanced within each source as well.

    A source then says nothing about the label: nothing is gained by telling the hospitals apart, although one of them may
    have sent positives only. A source counts by its share of the images.
    """
    random = np.random.default_rng(seed)
    shares = {str(source): float((sources == source).mean()) for source in np.unique(sources)}
    cells = {label: [np.flatnonzero((labels == label) & (sources == source)) for source in shares] for label in (0, 1)}
    for _ in range(batches):
        drawn = []
        for label in (0, 1):
            weights = np.array([share if len(cell) else 0.0 for share, cell in zip(shares.values(), cells[label], strict=True)])
            for which in random.choice(len(weights), size=BATCH // 2, p=weights / weights.sum()):
                drawn.append(random.choice(cells[label][which]))
        yield np.array(drawn)


def _with_softmax_head(convolutions: keras.Model, seed: int) -> keras.Model:
    layers = keras.layers
    maps = convolutions.output
    features = layers.Concatenate()([layers.GlobalAveragePooling2D()(maps), layers.GlobalMaxPooling2D()(maps)])
    # Maps of AlexNet reach 20 and more: a fresh head would push the pretrained convolutions far off in its first steps.
    features = layers.BatchNormalization()(features)
    return keras.Model(convolutions.input, layers.Dense(2, activation="softmax")(layers.Dropout(DROPOUT, seed=seed)(features)))


def _restore(state: Path, variables: list[keras.Variable]) -> int:
    """Put the saved state back; return how many epochs it has behind it."""
    saved = load_arrays(state)
    if saved is None:
        return 0
    for number, variable in enumerate(variables):
        variable.assign(saved[f"v{number}"])
    return int(saved["epoch"])
