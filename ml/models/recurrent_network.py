"""The recurrent network of `ml.models.recurrent`: its layers, and its decisions for sequences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import keras
import numpy as np

from ml.models.recurrent_batches import SLICES

Cell = Literal["lstm", "gru"]
STEP = 16  # lengths are padded to multiples of this, so that few shapes are compiled
NOISE = 1.0  # noise on the cell scores during training, in standard deviations


@dataclass(frozen=True)
class Network:
    """A trained network and the standardization of its inputs: (features - mean) / spread, both
    (f,).
    """

    model: keras.Model
    mean: np.ndarray
    spread: np.ndarray

    def decide(self, sequences: Sequence[np.ndarray]) -> tuple[list[np.ndarray], np.ndarray]:
        """Return the decision of each step of each sequence (t, f), and one for each whole sequence
        (n,).
        """
        steps: list[np.ndarray] = [np.zeros(0)] * len(sequences)
        wholes = np.zeros(len(sequences))
        by_length: dict[int, list[int]] = {}
        for number, sequence in enumerate(sequences):
            by_length.setdefault(-(-len(sequence) // STEP) * STEP, []).append(number)
        for length, numbers in by_length.items():
            for start in range(0, len(numbers), SLICES):
                chunk = numbers[start : start + SLICES]
                inputs, present = (
                    np.zeros((SLICES, length, len(self.mean)), np.float32),
                    np.zeros((SLICES, length), np.float32),
                )
                present[:, 0] = 1  # padding rows of the batch must be valid sequences, too
                for row, number in enumerate(chunk):
                    count = len(sequences[number])
                    inputs[row, :count], present[row, :count] = (
                        (sequences[number] - self.mean) / self.spread,
                        1,
                    )
                outputs = self.model.predict_on_batch({"features": inputs, "present": present})
                for row, number in enumerate(chunk):
                    steps[number] = np.asarray(
                        outputs["steps"][row, : len(sequences[number]), 0], np.float64
                    )
                    wholes[number] = float(outputs["whole"][row, 0])
        return steps, wholes


def build_network(
    cell: Cell,
    width: int,
    settings: Mapping[str, object],
    seed: int,
    own: tuple[float, float] | None = None,
) -> keras.Model:
    """Return the model: "features" (b, t, width), "present" (b, t) of 0 and 1 -> "steps" (b, t, 1),
    "whole" (b, 1), both logits.

    If `own` is given, the first feature is the slice's cell decision, standardized by that mean and
    spread, and the network learns an additive correction, initially zero. The cells were trained on
    the same slices, so their scores are more confident than on unseen patients; noise on the
    network's inputs compensates for that, so that the network makes use of neighboring slices. The
    decision to be corrected has no noise, since the smooth maximum of noise grows with the number
    of slices.
    """
    layers, ops = keras.layers, keras.ops
    features = keras.Input((None, width), name="features")
    present = keras.Input((None,), name="present")
    dropout = float(str(settings["dropout"]))
    seen = features if own is None else layers.GaussianNoise(NOISE, seed=seed + 3)(features)
    x = layers.Dropout(dropout, seed=seed)(seen)
    x = layers.Dense(int(str(settings["projection"])), activation="relu", name="projection")(x)
    x = layers.Dropout(dropout, seed=seed + 1)(x)
    kind = {"lstm": layers.LSTM, "gru": layers.GRU}[cell]
    reader = kind(int(str(settings["units"])), return_sequences=True, name="reader")
    if settings["bidirectional"] == "yes":
        reader = layers.Bidirectional(reader, name="reader")
    states = reader(x, mask=ops.greater(present, 0.5))
    states = layers.Dropout(dropout, seed=seed + 2)(states)
    begin = "glorot_uniform" if own is None else "zeros"
    steps = layers.Dense(1, kernel_initializer=begin, name="step")(states)
    evidence = layers.Dense(1, kernel_initializer=begin, name="evidence")(states)
    if own is not None:
        decisions = features[..., :1] * own[1] + own[0]
        steps, evidence = steps + decisions, evidence + decisions
    is_step = ops.expand_dims(present, -1)
    whole = ops.logsumexp(evidence + (is_step - 1) * 1e9, axis=1) - ops.log(
        ops.sum(is_step, axis=1)
    )
    return keras.Model({"features": features, "present": present}, {"steps": steps, "whole": whole})
