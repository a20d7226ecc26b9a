"""The autoencoder of a model that restructures its inputs, run by itself: the additional input of
the convolutions beside the image.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ml.artifacts.card import FEATURES
from ml.artifacts.folder import read_card
from ml.artifacts.onnx_check import require_self_contained
from ml.errors import ArtifactError
from ml.inference.sessions import session
from ml.preprocessing.model_input import InputSpec, to_input
from ml.scans.slices import FloatArray, Slice

RECONSTRUCTED = "reconstructed"
"""The value in features.onnx that the autoencoder computes (`ml.networks.convolutions`)."""
GRAPH, OUTPUT, NAME = 7, 12, 1
"""Fields of ONNX's ModelProto, GraphProto and ValueInfoProto."""


class Restructuring:
    """The autoencoder of a model.

    Args:
        model_dir: a model folder (`ml.artifacts.folder`).

    Raises:
        ArtifactError: the folder is damaged, or the model does not restructure its inputs.
    """

    def __init__(self, model_dir: Path) -> None:
        card = read_card(model_dir)
        try:
            self.spec = InputSpec.from_dict(card.preprocessing)
        except ValueError as err:
            raise ArtifactError(str(err)) from err
        require_self_contained(model_dir / FEATURES)
        try:
            self._session = session((model_dir / FEATURES).read_bytes() + _as_output(RECONSTRUCTED))
        except ArtifactError as err:
            raise ArtifactError("This model does not restructure its inputs.") from err

    def of(self, slice_: Slice) -> tuple[FloatArray, FloatArray]:
        """Return the model's input for a slice, and the autoencoder's reconstruction of it, each
        float32 (size, size) in 0..1.
        """
        pixels, _ = to_input(slice_, self.spec)
        (drawn,) = self._session.run([RECONSTRUCTED], {"images": pixels[np.newaxis]})
        return pixels[..., 0], np.asarray(drawn, np.float32)[0, 0]


def _as_output(name: str) -> bytes:
    """Return bytes that, appended to a serialized ONNX model, make one of its values an output:
    concatenated Protocol Buffers messages are merged, and their repeated fields are joined. So the
    onnx package, which is not installed for serving, is not needed.
    """
    return _field(GRAPH, _field(OUTPUT, _field(NAME, name.encode())))


def _field(number: int, content: bytes) -> bytes:
    """Return a field of wire type 2 with less than 128 bytes."""
    return bytes((number << 3 | 2, len(content))) + content
