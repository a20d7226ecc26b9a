"""The interface of an encoder: convolutions that turn an image into feature maps, in Keras for
training and in ONNX for serving.

The encoders are `ml.networks.convolutions.AlexNet` and `ml.networks.googlenet.GoogLeNet`.
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
        """The encoder's name, which includes everything except the weights that determines its
        output.
        """

    @property
    def outlines(self) -> bool:
        """Whether it outlines the hemorrhage, in addition to the maps."""

    @property
    def learning_rate(self) -> float:
        """The initial learning rate of a fine-tuning."""

    def initial(self, init: Path | str, seed: int) -> Weights:
        """Return initial weights: of a file, of a model folder, or "random".

        Raises:
            ArtifactError: they are missing, unreadable, or those of another encoder.
        """

    def build(self, weights: Weights, size: int) -> keras.Model:
        """Return the Keras model: float32 (n, size, size, 1) in 0..1 -> maps (n, side, side, c);
        with `outlines`, a list of these and the logits of the outline (n, h, w, 1).
        """

    def weights_of(self, model: keras.Model, base: Weights) -> Weights:
        """Return the weights of a model that `build` created; weights that it lacks come from
        `base`.
        """

    def as_stored(self, weights: Weights) -> Weights:
        """Return the weights rounded to the precision of the exported file, as float32."""

    def to_onnx(self, weights: Weights, size: int) -> bytes:
        """Return the features graph: "images" (N, size, size, 1) -> "maps" (N, side, side, c), the
        mean of the maps of the image and of its mirror image, mirrored back; with `outlines` also
        -> "outline" (N, h, w), the probability of hemorrhage at each position.
        """
