"""What every encoder offers: the convolutions that turn a picture into maps, in Keras to learn and
in ONNX to serve.

`ml.networks.convolutions.AlexNet` and `ml.networks.googlenet.GoogLeNet` are the encoders there are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import keras

from ml.networks.weights import Weights


class Encoder(Protocol):
    """Convolutions whose weights are a dictionary of named arrays."""

    @property
    def name(self) -> str:
        """Everything apart from the weights that decides what the encoder computes."""

    @property
    def outlines(self) -> bool:
        """Whether it outlines the hemorrhage, beside the maps."""

    @property
    def learning_rate(self) -> float:
        """The first learning rate of a fine-tuning."""

    def initial(self, init: Path | str, seed: int) -> Weights:
        """Return initial weights: of a file, of a model folder, or "random".

        Raises:
            ArtifactError: they are missing, unreadable, or those of another encoder.
        """

    def build(self, weights: Weights, size: int) -> keras.Model:
        """Return the Keras model: float32 (n, size, size, 1) in 0..1 -> maps (n, side, side, c);
        with `outlines` a list of these and logits of the outline (n, h, w, 1).
        """

    def weights_of(self, model: keras.Model, base: Weights) -> Weights:
        """Return the weights of a model that `build` made; what it does not hold comes from
        `base`.
        """

    def as_stored(self, weights: Weights) -> Weights:
        """Return the weights rounded to what the exported file keeps, as float32."""

    def to_onnx(self, weights: Weights, size: int) -> bytes:
        """Return the features graph: "images" (N, size, size, 1) -> "maps" (N, side, side, c), the
        mean of those of the picture and of its mirror image, which is mirrored back; with
        `outlines` also -> "outline" (N, h, w), the probability of hemorrhage at each place.
        """
